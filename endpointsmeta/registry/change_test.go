package registry

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/homing-grpc/homing/endpointsmeta"
)

// gameRecord is the key and the value of a server's record.
func gameRecord(n, weight int) (key string, value []byte) {
	key = fmt.Sprintf("game/game-%05d", n)
	return key, fmt.Appendf(nil, `{"Op":0,"Addr":"10.0.%d.%d:7000","Metadata":{"id":"game-%05d","incarnation":7,"weight":%d,"zone":"eu-1a"}}`,
		n>>8, n&255, n, weight)
}

// taker is gRPC's side of a resolver.
type taker struct {
	resolver.ClientConn
	took resolver.State
}

func (c *taker) UpdateState(s resolver.State) error { c.took = s; return nil }

func (*taker) ReportError(error) {}

func (*taker) ParseServiceConfig(string) *serviceconfig.ParseResult { return nil }

// stateOf is what the official resolver hands on of these keys.
func stateOf(keys []string) (s resolver.State) {
	for _, key := range keys {
		s.Endpoints = append(s.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: key}}})
	}
	return s
}

// testResolver is one without etcd and the official resolver.
func testResolver(ctx context.Context) (*etcdResolver, *taker) {
	cc := &taker{}
	return &etcdResolver{ClientConn: cc, service: "game", ctx: ctx, taken: make(chan struct{}, 1),
		byKey: make(map[string]*sentInstance)}, cc
}

// Records come, change, change their ids, break, and go. The list is always all of them,
// sorted; one that was handed out stays as it is; and gRPC gets the same, by the differences
// of those lists that the resolver takes.
func TestAListThatChangesALittleIsTheWholeListSorted(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			f := newFeed(clientv3.NewCtxClient(t.Context()), "game")
			r, cc := testResolver(t.Context())
			official := make(map[string]bool) // the keys that it has
			var handedOut, copied [][]Instance
			for step := range 300 {
				for range 1 + rnd.IntN(5) {
					key := fmt.Sprintf("game/%d", rnd.IntN(30))
					switch rnd.IntN(10) {
					case 0, 1:
						f.gone(key)
					case 2:
						f.put(key, []byte("{"), version{revision: int64(step)})
					default: // several may have one id
						f.put(key, fmt.Appendf(nil, `{"Addr":"10.0.0.1:%d","Metadata":{"id":"game-%d"}}`,
							rnd.IntN(3), rnd.IntN(20)), version{revision: int64(step)})
					}
				}
				want := slices.Collect(maps.Values(f.records))
				slices.SortFunc(want, func(a, b Instance) int {
					return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Key, b.Key))
				})
				got := f.instances()
				require.Len(t, got, len(want))
				if len(want) > 0 {
					require.Equal(t, want, got)
				}
				handedOut, copied = append(handedOut, got), append(copied, slices.Clone(got))

				if rnd.IntN(3) == 0 {
					continue // it comes as one with the next
				}
				for _, ev := range r.difference(got) {
					if key := string(ev.Kv.Key); ev.Type == clientv3.EventTypeDelete {
						require.True(t, official[key], "a delete of what is not there")
						delete(official, key)
					} else {
						official[key] = true
					}
				}
				require.NoError(t, r.UpdateState(stateOf(slices.Collect(maps.Keys(official)))))
				<-r.taken
				require.Len(t, cc.took.Endpoints, len(got))
				for n, ep := range cc.took.Endpoints {
					require.Equal(t, got[n].Addr, ep.Addresses[0].Addr)
					require.Equal(t, got[n].Meta, endpointsmeta.FromEndpoint(ep))
				}
			}
			require.Equal(t, copied, handedOut)
		})
	}
}

// What the official resolver does not hand on, or twice, or has made up, gRPC gets not, or
// once, or not.
func TestTheOfficialResolverHasTheSay(t *testing.T) {
	r, cc := testResolver(t.Context())
	var list []Instance
	for _, id := range []string{"a", "b", "c"} {
		list = append(list, Instance{ID: id, Addr: "at-" + id, Key: "game/" + id})
	}
	r.difference(list)
	for range 2 {
		require.NoError(t, r.UpdateState(stateOf([]string{"game/c", "game/a", "game/c", "game/x"})))
		<-r.taken
		var got []string
		for _, ep := range cc.took.Endpoints {
			got = append(got, ep.Addresses[0].Addr)
		}
		require.Equal(t, []string{"at-a", "at-c"}, got)
	}
}

// A list that nobody has changed is not made anew.
func TestAListWithoutAChangeIsTheSame(t *testing.T) {
	f := newFeed(clientv3.NewCtxClient(t.Context()), "game")
	require.NotNil(t, f.instances())
	require.Empty(t, f.instances())
	key, value := gameRecord(1, 1)
	f.put(key, value, version{revision: 1})
	require.Same(t, &f.instances()[0], &f.instances()[0])
}

// One server of many changes: the record, the list, the difference to the last, and the
// state that gRPC gets, without etcd and what the official resolver does between.
func BenchmarkOneChangeOfMany(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprintf("n=%d", n), func(b *testing.B) {
			f := newFeed(clientv3.NewCtxClient(b.Context()), "game")
			keys := make([]string, n)
			for i := range n {
				key, value := gameRecord(i, 1)
				f.put(key, value, version{revision: int64(i)})
				keys[i] = key
			}
			r, _ := testResolver(b.Context())
			r.difference(f.instances())
			state := stateOf(keys)
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				i++
				key, value := gameRecord(i*7919%n, 2+i%997)
				f.put(key, value, version{revision: int64(n + i)})
				if events := r.difference(f.instances()); len(events) != 1 {
					b.Fatal(len(events))
				}
				if err := r.UpdateState(state); err != nil {
					b.Fatal(err)
				}
				<-r.taken
			}
		})
	}
}
