package stickybalancer_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"
)

// What the resolver says.

func TestParityCallsAreSpreadEvenly(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 16, 33} {
		t.Run(fmt.Sprintf("n=%d", n), func(t *testing.T) {
			parity{}.run(t, func(t *testing.T, r *rig) {
				var names []string
				for i := range n {
					names = append(names, fmt.Sprintf("s%d", i))
				}
				r.up(names...)
				r.state(connectivity.Ready)
				r.share(names...)
				got := r.spread(7*n + 1)
				for _, name := range names {
					require.GreaterOrEqual(t, got[name], 7)
					require.LessOrEqual(t, got[name], 8)
					require.Equal(t, 1, r.dialed(name))
				}
			})
		})
	}
}

func TestParityCallsAtTheSameTimeAreSpreadEvenly(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c")
		var calls []<-chan outcome
		for range 300 {
			c := make(chan outcome, 1)
			go func() {
				server, err := r.call()
				c <- outcome{server: server, err: err}
			}()
			calls = append(calls, c)
		}
		got := map[string]int{}
		for _, c := range calls {
			o := <-c
			require.NoError(t, o.err)
			got[o.server]++
		}
		require.Equal(t, map[string]int{"a": 100, "b": 100, "c": 100}, got)
	})
}

func TestParityCallsOneAfterTheOtherGoToDifferentServers(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c")
		for range 20 {
			require.Len(t, r.spread(3), 3)
		}
	})
}

func TestParityPlainAddressesAreEndpoints(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a", "b")
		r.resolver.UpdateState(resolver.State{Addresses: []resolver.Address{{Addr: "a"}, {Addr: "b"}}})
		synctest.Wait()
		r.share("a", "b")
	})
}

func TestParityAnEmptyListFailsCalls(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c")
		r.list()
		r.state(connectivity.TransientFailure)
		r.refuses()
		for _, name := range []string{"a", "b", "c"} {
			require.Zero(t, r.connected(name))
		}
	})
}

func TestParityAnEmptyListIsABadResolverState(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		err := r.resolver.CC().UpdateState(resolver.State{})
		require.ErrorIs(t, err, balancer.ErrBadResolverState)
		require.NoError(t, r.resolver.CC().UpdateState(resolver.State{Endpoints: plain("a")}))
		err = r.resolver.CC().UpdateState(resolver.State{})
		require.ErrorIs(t, err, balancer.ErrBadResolverState)
		err = r.resolver.CC().UpdateState(resolver.State{})
		require.ErrorIs(t, err, balancer.ErrBadResolverState, "the same empty list again")
		synctest.Wait()
	})
}

func TestParityAnEmptyListBeforeAGoodOneFailsCalls(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		early := r.begin()
		r.queued(early)
		r.list()
		require.Equal(t, codes.Unavailable, status.Code((<-early).err))
		r.state(connectivity.TransientFailure)
		r.refuses()
		waits := r.begin(waitForReady)
		r.queued(waits)
		r.up("a", "b")
		require.NoError(t, (<-waits).err)
		r.share("a", "b")
	})
}

func TestParityAGoodListAfterAnEmptyOneServesAgain(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.list()
		waits := r.begin(waitForReady)
		r.queued(waits)
		r.list("a", "b")
		require.NoError(t, (<-waits).err)
		r.state(connectivity.Ready)
		r.share("a", "b")
	})
}

func TestParityARemovedServerGetsNoMoreCalls(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c")
		r.list("a", "c")
		r.share("a", "c")
		require.Zero(t, r.connected("b"))
		require.Equal(t, 1, r.dialed("a"))
		require.Equal(t, 1, r.dialed("c"))
		r.list("a", "b", "c")
		r.share("a", "b", "c")
		require.Equal(t, 2, r.dialed("b"))
	})
}

func TestParityAStreamOutlivesTheRemovalOfItsServer(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		stream, err := r.client.FullDuplexCall(ctx)
		require.NoError(t, err)
		echo := func() {
			require.NoError(t, stream.Send(&testpb.StreamingOutputCallRequest{}))
			m, err := stream.Recv()
			require.NoError(t, err)
			require.Equal(t, "a", string(m.GetPayload().GetBody()))
		}
		echo()
		r.up("b") // and not a
		r.share("b")
		echo()
		r.pass(time.Hour)
		echo()
		require.Equal(t, 1, r.connected("a"))
		require.NoError(t, stream.CloseSend())
		_, _ = stream.Recv()
		synctest.Wait()
		require.Zero(t, r.connected("a"))
	})
}

func TestParityAnAddedServerGetsItsShare(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.start("c")
		r.list("a", "b", "c")
		r.share("a", "b", "c")
		require.Equal(t, 1, r.dialed("a"))
	})
}

func TestParityAnAddedServerThatIsDownHarmsNothing(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.hang("slow")
		r.list("a", "b", "refuses", "slow")
		r.state(connectivity.Ready)
		r.share("a", "b")
		r.pass(time.Minute)
		r.share("a", "b")
	})
}

