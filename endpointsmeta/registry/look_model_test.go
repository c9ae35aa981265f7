package registry

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// forgetfulEtcd is a silentEtcd to which anything happens, and whose watch loses some of it.
type forgetfulEtcd struct {
	*silentEtcd
	r       *rand.Rand
	loses   int // so many of ten events
	pending []clientv3.WatchResponse
}

// happens has one thing happen, and reports whether connections were lost by it.
func (e *forgetfulEtcd) happens(key string) (lost bool) {
	switch e.r.IntN(40) {
	case 0, 1, 2, 3, 4, 5, 6, 7:
		e.put("unrelated")
	case 8, 9, 10, 11:
		e.mu.Lock()
		e.term++
		e.mu.Unlock()
	case 12, 13, 14, 15:
		return true
	case 16:
		e.forgets()
		return true
	default:
		e.writes(key)
	}
	return false
}

// writes puts or removes a key, of which the watch may tell later.
func (e *forgetfulEtcd) writes(key string) {
	ev := &clientv3.Event{Kv: &mvccpb.KeyValue{Key: []byte(key)}}
	if _, there := e.keys[key]; there && e.r.IntN(2) == 0 {
		e.remove(key)
		ev.Type = clientv3.EventTypeDelete
	} else {
		e.put(key)
		ev.Kv.Value = []byte(`{"Addr":"10.0.0.1:80"}`)
	}
	ev.Kv.ModRevision, ev.Kv.Lease = e.revision, e.lease
	if e.r.IntN(10) >= e.loses {
		e.pending = append(e.pending, clientv3.WatchResponse{Header: e.header(), Events: []*clientv3.Event{ev}})
	}
}

// forgets replaces it by one with much the same keys and revisions, under other leases.
func (e *forgetfulEtcd) forgets() {
	revision := e.revision
	if e.r.IntN(2) == 0 {
		revision = max(1, revision+e.r.Int64N(20)-5)
	}
	keys := make(map[string]int64)
	for key, rev := range e.keys {
		switch e.r.IntN(8) {
		case 0:
		case 1:
			keys[key] = 1 + e.r.Int64N(revision)
		default:
			keys[key] = min(rev, revision)
		}
	}
	e.wipe(revision, keys)
	e.lease++
	e.pending = nil
}

// versions returns what a reader would find.
func (e *forgetfulEtcd) versions() map[string]version {
	versions := make(map[string]version)
	for key, rev := range e.keys {
		if key != "unrelated" {
			versions[key] = version{rev, e.lease}
		}
	}
	return versions
}

// Whatever etcd goes through, and whatever of it the watch tells, in the end the records are
// known as they are, or are listed anew.
func TestWhateverAWatchLosesIsNoticed(t *testing.T) {
	for seed := range uint64(500) {
		bubble(t, func(ctx context.Context, t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			n := []int{3, 98, 101, 150}[r.IntN(4)]
			e := &forgetfulEtcd{silentEtcd: newSilentEtcd(n), r: r, loses: r.IntN(4)}
			f := follow(ctx, t, e.silentEtcd)
			tell := func() {
				select {
				case e.told <- e.pending[0]:
				case <-f.ended:
					f.ended <- dataDiffers
				}
				e.pending = e.pending[1:]
				synctest.Wait()
			}
			for range r.IntN([]int{8, 60}[r.IntN(2)]) {
				if e.happens(fmt.Sprintf("game/game-%05d", n-1+r.IntN(4))) {
					signal(f.back)
				}
				for len(e.pending) > 0 && r.IntN(3) > 0 {
					tell()
				}
				time.Sleep(time.Duration(r.Int64N(int64(8*time.Second))) / time.Duration(1+r.IntN(30)))
				synctest.Wait()
			}
			for range r.IntN(len(e.pending) + 1) {
				tell()
				time.Sleep(time.Duration(r.Int64N(int64(6 * time.Second))))
				synctest.Wait()
			}
			time.Sleep((newKeysLook+1)*probeInterval*6/5 + confirmAfter + confirmation)
			synctest.Wait()
			if len(f.ended) == 0 && !maps.Equal(e.versions(), f.versions) {
				require.Equal(t, e.versions(), f.versions, "seed %d", seed)
			}
		})
	}
}
