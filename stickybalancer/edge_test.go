package stickybalancer

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/endpointsmeta"
)

// What happens between the events that are usual.

// dual returns an endpoint with several addresses.
func dual(id string, addrs ...string) resolver.Endpoint {
	var e resolver.Endpoint
	for _, a := range addrs {
		e.Addresses = append(e.Addresses, resolver.Address{Addr: a})
	}
	return endpointsmeta.Set(e, endpointsmeta.Meta{ID: id})
}

// pick_first connects to two addresses at once (happy eyeballs) and takes the first
// that is READY. That the other one was READY, too, may be in gRPC's queue by then.
func TestTheLoserOfHappyEyeballsTakesNothing(t *testing.T) {
	for _, healthFirst := range []bool{false, true} {
		drive(t, `{}`, func(t *testing.T, d *driver) {
			d.list(dual("s", "a1", "a2"))
			winner := d.conn("a1")
			d.deliver(winner, connectivity.Connecting)
			time.Sleep(time.Second)
			synctest.Wait()
			loser := d.conn("a2")
			d.deliver(loser, connectivity.Connecting)
			d.deliver(winner, connectivity.Ready)
			if healthFirst {
				d.tell(winner, connectivity.Ready)
			}
			require.True(t, loser.shut)
			d.deliver(loser, connectivity.Ready)
			d.deliver(loser, connectivity.Shutdown)
			d.tell(winner, connectivity.Ready)
			require.Equal(t, "a1#0", d.pick(bg))
			require.Equal(t, "a1#0", d.pick(must("s")))
			d.tell(winner, connectivity.Connecting) // the health watch broke
			require.Equal(t, "a1#0", d.pick(must("s")))
		})
	}
}

// pick_first gives up a READY connection when what it was made with has changed, and
// does not say so before the next one is there.
func TestAConnectionThatPickFirstGivesUpIsAnOutage(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("a"))
		d.up("a")
		changed := ep("a")
		changed.Addresses = []resolver.Address{{Addr: "a", ServerName: "other"}}
		old := d.conn("a")
		d.list(changed)
		require.True(t, old.shut)
		d.deliver(old, connectivity.Shutdown)
		require.Equal(t, queued, d.pick(must("a")))
		d.deliver(d.conn("a"), connectivity.Connecting)
		time.Sleep(window)
		synctest.Wait()
		require.Equal(t, failed, d.pick(must("a")))
	})
}

// An address that changes hands while nobody answers there is a new server's: what the
// old one knew of its failures does not make its calls wait.
func TestAnHeirToAConnectionThatIsDownIsWaitedForForTheWindow(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(at("a", "x"))
		d.deliver(d.conn("x"), connectivity.Connecting)
		d.deliver(d.conn("x"), connectivity.TransientFailure)
		time.Sleep(time.Minute)
		synctest.Wait()
		d.list(at("b", "x"))
		require.Equal(t, queued, d.pick(must("b")))
		time.Sleep(window)
		synctest.Wait()
		require.Equal(t, failed, d.pick(must("b")))
		require.Equal(t, failed, d.pick(key("k")))
	})
}

func TestAKeptServerWhoseAddressIsAnothersIsGone(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(at("a", "x"), at("b", "y"))
		d.up("x", "y")
		d.list(at("b", "y"))
		require.Equal(t, "x", d.server(must("a")), "kept")
		made := d.made()
		d.list(at("b", "y"), at("c", "x"))
		require.Equal(t, made, d.made(), "the connection goes with the address")
		require.Equal(t, "x", d.server(must("c")))
		require.Equal(t, queued, d.pick(must("a")))
	})
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(at("a", "x"), at("b", "y"))
		d.up("x", "y")
		d.list(at("b", "x"))
		require.Equal(t, queued, d.pick(must("a")), "b has come to where it was")
	})
}

// hooked lets a test look when the policy asks for a connection, in the midst of a
// list.
type hooked struct {
	*fakeChannel
	look func()
}

func (h *hooked) NewSubConn(a []resolver.Address, o balancer.NewSubConnOptions) (balancer.SubConn, error) {
	if h.look != nil {
		h.look()
	}
	return h.fakeChannel.NewSubConn(a, o)
}

func TestAnOldPickerFailsNoKeyWhileAListIsTakenIn(t *testing.T) {
	for name, tc := range map[string]struct {
		config string
		next   []resolver.Endpoint
	}{
		"the last server drains as the next one comes": {`{}`, []resolver.Endpoint{ep("a", draining), ep("b")}},
		"another server instead, and no grace":         {`{"absentGrace":"0s"}`, []resolver.Endpoint{ep("b")}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &hooked{fakeChannel: &fakeChannel{t: t}}
				d := &driver{t: t, channel: h.fakeChannel}
				d.lb = balancer.Get(Name).Build(h, balancer.BuildOptions{})
				d.configure(tc.config)
				d.list(ep("a"))
				d.up("a")
				h.look = func() { require.Equal(t, queued, d.pick(key("k"))) }
				d.list(tc.next...)
				h.look = nil
				require.Equal(t, queued, d.pick(key("k")))
				d.close()
			})
		})
	}
}