func TestParityAnAllNewListSwitchesAfterAGap(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.up("c", "d")
		r.share("c", "d")
		require.Zero(t, r.connected("a"))
		require.Zero(t, r.connected("b"))
	})
}

// All old servers leave and the new ones are still connecting: both policies
// then hold calls, fail-fast ones too.
func TestParityCallsQueueWhileAnAllNewListConnects(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.hang("c")
		r.list("c")
		r.state(connectivity.Connecting)
		call := r.begin()
		r.queued(call)
		r.up("d")
		o := <-call
		require.NoError(t, o.err)
		require.Equal(t, "d", o.server)
	})
}

func TestParityANewAddressReleasesBlockedCalls(t *testing.T) {
	for _, c := range []struct {
		name  string
		block func(r *rig)
		fast  bool // fail-fast calls block, too
	}{
		{"before the first list", func(*rig) {}, true},
		{"while connecting", func(r *rig) { r.hang("slow"); r.list("slow") }, true},
		{"after an empty list", func(r *rig) { r.up("b"); r.list() }, false},
		{"while all servers are down", func(r *rig) { r.list("x", "y") }, false},
		{"after a resolver error", func(r *rig) { r.fail("no names") }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			parity{}.run(t, func(t *testing.T, r *rig) {
				c.block(r)
				calls := []<-chan outcome{r.begin(waitForReady), r.begin(waitForReady)}
				if c.fast {
					calls = append(calls, r.begin())
				} else {
					r.refuses()
				}
				r.queued(calls...)
				r.up("a")
				for _, call := range calls {
					o := <-call
					require.NoError(t, o.err)
					require.Equal(t, "a", o.server)
				}
			})
		})
	}
}

func TestParityAReorderedListReconnectsNothing(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c")
		for _, order := range [][]string{{"c", "b", "a"}, {"b", "a", "c"}, {"a", "b", "c"}, {"a", "b", "c"}} {
			r.list(order...)
			r.share("a", "b", "c")
		}
		for _, name := range []string{"a", "b", "c"} {
			require.Equal(t, 1, r.dialed(name))
		}
	})
}

func TestParityADuplicateHasNoSecondShare(t *testing.T) {
	tagged := func(addr string, tag any) resolver.Address {
		return resolver.Address{Addr: addr, Attributes: attributes.New(tagKey{}, tag)}
	}
	for _, c := range []struct {
		name string
		eps  []resolver.Endpoint
	}{
		{"one address in two endpoints", plain("a", "b", "a")},
		{"one address twice in an endpoint", plain("a,a", "b")},
		{"many times", plain("a", "a", "b", "a", "b", "a", "a")},
		{"endpoints that differ in attributes", []resolver.Endpoint{
			{Addresses: []resolver.Address{{Addr: "a"}}, Attributes: attributes.New(tagKey{}, 1)},
			{Addresses: []resolver.Address{{Addr: "a"}}, Attributes: attributes.New(tagKey{}, 2)},
			{Addresses: []resolver.Address{{Addr: "b"}}},
		}},
		{"addresses that differ in attributes", []resolver.Endpoint{
			{Addresses: []resolver.Address{tagged("a", 1)}},
			{Addresses: []resolver.Address{tagged("a", 2)}},
			{Addresses: []resolver.Address{{Addr: "b"}}},
		}},
		{"two addresses in another order", plain("a,x", "b", "x,a")},
	} {
		t.Run(c.name, func(t *testing.T) {
			parity{}.run(t, func(t *testing.T, r *rig) {
				r.start("a", "b")
				r.update(c.eps)
				r.share("a", "b")
				require.Equal(t, 1, r.dialed("a"))
				require.Equal(t, 1, r.dialed("b"))
			})
		})
	}
}

func TestParityAnEndpointWithoutAnAddressHarmsNothing(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a")
		r.update(append(plain("a"), resolver.Endpoint{}))
		r.share("a")
		r.state(connectivity.Ready)
	})
}

func TestParityChangedAddressAttributesReconnect(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		list := func(tag any) {
			eps := plain("a", "b")
			eps[0].Addresses[0].Attributes = attributes.New(tagKey{}, tag)
			r.update(eps)
		}
		r.start("a", "b")
		list("old")
		r.share("a", "b")
		list("old")
		require.Equal(t, 1, r.dialed("a"), "an equal attribute is no change")
		list("new")
		r.share("a", "b")
		require.Equal(t, []any{"old", "new"}, r.tagsOf("a"))
		require.Equal(t, []any{nil}, r.tagsOf("b"))
		require.Equal(t, 1, r.connected("a"))
	})
}

func TestParityChangedAddressAttributesFailNoCall(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a", "b")
		r.list("a", "b")
		stop := r.load()
		for i := range 20 {
			eps := plain("a", "b")
			eps[i%2].Addresses[0].Attributes = attributes.New(tagKey{}, i)
			r.pass(35 * time.Millisecond)
			r.update(eps)
		}
		calls, errs := stop()
		require.Empty(t, errs)
		require.Greater(t, calls, 50)
	})
}

