package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// silentEtcd is the memory of an etcd whose watches tell nothing unless the test does.
type silentEtcd struct {
	clientv3.KV
	clientv3.Watcher
	told chan clientv3.WatchResponse

	mu       sync.Mutex
	revision int64
	term     uint64
	keys     map[string]int64 // revisions
	lease    int64            // that all keys are under
	reads    []string         // what was asked for, but for the revision alone
	tips     []time.Time      // when that was
	down     bool
	half     bool // each second request is not answered
	asks     int
}

func newSilentEtcd(records int) *silentEtcd {
	e := &silentEtcd{term: 2, keys: make(map[string]int64), told: make(chan clientv3.WatchResponse)}
	for n := range records {
		e.put(fmt.Sprintf("game/game-%05d", n))
	}
	return e
}

// put writes a record or, without the prefix, anything else.
func (e *silentEtcd) put(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.revision++
	e.keys[key] = e.revision
}

func (e *silentEtcd) remove(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.revision++
	delete(e.keys, key)
}

// wipe replaces it by one that has these records and that revision.
func (e *silentEtcd) wipe(revision int64, keys map[string]int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.revision, e.keys = revision, keys
}

func (e *silentEtcd) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: 1, RaftTerm: e.term, Revision: e.revision}
}

func (e *silentEtcd) Get(_ context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	op := clientv3.OpGet(key, opts...)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asks++
	switch {
	case e.down, e.half && e.asks%2 == 0:
		return nil, errors.New("no leader")
	case op.RangeBytes() == nil:
		e.tips = append(e.tips, time.Now())
		return &clientv3.GetResponse{Header: e.header()}, nil
	case op.IsCountOnly():
		e.reads = append(e.reads, "count")
	case op.MinModRev() > 0:
		e.reads = append(e.reads, "new")
	case op.IsKeysOnly():
		e.reads = append(e.reads, "keys")
	default:
		e.reads = append(e.reads, "records")
	}
	resp := &clientv3.GetResponse{Header: e.header()}
	for key, rev := range e.keys {
		if !strings.HasPrefix(key, "game/") {
			continue
		}
		if resp.Count++; !op.IsCountOnly() && rev >= op.MinModRev() {
			resp.Kvs = append(resp.Kvs, &mvccpb.KeyValue{Key: []byte(key), ModRevision: rev, Lease: e.lease,
				Value: []byte(`{"Addr":"10.0.0.1:80"}`)})
		}
	}
	return resp, nil
}

func (e *silentEtcd) Watch(ctx context.Context, _ string, _ ...clientv3.OpOption) clientv3.WatchChan {
	out := make(chan clientv3.WatchResponse)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case resp := <-e.told:
				select {
				case out <- resp:
				case <-ctx.Done():
				}
			}
		}
	}()
	return out
}

// read returns what was read since it was called last.
func (e *silentEtcd) read() (all string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	all = strings.Join(e.reads, " ")
	e.reads = nil
	return all
}

// asked returns when the revision alone was read since it was called last.
func (e *silentEtcd) asked() (at []time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	at, e.tips = e.tips, nil
	return at
}

// setDown makes it answer nobody, or again.
func (e *silentEtcd) setDown(down bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.down = down
}

// follower is a feed that has listed the records, and watches them.
type follower struct {
	*feed
	back  chan struct{} // as if the connection were
	ended chan string   // why the watch has

	confirmations atomic.Int64
}

func follow(ctx context.Context, t *testing.T, e *silentEtcd) *follower {
	t.Helper()
	cli := clientv3.NewCtxClient(ctx)
	cli.KV, cli.Watcher = e, e
	f := &follower{feed: newFeed(cli, "game"), back: make(chan struct{}, 1), ended: make(chan string, 1)}
	require.NoError(t, f.list(ctx))
	require.Equal(t, "records", e.read())
	f.confirmed = func() { f.confirmations.Add(1) }
	go func() { f.ended <- f.watch(ctx, f.back, func([]Instance) {}, func(error) {}) }()
	synctest.Wait()
	return f
}

// listsAnewWithin requires that the watch ends because the data differ.
func (f *follower) listsAnewWithin(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case why := <-f.ended:
		require.Equal(t, dataDiffers, why)
	case <-time.After(d):
		t.Fatalf("nothing was noticed in %v", d)
	}
}

// bubble is a test in fake time.
func bubble(t *testing.T, f func(ctx context.Context, t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		f(ctx, t)
	})
}

// confirmation is the longest that it takes until what a look has seen is believed.
const confirmation = (doubts - 1) * confirmAfter

func TestWhileNobodyWritesOnlyTheRevisionIsRead(t *testing.T) {
	for _, n := range []int{0, 3, 3000} {
		bubble(t, func(ctx context.Context, t *testing.T) {
			e := newSilentEtcd(n)
			f := follow(ctx, t, e)
			time.Sleep(time.Hour)
			synctest.Wait()
			require.Empty(t, e.read())
			asked := e.asked()
			require.InDelta(t, 720, len(asked), 72)
			require.Len(t, asked, int(f.confirmations.Load()))
		})
	}
}

