package registry

import (
	"context"
	"maps"
	"math/rand/v2"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	minProbeInterval = 100 * time.Millisecond
	confirmAfter     = 300 * time.Millisecond
	retryLook        = 500 * time.Millisecond
	doubts           = 3   // looks in a row that differ, until the records are listed again
	fewKeys          = 100 // all of which are read by each look that finds something new
	newKeysLook      = 12  // if there are more, each of so many looks reads those that are new,
	allKeysLook      = 144 // and each of so many all; the others, how many there are

	// lookSpread is how long, for each key, the looks of many clients at all keys are
	// spread when etcd is back.
	lookSpread = time.Millisecond
)

// looks are those at etcd while a watch stands.
type looks struct {
	*feed
	n        int
	last     time.Time
	doubt    bool               // something differs
	differed int                // so many looks in a row
	suspects map[string]version // what the last of them saw otherwise
	owed     bool               // all keys are to be read once, whatever the revision,
	allowed  time.Time          // but not before
	failed   bool               // the last look did
}

// owe has all keys read. What there are many of, many clients may be about to read.
func (s *looks) owe() {
	if s.owed {
		return
	}
	s.owed, s.allowed = true, time.Now()
	if n := len(s.versions); n > fewKeys {
		s.allowed = s.allowed.Add(rand.N(min(time.Duration(n)*lookSpread, s.probe)))
	}
}

// next returns what to ask for now.
func (s *looks) next() question {
	if !s.failed { // or the turn of which no answer came may come at each such time
		s.n++
	}
	s.last = time.Now()
	q := question{seen: s.header, agreed: s.agreed}
	switch {
	case s.doubt, s.owed && !s.last.Before(s.allowed):
		q.kind, q.surely = allKeys, true
		s.doubt, s.owed = false, false
	case s.failed && len(s.versions) > fewKeys:
		q.kind = countOnly
	case len(s.versions) <= fewKeys, s.n%allKeysLook == 0:
		q.kind = allKeys
	case s.n%newKeysLook == 0:
		q.kind = newKeys
	}
	// Requests go to the members in turn, and if one of two does not answer, the second of
	// two requests may always be for that.
	q.surely = q.surely || s.failed
	return q
}

// take judges what a look has found.
func (s *looks) take(l lookResult) {
	s.failed = l.err != nil
	switch {
	case l.err != nil:
		if l.kind != countOnly {
			s.owe()
		}
	case l.older():
		s.differed = doubts
	case l.kind == nothingNew:
	case l.kind == allKeys:
		now := s.missed(l)
		if len(now) == 0 {
			s.agreed = l.header
		}
		if s.differed > 0 {
			maps.DeleteFunc(now, func(key string, v version) bool { return s.suspects[key] != v })
		}
		s.suspects = now
		if s.differed++; len(now) == 0 {
			s.differed = 0
		}
		s.doubt = s.differed > 0
	case l.count != len(s.versions), len(s.missed(l)) > 0:
		s.doubt = !s.owed
	case l.kind == newKeys:
		s.agreed = l.header
	}
}

// pause is how long it is until the next look.
func (s *looks) pause() time.Duration {
	switch {
	case s.failed:
		return min(s.probe, retryLook) // another member may answer
	case s.doubt:
		return confirmAfter
	case s.owed:
		return max(time.Until(s.allowed), minProbeInterval)
	}
	return spread(s.probe)
}

// lookKind is what a look asks for.
type lookKind int

const (
	countOnly  lookKind = iota // how many keys there are
	newKeys                    // and which of them are newer than what was agreed on
	allKeys                    // all of them
	nothingNew                 // is an answer: nobody has written anything since then
)

// question is one to etcd, by a look.
type question struct {
	kind         lookKind
	surely       bool               // also if nothing is new
	seen, agreed *pb.ResponseHeader // when it began: the newest known, and feed.agreed
}

// lookResult is what a look at etcd finds.
type lookResult struct {
	question
	header   *pb.ResponseHeader
	count    int
	versions map[string]version // of the keys that were asked for
	err      error
}

// look finds an etcd whose data was wiped or replaced: the client resumes its watch
// there by itself, at a revision that may be far away, or past what was written
// since. It gives no sign.
//
// It first asks for the revision alone, by a read of a key that no record has. If that is
// the one at which a read of all keys had what is known, there is nothing else to read:
// whatever anybody writes, anywhere in etcd, makes another. What the watch told since does
// not count: one that has missed some goes on with what comes after that.
func (f *feed) look(ctx context.Context, q question) lookResult {
	l := lookResult{question: q}
	ask := func(read func(context.Context, ...clientv3.OpOption) (*clientv3.GetResponse, error), opts ...clientv3.OpOption) *clientv3.GetResponse {
		resp, err := read(ctx, opts...)
		if l.err = err; err != nil {
			return nil
		}
		l.header = resp.Header
		return resp
	}
	if !q.surely {
		switch ask(f.read, clientv3.WithCountOnly()); {
		case l.err != nil, l.older():
			return l
		case q.agreed != nil && l.header.Revision == q.agreed.Revision && l.header.RaftTerm == q.agreed.RaftTerm:
			l.kind = nothingNew
			return l
		case l.kind == newKeys && (q.agreed == nil || l.header.RaftTerm != q.agreed.RaftTerm):
			l.kind = allKeys
		}
	}
	opts := []clientv3.OpOption{clientv3.WithKeysOnly()}
	switch l.kind {
	case countOnly:
		opts[0] = clientv3.WithCountOnly()
	case newKeys:
		opts = append(opts, clientv3.WithMinModRev(q.agreed.Revision+1))
	}
	resp := ask(f.get, opts...)
	if l.err != nil && l.kind == allKeys && q.surely {
		resp = ask(f.get, opts...) // of two members it may always be the turn of one that does not answer
	}
	if l.err != nil {
		return l
	}
	l.count = int(resp.Count)
	l.versions = make(map[string]version, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		l.versions[string(kv.Key)] = versionOf(kv)
	}
	return l
}

// older reports whether the data is older than what was known: a cluster that goes on
// never shows an older revision or term to a linearizable read.
func (l *lookResult) older() bool {
	return olderThan(l.header, l.seen) || l.agreed != nil && olderThan(l.header, l.agreed)
}

func olderThan(now, seen *pb.ResponseHeader) bool {
	return now.ClusterId != seen.ClusterId || now.Revision < seen.Revision || now.RaftTerm < seen.RaftTerm
}

// missed returns the keys that a look has otherwise than the watch told, by the
// version in question. Changes that are on their way are among them, but not for long.
//
// Of new keys, and their number, no more is needed: when all keys were agreed on there
// was none that is not known, so if all that is newer is known, and there are as many,
// they are the same.
func (f *feed) missed(l lookResult) map[string]version {
	missed := make(map[string]version)
	for key, v := range l.versions {
		// What is known and older than the read would be in it, if it were the same etcd.
		if known := f.versions[key]; v != known && known.revision <= l.header.Revision {
			missed[key] = v
		}
	}
	if l.kind != allKeys {
		return missed
	}
	for key, v := range f.versions {
		if _, ok := l.versions[key]; !ok {
			missed[key] = v
		}
	}
	return missed
}