// Not those of addresses: pick_first itself compares them.
func TestAttributesThatCannotBeComparedCountAsChanged(t *testing.T) {
	type k struct{}
	value := func() *attributes.Attributes { return attributes.New(k{}, map[string]string{}) }
	drive(t, `{}`, func(t *testing.T, d *driver) {
		update := func() {
			e := ep("a")
			e.Attributes = e.Attributes.WithValue(k{}, []int{1})
			require.NoError(t, d.lb.UpdateClientConnState(balancer.ClientConnState{
				ResolverState:  resolver.State{Attributes: value(), Endpoints: []resolver.Endpoint{e}},
				BalancerConfig: d.cfg,
			}))
		}
		update()
		require.NotPanics(t, update)
	})
}

// dialErrors is an error of a dialer that tells of several.
type dialErrors []error

func (dialErrors) Error() string { return "no way" }

func TestErrorsThatCannotBeComparedCountAsOthers(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("a"))
		fail := func() {
			d.deliver(d.conn("a"), connectivity.Connecting)
			d.conn("a").listener(balancer.SubConnState{ConnectivityState: connectivity.TransientFailure, ConnectionError: dialErrors{}})
			synctest.Wait()
		}
		fail()
		d.deliver(d.conn("a"), connectivity.Idle)
		require.NotPanics(t, fail)
	})
}

func TestOfTwoServersWithOneIDAndOneFirstAddressTheOrderDecidesNothing(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		x, y := dual("s", "a1", "a2"), dual("s", "a1", "a3")
		p := d.lb.(*policy)
		require.Equal(t, p.unique([]resolver.Endpoint{x, y}), p.unique([]resolver.Endpoint{y, x}))
	})
}

func TestLazyConnectsTheOwnZoneFirst(t *testing.T) {
	for range 10 {
		drive(t, `{"connect":"LAZY","zone":"z"}`, func(t *testing.T, d *driver) {
			d.list(ep("a", inZone("z")), ep("b"), ep("c"), ep("d"))
			require.Equal(t, queued, d.pick(bg))
			synctest.Wait()
			d.up("a")
			require.Equal(t, "a#0", d.pick(bg))
			synctest.Wait()
			require.Equal(t, 1, d.made(), "other zones are not needed")
			d.down("a")
			require.Equal(t, queued, d.pick(bg))
			synctest.Wait()
			require.Equal(t, 1, d.made(), "it is tried again")
			d.deliver(d.conn("a"), connectivity.Connecting)
			d.deliver(d.conn("a"), connectivity.TransientFailure)
			require.Equal(t, queued, d.pick(bg))
			synctest.Wait()
			require.Greater(t, d.made(), 1, "now they are")
		})
	}
}

func TestLazyChannelsOfAZoneDoNotAllConnectTheSameServerFirst(t *testing.T) {
	var eps []resolver.Endpoint
	for i := range 56 {
		eps = append(eps, ep(fmt.Sprint("other", i)))
	}
	for i := range 8 {
		eps = append(eps, ep(fmt.Sprint("own", i), inZone("z")))
	}
	first := map[string]int{}
	for range 200 {
		drive(t, `{"connect":"LAZY","zone":"z"}`, func(t *testing.T, d *driver) {
			d.list(eps...)
			require.Equal(t, queued, d.pick(bg))
			synctest.Wait()
			first[d.channel.conns[0].addr]++
		})
	}
	for addr, n := range first {
		require.Less(t, n, 60, "%s: %v", addr, first)
	}
}

func TestLazyWithoutAWindowGivesAnIdleServerItsOneAttempt(t *testing.T) {
	drive(t, `{"connect":"LAZY","reconnectWindow":"0s"}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		require.Equal(t, queued, d.pick(must("a")))
		synctest.Wait()
		d.up("a")
		d.down("a") // it was told to go away for being idle
		require.Equal(t, queued, d.pick(must("a")))
		synctest.Wait()
		d.deliver(d.conn("a"), connectivity.Connecting)
		require.Equal(t, queued, d.pick(must("a")))
		d.deliver(d.conn("a"), connectivity.TransientFailure)
		require.Equal(t, failed, d.pick(must("a")))
	})
}

func TestQueuesOfTimeDoNotGrowBehindTheirHead(t *testing.T) {
	drive(t, `{"reconnectWindow":"24h","absentGrace":"24h"}`, func(t *testing.T, d *driver) {
		d.list(ep("dead"), ep("kept"), ep("flaps"), ep("comes and goes"))
		d.deliver(d.conn("dead"), connectivity.Connecting)
		d.up("kept", "flaps", "comes and goes")
		d.list(ep("dead"), ep("flaps"), ep("comes and goes"))
		for range 200 {
			d.down("flaps")
			d.up("flaps")
			d.list(ep("dead"), ep("flaps"))
			d.list(ep("dead"), ep("flaps"), ep("comes and goes"))
		}
		p := d.lb.(*policy)
		require.Less(t, len(p.outages), 30)
		require.Less(t, len(p.keeping), 30)
	})
}

// gRPC makes a policy with its first list. Should it ever not, nothing waits for ever.
func TestAnErrorInPlaceOfAListHoldsNoIDForEver(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.lb.ResolverError(errors.New("etcd is away"))
		require.Equal(t, queued, d.pick(must("a")))
		time.Sleep(window)
		synctest.Wait()
		require.Equal(t, failed, d.pick(must("a")))
	})
}