// Clients that were started together do not look together for long.
func TestLooksAreAFifthMoreOrLessApart(t *testing.T) {
	bubble(t, func(ctx context.Context, t *testing.T) {
		e := newSilentEtcd(3)
		follow(ctx, t, e)
		time.Sleep(time.Hour)
		synctest.Wait()
		var shortest, longest time.Duration = time.Hour, 0
		for asked := e.asked(); len(asked) > 1; asked = asked[1:] {
			apart := asked[1].Sub(asked[0])
			shortest, longest = min(shortest, apart), max(longest, apart)
		}
		require.GreaterOrEqual(t, shortest, 4*time.Second)
		require.LessOrEqual(t, longest, 6*time.Second)
		require.Greater(t, longest-shortest, time.Second)
	})
}

func TestWhatAnyoneElseWritesHasTheKeysReadOnce(t *testing.T) {
	bubble(t, func(ctx context.Context, t *testing.T) {
		e := newSilentEtcd(3)
		follow(ctx, t, e)
		e.put("unrelated")
		time.Sleep(time.Minute)
		require.Equal(t, "keys", e.read())
	})
}

// Of many, the number is read, until all that is new has been.
func TestOfManyRecordsTheNumberIsReadAndThenWhatIsNew(t *testing.T) {
	bubble(t, func(ctx context.Context, t *testing.T) {
		e := newSilentEtcd(3000)
		follow(ctx, t, e)
		e.put("unrelated")
		time.Sleep(3 * newKeysLook * probeInterval)
		require.Equal(t, strings.Repeat("count ", newKeysLook-1)+"new", e.read())
	})
}

// A watch can be deaf, whatever was seen before.
func TestWhatADeafWatchDoesNotTellIsNoticed(t *testing.T) {
	atNextLook := probeInterval*6/5 + confirmation
	for name, tc := range map[string]struct {
		records int
		happens func(e *silentEtcd)
		within  time.Duration
	}{
		"a new one":          {3, func(e *silentEtcd) { e.put("game/new") }, atNextLook},
		"one has gone":       {3, func(e *silentEtcd) { e.remove("game/game-00001") }, atNextLook},
		"one has changed":    {3, func(e *silentEtcd) { e.put("game/game-00001") }, atNextLook},
		"of many, a new one": {3000, func(e *silentEtcd) { e.put("game/new") }, atNextLook + confirmAfter},
		"of many, one has changed": {3000, func(e *silentEtcd) { e.put("game/game-00001") },
			newKeysLook*probeInterval*6/5 + confirmAfter + confirmation},
		"of many, one is another": {3000, func(e *silentEtcd) { e.remove("game/game-00001"); e.put("game/new") },
			newKeysLook*probeInterval*6/5 + confirmAfter + confirmation},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(ctx context.Context, t *testing.T) {
				e := newSilentEtcd(tc.records)
				f := follow(ctx, t, e)
				time.Sleep(time.Hour)
				tc.happens(e)
				f.listsAnewWithin(t, tc.within)
			})
		})
	}
}

// Requests go to the members in turn.
func TestWhatADeafWatchDoesNotTellIsNoticedWhileOneOfTwoMembersDoesNotAnswer(t *testing.T) {
	for _, n := range []int{3, 3000} {
		bubble(t, func(ctx context.Context, t *testing.T) {
			e := newSilentEtcd(n)
			f := follow(ctx, t, e)
			e.half = true
			e.put("game/game-00001")
			f.listsAnewWithin(t, 2*newKeysLook*probeInterval*6/5)
		})
	}
}

// Two looks that differ in other ways each are what a busy service looks like. They agree
// on nothing: the next has to read the keys, although nobody writes any more.
func TestLooksThatDifferEachInItsOwnWayAgreeOnNothing(t *testing.T) {
	bubble(t, func(ctx context.Context, t *testing.T) {
		e := newSilentEtcd(3)
		f := follow(ctx, t, e)
		for e.read() == "" {
			e.put("game/game-00001") // and the watch does not tell
			time.Sleep(confirmAfter / 10)
		}
		e.put("game/game-00001")
		f.listsAnewWithin(t, 2*probeInterval*6/5+confirmation)
	})
}

// What the watch tells was not lost; what it told nothing of before may be.
func TestWhatTheWatchTellsIsNoProofThatItToldAll(t *testing.T) {
	bubble(t, func(ctx context.Context, t *testing.T) {
		e := newSilentEtcd(3)
		f := follow(ctx, t, e)
		e.put("game/lost")
		e.put("game/told")
		e.told <- clientv3.WatchResponse{Header: &pb.ResponseHeader{ClusterId: 1, RaftTerm: 2, Revision: e.revision},
			Events: []*clientv3.Event{{Type: clientv3.EventTypePut, Kv: &mvccpb.KeyValue{
				Key: []byte("game/told"), Value: []byte(`{"Addr":"10.0.0.1:80"}`), ModRevision: e.revision}}}}
		f.listsAnewWithin(t, probeInterval*6/5+confirmation)
	})
}

