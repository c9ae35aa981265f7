package stickybalancer

import (
	"slices"

	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/endpointsmeta"
)

// news is what a list says that the last one did not.
type news struct {
	want    []listed  // these are new, or differ
	leaving []*server // these are no longer there
	listed  int       // how many servers the list has
}

// newsLocked compares a list with the last one, and reports whether it is to be applied:
// it is if there is anything new, or anew.
func (p *policy) newsLocked(endpoints []resolver.Endpoint, anew bool) (news, bool) {
	if !anew {
		if n, ok := p.differenceLocked(endpoints); ok {
			return n, len(n.want) > 0 || len(n.leaving) > 0
		}
		if sameList(p.last, endpoints) {
			return news{}, false
		}
	}
	want := p.unique(endpoints)
	p.single = len(want) == len(endpoints)
	return news{want, p.leavingLocked(want), len(want)}, true
}

// leavingLocked returns the listed servers that want has not.
func (p *policy) leavingLocked(want []listed) (leaving []*server) {
	p.update++
	for _, l := range want {
		if s := p.server(l.meta.ID); s != nil {
			s.update = p.update
		}
	}
	for s := range p.serversLocked() {
		if s.listed && s.update != p.update {
			leaving = append(leaving, s)
		}
	}
	return leaving
}

// differenceLocked is newsLocked for a list that mostly is the last one: what both
// begin and end with is not looked into. It is not ok if that takes more than to look
// at all: where much differs, or where several endpoints may stand for one server.
func (p *policy) differenceLocked(now []resolver.Endpoint) (n news, ok bool) {
	if !p.single {
		return news{}, false
	}
	n.listed = len(now)
	was := p.last
	for len(was) > 0 && len(now) > 0 && sameEndpoint(was[0], now[0]) {
		was, now = was[1:], now[1:]
	}
	for len(was) > 0 && len(now) > 0 && sameEndpoint(was[len(was)-1], now[len(now)-1]) {
		was, now = was[:len(was)-1], now[:len(now)-1]
	}
	if len(was)+len(now) > len(p.last)/4 {
		return news{}, false
	}
	gone := make(map[string]*server, len(was))  // by id
	left := make(map[string]struct{}, len(was)) // addresses
	for _, ep := range was {
		id := endpointsmeta.FromEndpoint(ep).ID
		gone[id] = p.server(id)
		left[addressKey(ep)] = struct{}{}
	}
	came := make(map[string]struct{}, len(now))  // ids
	taken := make(map[string]struct{}, len(now)) // addresses
	for _, ep := range now {
		if len(ep.Addresses) == 0 {
			return news{}, false
		}
		l := listed{ep, endpointsmeta.FromEndpoint(ep)}
		id, address := l.meta.ID, addressKey(ep)
		if s := p.server(id); s != nil && s.listed && gone[id] == nil {
			return news{}, false
		}
		_, twice := came[id]
		if _, shared := taken[address]; shared || twice {
			return news{}, false
		}
		came[id], taken[address] = struct{}{}, struct{}{}
		n.want = append(n.want, l)
	}
	for address := range left {
		delete(taken, address)
	}
	if len(taken) > 0 && slices.ContainsFunc(p.last, func(ep resolver.Endpoint) bool {
		_, is := taken[addressKey(ep)]
		return is
	}) {
		return news{}, false
	}
	for id, s := range gone {
		if _, stays := came[id]; !stays {
			n.leaving = append(n.leaving, s)
		}
	}
	return n, true
}
