package stickybalancer_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"
	"google.golang.org/grpc/status"
)

// gRPC's outlier detection can only be had with all of xDS, which the root
// module does not want; e2e tests it. Here a parent policy uses the same means:
// it stands between the policy and its SubConns, ejects one by telling its
// health listener that it fails, and hears of each call's end from the picker.

const ejectorName = "parity_ejector"

var withEjector = parity{wrap: `{"` + ejectorName + `":{"childPolicy":[%s]}}`}

func init() { balancer.Register(ejectorBuilder{}) }

type ejectorBuilder struct{}

type ejectorConfig struct {
	serviceconfig.LoadBalancingConfig
	child  balancer.Builder
	config serviceconfig.LoadBalancingConfig
}

func (ejectorBuilder) Name() string { return ejectorName }

func (ejectorBuilder) ParseConfig(js json.RawMessage) (serviceconfig.LoadBalancingConfig, error) {
	var c struct{ ChildPolicy []map[string]json.RawMessage }
	if err := json.Unmarshal(js, &c); err != nil {
		return nil, err
	}
	for name, js := range c.ChildPolicy[0] {
		out := &ejectorConfig{child: balancer.Get(name)}
		if p, ok := out.child.(balancer.ConfigParser); ok {
			var err error
			if out.config, err = p.ParseConfig(js); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return nil, errors.New("no child policy")
}

func (ejectorBuilder) Build(cc balancer.ClientConn, opts balancer.BuildOptions) balancer.Balancer {
	e := &ejector{ClientConn: cc, opts: opts, conns: map[string]*ejectable{}, ends: map[string][]error{}}
	theEjector = e
	return e
}

// theEjector is the last one built. Parity tests run one after the other.
var theEjector *ejector

type ejector struct {
	balancer.ClientConn // the parent's
	opts                balancer.BuildOptions
	child               balancer.Balancer

	mu    sync.Mutex
	conns map[string]*ejectable // by address
	ends  map[string][]error    // of calls, by address
}

func (e *ejector) UpdateClientConnState(s balancer.ClientConnState) error {
	c := s.BalancerConfig.(*ejectorConfig)
	if e.child == nil {
		e.child = c.child.Build(e, e.opts)
	}
	s.BalancerConfig = c.config
	return e.child.UpdateClientConnState(s)
}

func (e *ejector) ResolverError(err error) {
	if e.child != nil {
		e.child.ResolverError(err)
	}
}

func (e *ejector) UpdateSubConnState(balancer.SubConn, balancer.SubConnState) {}

func (e *ejector) ExitIdle() { e.child.ExitIdle() }

func (e *ejector) Close() {
	if e.child != nil {
		e.child.Close()
	}
}

func (e *ejector) NewSubConn(addrs []resolver.Address, opts balancer.NewSubConnOptions) (balancer.SubConn, error) {
	s := &ejectable{addr: addrs[0].Addr}
	//lint:ignore SA1019 what every policy calls, with one address
	sc, err := e.ClientConn.NewSubConn(addrs, opts)
	if err != nil {
		return nil, err
	}
	s.SubConn = sc
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conns[s.addr] = s
	return s, nil
}

func (e *ejector) UpdateState(s balancer.State) {
	s.Picker = &ejectorPicker{s.Picker, e}
	e.ClientConn.UpdateState(s)
}

// eject takes the server out, or back in.
func (e *ejector) eject(addr string, out bool) {
	e.mu.Lock()
	s := e.conns[addr]
	e.mu.Unlock()
	s.mu.Lock()
	listener := s.listener
	s.mu.Unlock()
	if out {
		listener(balancer.SubConnState{ConnectivityState: connectivity.TransientFailure, ConnectionError: errors.New("an outlier was ejected")})
	} else {
		listener(balancer.SubConnState{ConnectivityState: connectivity.Ready})
	}
	synctest.Wait()
}

type ejectable struct {
	balancer.SubConn
	addr     string
	mu       sync.Mutex
	listener func(balancer.SubConnState)
}

func (s *ejectable) RegisterHealthListener(f func(balancer.SubConnState)) {
	s.mu.Lock()
	s.listener = f
	s.mu.Unlock()
	s.SubConn.RegisterHealthListener(f)
}

type ejectorPicker struct {
	balancer.Picker
	ejector *ejector
}

func (p *ejectorPicker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	r, err := p.Picker.Pick(info)
	if err != nil {
		return r, err
	}
	s := r.SubConn.(*ejectable) // panics if the policy picks what it was not given
	done := r.Done
	r.SubConn = s.SubConn
	r.Done = func(i balancer.DoneInfo) {
		if done != nil {
			done(i)
		}
		p.ejector.mu.Lock()
		defer p.ejector.mu.Unlock()
		p.ejector.ends[s.addr] = append(p.ejector.ends[s.addr], i.Err)
	}
	return r, nil
}

func TestParityAnOutlierLeavesTheRotation(t *testing.T) {
	withEjector.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c")
		r.share("a", "b", "c")
		theEjector.eject("b", true)
		r.share("a", "c")
		r.list("c", "b", "a")
		r.share("a", "c")
		theEjector.eject("b", false)
		r.share("a", "b", "c")
		require.Equal(t, 1, r.dialed("b"))
	})
}

func TestParityCallsFailWhileAllServersAreOutliers(t *testing.T) {
	withEjector.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		theEjector.eject("a", true)
		theEjector.eject("b", true)
		r.state(connectivity.TransientFailure)
		r.refuses("an outlier was ejected")
		theEjector.eject("b", false)
		r.share("b")
	})
}

func TestParityAnOutlierThatReconnectsIsJudgedAgain(t *testing.T) {
	withEjector.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		theEjector.eject("a", true)
		r.cut(r.host("a"))
		r.pass(time.Minute)
		r.share("a", "b")
	})
}

func TestParityAParentHearsOfEachCallsEnd(t *testing.T) {
	withEjector.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.share("a", "b")
		r.answers("b", func(context.Context) error { return status.Error(codes.Internal, "broken") })
		for range 10 {
			_, _ = r.call()
		}
		theEjector.mu.Lock()
		defer theEjector.mu.Unlock()
		require.Len(t, theEjector.ends["a"], 15)
		require.Len(t, theEjector.ends["b"], 15)
		for i := range 15 {
			require.NoError(t, theEjector.ends["a"][i])
			require.Equal(t, i >= 10, theEjector.ends["b"][i] != nil)
		}
	})
}