// What came and went is in no look, but its first half may be told yet.
func TestAWatchThatGoesDeafWhileItIsBehindALookIsNoticed(t *testing.T) {
	for _, n := range []int{3, 3000} {
		bubble(t, func(ctx context.Context, t *testing.T) {
			e := newSilentEtcd(n)
			f := follow(ctx, t, e)
			e.put("game/short")
			e.remove("game/short")
			time.Sleep(time.Duration(newKeysLook+1) * probeInterval * 6 / 5)
			e.told <- clientv3.WatchResponse{Header: &pb.ResponseHeader{ClusterId: 1, RaftTerm: 2, Revision: e.revision - 1},
				Events: []*clientv3.Event{{Type: clientv3.EventTypePut, Kv: &mvccpb.KeyValue{
					Key: []byte("game/short"), Value: []byte(`{"Addr":"10.0.0.1:80"}`), ModRevision: e.revision - 1}}}}
			f.listsAnewWithin(t, probeInterval*6/5+confirmation+confirmAfter)
		})
	}
}

// The revision is the same, by chance, and no watch has ended. That the connection was
// lost is all there is to go by.
func TestAWipedEtcdOfTheSameRevisionIsNoticedWhenTheConnectionIsBack(t *testing.T) {
	for _, n := range []int{3, fewKeys, 3000} {
		bubble(t, func(ctx context.Context, t *testing.T) {
			e := newSilentEtcd(n)
			f := follow(ctx, t, e)
			time.Sleep(time.Hour)
			synctest.Wait()
			e.wipe(e.revision, map[string]int64{"game/new": 2})
			f.back <- struct{}{}
			within := minProbeInterval + confirmation + time.Millisecond // it may just have looked
			if n > fewKeys {
				within += time.Duration(n) * lookSpread
			}
			f.listsAnewWithin(t, within)
		})
	}
}

// The records have the names that they had, and were written before what is known of them.
func TestAWipedEtcdWithTheSameNamesIsNoticed(t *testing.T) {
	bubble(t, func(ctx context.Context, t *testing.T) {
		e := newSilentEtcd(0)
		for range 10 {
			e.put("unrelated")
		}
		for n := range 3 {
			e.put(fmt.Sprintf("game/game-%05d", n))
		}
		f := follow(ctx, t, e)
		e.wipe(100, map[string]int64{"game/game-00000": 3, "game/game-00001": 1, "game/game-00002": 2})
		f.listsAnewWithin(t, probeInterval*6/5+confirmation)
	})
}

// All servers have started again, in the order that they had, too.
func TestAWipedEtcdWithTheSameNamesAndRevisionsIsNoticed(t *testing.T) {
	for _, n := range []int{3, 3000} {
		bubble(t, func(ctx context.Context, t *testing.T) {
			e := newSilentEtcd(n)
			f := follow(ctx, t, e)
			e.mu.Lock()
			e.lease = 7
			e.mu.Unlock()
			f.back <- struct{}{}
			f.listsAnewWithin(t, minProbeInterval+time.Duration(n)*lookSpread+confirmation+time.Millisecond)
		})
	}
}

// What others write counts, too.
func TestAnEtcdThatIsOlderThanTheLastLookIsNoticed(t *testing.T) {
	bubble(t, func(ctx context.Context, t *testing.T) {
		e := newSilentEtcd(3)
		f := follow(ctx, t, e)
		for range 100 {
			e.put("unrelated")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		e.wipe(50, e.keys)
		f.listsAnewWithin(t, probeInterval*6/5)
	})
}

// Many clients find an etcd back at once: of large services each reads the keys some time
// later, and only the revision at once.
func TestWhenEtcdIsBackTheKeysOfManyRecordsAreReadOverTime(t *testing.T) {
	bubble(t, func(ctx context.Context, t *testing.T) {
		e := newSilentEtcd(3000)
		var fleet []*follower
		for range 50 {
			fleet = append(fleet, follow(ctx, t, e))
		}
		time.Sleep(time.Hour)
		e.asked()
		for _, f := range fleet {
			f.back <- struct{}{}
		}
		synctest.Wait()
		require.Greater(t, len(e.asked()), 40, "at once, but for who has just looked")
		require.Empty(t, e.read())
		most, all := 0, 0
		for range 4 {
			time.Sleep(1000 * lookSpread)
			synctest.Wait()
			n := strings.Count(e.read(), "keys")
			most, all = max(most, n), all+n
		}
		require.Less(t, most, 35, "in a third of the time")
		require.Equal(t, 50, all)
		time.Sleep(time.Minute)
		require.Empty(t, e.read(), "each reads them once")
	})
}

func TestAnEtcdThatDoesNotAnswerIsAskedAgainSoon(t *testing.T) {
	bubble(t, func(ctx context.Context, t *testing.T) {
		e := newSilentEtcd(3000)
		follow(ctx, t, e)
		e.setDown(true)
		time.Sleep(time.Minute)
		e.setDown(false)
		e.asked()
		time.Sleep(retryLook)
		synctest.Wait()
		require.Equal(t, "count", e.read())
		require.Empty(t, e.asked(), "of two requests the second may always be for the member that does not answer")
	})
}
