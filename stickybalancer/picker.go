package stickybalancer

import (
	"fmt"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/metadata"

	"github.com/homing-grpc/homing/internal/callctx"
)

// picker decides where one attempt of a call goes. It is a snapshot, but for
// what it shares with its policy: rings and the views of servers, which it
// reads without a lock. Whatever changes there, a picker is published after it;
// so a pick that saw the old and queued is woken.
type picker struct {
	cfg     *lbConfig
	members *members
	homes   *homeBook
	ring    *ring // for calls without affinity; nil if there is none
	turns   *counter
	err     error  // for calls without affinity, if there is no ring
	wake    func() // if there are servers to connect aside; nil if not
	settled bool   // ids never listed are waited for no longer

	headers    bool // outgoing metadata is honoured
	trustMarks bool // a mark in the context can say that it holds nothing
}

func (p *picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	v := callctx.From(info.Ctx)
	if v.Empty() {
		if p.headers && !(v != nil && v.NoHeaders && p.trustMarks) {
			if id, key := p.fromHeaders(info); id != "" || key != "" {
				return p.pickHeaders(info, id, key)
			}
		}
		return p.pickNext(info)
	}
	if v.ID != "" {
		return p.pickID(info, v)
	}
	return p.pickKey(info, v.Hash)
}

// pickNext serves a call without affinity.
func (p *picker) pickNext(info balancer.PickInfo) (balancer.PickResult, error) {
	if p.wake != nil {
		p.wake()
	}
	if p.ring == nil {
		return balancer.PickResult{}, p.err
	}
	s := p.ring.next(p.turns)
	if s == nil {
		return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
	}
	return s.target.pick(info)
}

// pickID serves a call that belongs to a server.
func (p *picker) pickID(info balancer.PickInfo, v *callctx.Value) (balancer.PickResult, error) {
	s := p.members.byID[v.ID]
	if s == nil {
		switch {
		case !p.settled:
			return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
		case v.Required:
			return balancer.PickResult{}, fmt.Errorf("%s: the required server %q is not in the resolver's list", Name, v.ID)
		}
		return p.pickHome(info, v.Hash)
	}
	sv := s.view.Load()
	if sv.phase != away {
		return sv.pick(info)
	}
	switch {
	case !v.Required:
		return p.pickHome(info, v.Hash)
	case !sv.known:
		return balancer.PickResult{}, fmt.Errorf("%s: the required server %q has left the resolver's list", Name, v.ID)
	default:
		return balancer.PickResult{}, fmt.Errorf("%s: the required server %q is not connected: %v", Name, v.ID, sv.err)
	}
}

// pick uses the server or waits for it, as its phase has it.
func (v *view) pick(info balancer.PickInfo) (balancer.PickResult, error) {
	switch v.phase {
	case ready:
		return v.target.pick(info)
	case idle:
		v.connect()
	}
	return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
}

// fromHeaders reads the outgoing metadata of a call whose context holds no
// affinity. Of several values the first counts.
func (p *picker) fromHeaders(info balancer.PickInfo) (id, key string) {
	if p.cfg.idHeader != "" {
		if vs := metadata.ValueFromOutgoingContext(info.Ctx, p.cfg.idHeader); len(vs) > 0 {
			id = vs[0]
		}
	}
	if p.cfg.keyHeader != "" {
		if vs := metadata.ValueFromOutgoingContext(info.Ctx, p.cfg.keyHeader); len(vs) > 0 {
			key = vs[0]
		}
	}
	return id, key
}

func (p *picker) pickHeaders(info balancer.PickInfo, id, key string) (balancer.PickResult, error) {
	v := callctx.Value{ID: id, Key: key}
	if key != "" {
		v.Hash = callctx.Hash(key)
	} else {
		v.Hash = callctx.Hash(id)
	}
	if id != "" {
		return p.pickID(info, &v)
	}
	return p.pickKey(info, v.Hash)
}
