package stickybalancer

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/metadata"

	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/session"
)

// picker decides where one attempt of a call goes. It is a snapshot, but for
// what it shares with its policy: rings and the views of servers, which it
// reads without a lock. Whatever changes there, a picker is published after it;
// so a pick that saw the old and queued is woken.
type picker struct {
	// What quick needs comes first.
	plain      *ring // ring, if there is nothing to be done besides
	marked     *ring // plain, if a call that is marked needs not be looked at further
	bare       *ring // plain, if one whose context has nothing needs not
	turns      *counter
	homes      *homeBook
	members    *members
	target     session.Target
	headers    bool // outgoing metadata is honoured
	trustMarks bool // a mark in the context can say that it holds nothing

	cfg      *lbConfig
	ring     *ring          // for calls without affinity; nil if there is none
	err      error          // for calls without affinity, if there is no ring
	wake     func()         // if there are servers to connect aside; nil if not
	revision *atomic.Uint64 // the policy's
	made     uint64         // at this one
	settled  bool           // ids never listed are waited for no longer
	meter    *meter         // counts picks; nil if nobody records that
	nameless *nameless      // the policy's
}

// choice is where an attempt goes, or why it goes nowhere.
type choice struct {
	target *target
	why    callctx.Reason
	done   func(balancer.DoneInfo) // nil if nobody learns from the attempt
	err    error

	refused bool // another server has refused the call, or its session
	held    bool // the server has the session, or the one that had it says so
}

func queue() choice { return choice{err: balancer.ErrNoSubConnAvailable} }

// pick is Pick without the short cut.
func (p *picker) pick(info balancer.PickInfo, v *callctx.Value) (balancer.PickResult, error) {
	named := v
	if v.Empty() && p.headers && !(v != nil && v.NoHeaders && p.trustMarks) {
		var h callctx.Value
		if v != nil {
			h.Not = v.Not
		}
		if h.ID = outgoing(info.Ctx, p.cfg.idHeader); h.ID == "" {
			h.Key = outgoing(info.Ctx, p.cfg.keyHeader)
		}
		h.Derive()
		if v == nil || v.Route == nil { // it takes a turn: who is to be told of must not come here
			if c := p.quickly(&h, p.plain); c != nil {
				if p.meter != nil {
					p.meter.quick(info, &h)
				}
				return balancer.PickResult{SubConn: c.SubConn}, nil
			}
		}
		if h.ID != "" { // the key says where it goes if that server is gone
			h.Key = outgoing(info.Ctx, p.cfg.keyHeader)
			h.Derive()
		}
		named = &h
	}
	c := p.choose(named)
	if named != nil {
		c.refused = (c.refused || len(named.Not) > 0) && !c.held && !named.Required
	}
	var res balancer.PickResult
	err := c.err
	if err == nil {
		res, err = c.target.pick(info)
	}
	if v != nil && v.Route != nil {
		c.note(v.Route, err)
	}
	if p.meter != nil {
		p.meter.picked(info.Ctx, c.why, err)
	}
	switch {
	case c.err != nil:
		return balancer.PickResult{}, err
	case !c.refused:
	case res.Metadata == nil:
		res.Metadata = metadata.Pairs(callctx.RefusedHeader, "1") // a parent may add to it, as that of RLS does
	default:
		res.Metadata = metadata.Join(res.Metadata, metadata.Pairs(callctx.RefusedHeader, "1"))
	}
	switch {
	case c.done == nil:
	case err != nil:
		c.done(balancer.DoneInfo{})
	case res.Done == nil:
		res.Done = c.done
	default:
		res.Done = both(res.Done, c.done)
	}
	return res, err
}

func both(f, g func(balancer.DoneInfo)) func(balancer.DoneInfo) {
	return func(info balancer.DoneInfo) { f(info); g(info) }
}

// note tells who asked, err being what has become of it.
func (c *choice) note(r *callctx.Route, err error) {
	switch err {
	case nil:
		r.Went(callctx.Hop{Place: c.target.place, Addr: c.target.conn.addr, Reason: c.why})
	case balancer.ErrNoSubConnAvailable:
		r.Queued()
	}
}

func (p *picker) choose(v *callctx.Value) choice {
	switch {
	case v.Empty():
		return p.chooseNext()
	case v.ID != "":
		return p.chooseByID(v)
	case v.Session != nil:
		return p.chooseBySession(v)
	case len(v.Not) > 0:
		return p.choosePast(v)
	}
	return p.chooseByKey(v.Hash)
}

// chooseNext serves a call without affinity.
func (p *picker) chooseNext() choice {
	if p.wake != nil {
		p.wake()
	}
	if p.ring == nil {
		return choice{err: p.err}
	}
	s := p.ring.next(p.turns)
	if s == nil {
		return queue()
	}
	return choice{target: s.target, why: callctx.RoundRobin}
}

// chooseByID serves a call that names its server.
func (p *picker) chooseByID(v *callctx.Value) choice {
	why := callctx.ID
	if v.Moved {
		why = callctx.Moved
	}
	s := p.members.byID(v.IDHash, v.ID)
	if s == nil {
		if !p.settled {
			return queue()
		}
		p.nameless.note(p.members, v.ID)
		if v.Required {
			return choice{err: fmt.Errorf("%s: the required server %q is not in the resolver's list", Name, v.ID)}
		}
		return p.choosePast(v)
	}
	sv := s.view.Load()
	if sv.phase != away && (v.Required || !slices.Contains(v.Not, v.ID)) {
		c := sv.choose(why)
		if v.Moved && v.Session != nil && c.err == nil {
			p.learnMoved(v.Session.Bind(p.target), &c)
		}
		return c
	}
	switch {
	case !v.Required:
		return p.choosePast(v)
	case !sv.known:
		return choice{err: fmt.Errorf("%s: the required server %q has left the resolver's list", Name, v.ID)}
	case sv.failure() == nil:
		return choice{err: fmt.Errorf("%s: the required server %q is not connected", Name, v.ID)}
	default:
		return choice{err: fmt.Errorf("%s: the required server %q is not connected: %v", Name, v.ID, sv.failure())}
	}
}

// choose uses the server or waits for it, as its phase has it.
func (v *view) choose(why callctx.Reason) choice {
	switch v.phase {
	case ready:
		return choice{target: &v.target, why: why}
	case idle:
		v.connect()
	}
	return queue()
}

// outgoing reads a header of a call whose context holds no affinity: "" if there is
// none, or no such name. Of several values the first counts. To look for one takes gRPC
// 30 to 60 ns, so it is done as seldom as can be.
func outgoing(ctx context.Context, name string) string {
	if name == "" {
		return ""
	}
	if vs := metadata.ValueFromOutgoingContext(ctx, name); len(vs) > 0 {
		return vs[0]
	}
	return ""
}