func TestParityAChangedServerNameReconnects(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		eps := plain("a", "b")
		eps[0].Addresses[0].ServerName = "another.test"
		r.update(eps)
		r.share("a", "b")
		require.Equal(t, 2, r.dialed("a"))
		require.Equal(t, 1, r.dialed("b"))
	})
}

func TestParityChangedEndpointAttributesReconnectNothing(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a", "b")
		for i := range 5 {
			eps := plain("a", "b")
			eps[0].Attributes = attributes.New(tagKey{}, i)
			r.update(eps)
			r.share("a", "b")
		}
		require.Equal(t, 1, r.dialed("a"))
		require.Equal(t, 1, r.dialed("b"))
	})
}

func TestParityChangedBalancerAttributesReconnectNothing(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a", "b")
		for i := range 5 {
			eps := plain("a", "b")
			//lint:ignore SA1019 resolvers still set it
			eps[0].Addresses[0].BalancerAttributes = attributes.New(tagKey{}, i)
			r.update(eps)
			r.share("a", "b")
		}
		require.Equal(t, 1, r.dialed("a"))
	})
}

func TestParityChangedListAttributesReconnectNothing(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a", "b")
		for i := range 5 {
			r.resolver.UpdateState(resolver.State{Endpoints: plain("a", "b"), Attributes: attributes.New(tagKey{}, i)})
			synctest.Wait()
			r.share("a", "b")
		}
		require.Equal(t, 1, r.dialed("a"))
		require.Equal(t, 1, r.dialed("b"))
	})
}

func TestParityAResolverErrorBeforeAListFailsCallsWithItsText(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		early := r.begin()
		r.queued(early)
		r.fail("the name server is on fire")
		require.ErrorContains(t, (<-early).err, "the name server is on fire")
		r.state(connectivity.TransientFailure)
		r.refuses("the name server is on fire")
		r.fail("the name server has burnt down")
		r.refuses("the name server has burnt down")
		waits := r.begin(waitForReady)
		r.queued(waits)
		r.up("a")
		require.NoError(t, (<-waits).err)
		r.state(connectivity.Ready)
	})
}

func TestParityAResolverErrorAfterAListChangesNothing(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.fail("the name server is on fire")
		r.state(connectivity.Ready)
		r.share("a", "b")
		require.Equal(t, 1, r.dialed("a"))
		r.list("a", "b")
		r.share("a", "b")
		require.Equal(t, 1, r.dialed("a"))
	})
}

func TestParityAResolverErrorWhileConnectingChangesNothing(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.hang("a")
		r.list("a")
		call := r.begin()
		r.fail("the name server is on fire")
		r.state(connectivity.Connecting)
		r.queued(call)
		r.up("a", "b")
		require.NoError(t, (<-call).err)
	})
}

func TestParityAResolverErrorWhileAllServersAreDownIsTold(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.list("a", "b")
		r.refuses("connection refused by")
		r.fail("the name server is on fire")
		r.state(connectivity.TransientFailure)
		r.refuses("the name server is on fire")
		r.up("c")
		r.share("c")
	})
}

func TestParityAResolverErrorAfterAnEmptyListKeepsFailing(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a")
		r.list()
		r.fail("the name server is on fire")
		r.state(connectivity.TransientFailure)
		r.refuses()
		r.list("a")
		r.share("a")
	})
}

func TestParityAnEmptyListAfterAResolverErrorKeepsFailing(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.fail("the name server is on fire")
		r.list()
		r.state(connectivity.TransientFailure)
		r.refuses()
		r.up("a")
		r.share("a")
	})
}

// By default our policy keeps a server that the list has lost while its
// connection lives; that is the one thing in which it means to differ.
func TestParityByDefaultTheListsLossIsNotTheServers(t *testing.T) {
	parity{policy: `{"custom_round_robin":{}}`}.in(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c")
		r.list("a", "c")
		r.share("a", "c") // as under round_robin
		require.Equal(t, 1, r.connected("b"), "its own may still call it")
		r.pass(31 * time.Second)
		require.Zero(t, r.connected("b"))

		r.list()
		r.state(connectivity.Ready)
		r.share("a", "c")
		r.pass(29 * time.Second)
		r.share("a", "c")
		r.pass(2 * time.Second)
		r.state(connectivity.TransientFailure)
		r.refuses()
		r.list("a", "b")
		r.share("a", "b")
	})
}

func TestParityByDefaultAListThatComesBackReconnectsNothing(t *testing.T) {
	parity{policy: `{"custom_round_robin":{}}`}.in(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c")
		r.list()
		r.pass(20 * time.Second)
		r.list("a", "b", "c")
		r.pass(time.Minute)
		r.share("a", "b", "c")
		for _, name := range []string{"a", "b", "c"} {
			require.Equal(t, 1, r.dialed(name))
		}
	})
}
