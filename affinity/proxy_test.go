package affinity_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

// What a session learns from answers, where the balancer cannot know: behind a proxy,
// and of endpoints without metadata.

// proxyTarget is the canonical target of a channel to a proxy.
const proxyTarget = "passthrough:///at-proxy"

// proxy forwards calls to the server that their affinity-id names, or, without one, to
// the one that is next.
type proxy struct {
	testpb.UnimplementedTestServiceServer
	clients map[string]testpb.TestServiceClient
	opener  *affinity.Sealer // opens ids for the user that the call says, and passes headers on; nil for not

	mu   sync.Mutex
	next string
	seen []string // the ids that came in, "" for none
	deaf bool     // ids are ignored
}

func (p *proxy) choose(ctx context.Context) (context.Context, testpb.TestServiceClient) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := p.next
	in, _ := metadata.FromIncomingContext(ctx)
	id := ""
	if ids := in[affinity.IDHeader]; len(ids) > 0 {
		id = ids[0]
	}
	if p.opener != nil {
		out := metadata.MD{}
		for _, name := range []string{affinity.IDHeader, affinity.KeyHeader, "user"} {
			out[name] = in[name]
		}
		ctx = metadata.NewOutgoingContext(ctx, out)
		id, _ = p.opener.OpenID(id, user(metadata.NewIncomingContext(ctx, in)))
	}
	p.seen = append(p.seen, id)
	if p.clients[id] != nil && !p.deaf {
		name = id
	}
	return ctx, p.clients[name]
}

func (p *proxy) set(next string, deaf bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next, p.deaf = next, deaf
}

// ids returns what came in since it was last asked.
func (p *proxy) ids() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := p.seen
	p.seen = nil
	return seen
}

func (p *proxy) UnaryCall(ctx context.Context, req *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	ctx, c := p.choose(ctx)
	var header, trailer metadata.MD
	r, err := c.UnaryCall(ctx, req, grpc.Header(&header), grpc.Trailer(&trailer))
	if err == nil {
		_ = grpc.SetHeader(ctx, metadata.MD{affinity.IDHeader: header[affinity.IDHeader]})
	}
	delete(trailer, "content-type")
	_ = grpc.SetTrailer(ctx, trailer)
	return r, err
}

func (p *proxy) FullDuplexCall(down grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]) error {
	ctx, c := p.choose(down.Context())
	up, err := c.FullDuplexCall(ctx)
	if err != nil {
		return err
	}
	go func() {
		for {
			m, err := down.Recv()
			if err != nil {
				_ = up.CloseSend()
				return
			}
			_ = up.Send(m)
		}
	}()
	header, _ := up.Header()
	if ids := header[affinity.IDHeader]; ids != nil {
		_ = down.SetHeader(metadata.MD{affinity.IDHeader: ids})
	}
	for {
		m, err := up.Recv()
		if err != nil {
			trailer := up.Trailer()
			delete(trailer, "content-type")
			down.SetTrailer(trailer)
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := down.Send(m); err != nil {
			return err
		}
	}
}

// behindProxy runs f with a world whose client has a pick_first channel to a proxy of
// a and b. They sign their answers, if they are to.
func behindProxy(t *testing.T, signed bool, f func(t *testing.T, w *world, p *proxy)) {
	t.Helper()
	behindProxyTo(t, func(name string) (opts []affinity.ServerOption) {
		if signed {
			opts = append(opts, affinity.WithServerID(name))
		}
		return opts
	}, f)
}

// behindProxyTo is behindProxy with options for each server.
func behindProxyTo(t *testing.T, opts func(name string) []affinity.ServerOption, f func(t *testing.T, w *world, p *proxy)) {
	t.Helper()
	inEmptyWorld(t, func(t *testing.T, w *world) {
		p := &proxy{next: "a", clients: map[string]testpb.TestServiceClient{}}
		var conns []*grpc.ClientConn
		for _, name := range []string{"a", "b"} {
			w.start(name, opts(name)...)
			conn := w.dialTo("passthrough:///at-" + name)
			conns = append(conns, conn)
			p.clients[name] = testpb.NewTestServiceClient(conn)
		}
		g := &game{name: "proxy", lis: bufconn.Listen(1 << 16), server: grpc.NewServer()}
		testpb.RegisterTestServiceServer(g.server, p)
		w.games["at-proxy"] = g
		go func() { _ = g.server.Serve(g.lis) }()
		conn := w.dialTo("passthrough:///at-proxy", affinity.DialOptions()...)
		w.client = testpb.NewTestServiceClient(conn)
		defer func() {
			for _, c := range append(conns, conn) {
				_ = c.Close()
			}
		}()
		f(t, w, p)
	}, stickybalancer.Config{}.ServiceConfig())
}

func TestASessionLearnsFromAnswersThroughAProxy(t *testing.T) {
	behindProxy(t, true, func(t *testing.T, w *world, p *proxy) {
		s := affinity.NewSession("k")
		m := watchMoves(s)
		w.reaches("a", s.Context(bg))
		require.Equal(t, "a", s.ID(proxyTarget))
		p.set("b", false)
		for range 3 {
			w.reaches("a", s.Context(bg))
		}
		require.Equal(t, []string{"", "a", "a", "a"}, p.ids())
		m.are(t)
	})
}

func TestASessionIsToldOnceThatAProxyHasMovedIt(t *testing.T) {
	behindProxy(t, true, func(t *testing.T, w *world, p *proxy) {
		s := affinity.NewSession("k")
		m := watchMoves(s)
		w.reaches("a", s.Context(bg))
		p.set("b", true)
		w.reaches("b", s.Context(bg))
		w.reaches("b", s.Context(bg))
		require.Equal(t, []string{"", "a", "b"}, p.ids())
		m.are(t, "a b moved")
	})
}

func TestALateAnswerThroughAProxyUndoesNothing(t *testing.T) {
	behindProxy(t, true, func(t *testing.T, w *world, p *proxy) {
		s := affinity.NewSession("k")
		m := watchMoves(s)
		w.reaches("a", s.Context(bg))
		release := make(chan struct{})
		w.game("a").onUnary(func(ctx context.Context, _ *testpb.SimpleRequest) error {
			<-release
			return nil
		})
		done := make(chan error)
		go func() {
			_, err := w.call(s.Context(bg))
			done <- err
		}()
		synctest.Wait()
		p.set("b", true)
		w.reaches("b", s.Context(bg))
		close(release)
		require.NoError(t, <-done)
		require.Equal(t, "b", s.ID(proxyTarget))
		m.are(t, "a b moved")
	})
}

func TestMovedThroughAProxyIsFollowedAndLearned(t *testing.T) {
	for name, signed := range map[string]bool{"signed": true, "not signed": false} {
		t.Run(name, func(t *testing.T) {
			behindProxy(t, signed, func(t *testing.T, w *world, p *proxy) {
				s := affinity.NewSession("k")
				m := watchMoves(s)
				w.reaches("a", s.Context(bg))
				w.game("a").fails(affinity.Moved("b"))
				w.reaches("b", s.Context(bg))
				require.Equal(t, "b", s.ID(proxyTarget))
				p.ids()
				w.reaches("b", s.Context(bg))
				require.Equal(t, []string{"b"}, p.ids(), "at once")
				if signed {
					m.are(t, "a b moved")
				} else {
					m.are(t) // nobody knew of a
				}
			})
		})
	}
}

func TestANewSessionThatIsSentElsewhereThroughAProxyHasNotMoved(t *testing.T) {
	behindProxy(t, true, func(t *testing.T, w *world, p *proxy) {
		s := affinity.NewSession("k")
		m := watchMoves(s)
		w.game("a").fails(affinity.Moved("b"))
		w.reaches("b", s.Context(bg))
		require.Equal(t, "b", s.ID(proxyTarget))
		m.are(t)
	})
}

func TestAStreamThatIsToldMovedThroughAProxyGoesThereNext(t *testing.T) {
	behindProxy(t, true, func(t *testing.T, w *world, p *proxy) {
		s := affinity.NewSession("k")
		m := watchMoves(s)
		w.reaches("a", s.Context(bg))
		w.game("a").fails(affinity.Moved("b"))
		_, err := w.open(s.Context(bg)).Recv()
		require.Equal(t, codes.FailedPrecondition, status.Code(err))
		require.Equal(t, "a", s.ID(proxyTarget))
		w.game("b").onStream(echo("b"))
		ctx, cancel := context.WithCancel(s.Context(bg))
		defer cancel()
		ss := w.open(ctx)
		w.says("b", ss)
		require.Equal(t, "b", s.ID(proxyTarget))
		m.are(t, "a b moved")
	})
}

func TestAStreamThroughAProxyEndsWhenItsSessionMoves(t *testing.T) {
	behindProxy(t, true, func(t *testing.T, w *world, p *proxy) {
		s := affinity.NewSession("k")
		w.game("a").onStream(echo("a"))
		ss := w.open(s.Context(bg))
		w.says("a", ss)
		require.Equal(t, "a", s.ID(proxyTarget))
		w.leaves(s)
		_, err := ss.Recv()
		endsMoved(t, err)
	})
}

func TestADrainedStreamThroughAProxyLetsTheSessionGoAnywhere(t *testing.T) {
	behindProxy(t, true, func(t *testing.T, w *world, p *proxy) {
		s := affinity.NewSession("k")
		m := watchMoves(s)
		w.reaches("a", s.Context(bg))
		w.game("a").onStream(func(grpc.ServerStream) error { return movedStatus(t, codes.Aborted, movedInfo("")) })
		_, err := w.open(s.Context(bg)).Recv()
		endsDrained(t, err)
		p.ids()
		p.set("b", false)
		w.reaches("b", s.Context(bg))
		require.Equal(t, []string{""}, p.ids())
		require.Equal(t, "b", s.ID(proxyTarget))
		m.are(t, "a b drained")
	})
}

func TestADrainedSessionIsNotHeldByAProxyThatKnowsNoBetter(t *testing.T) {
	behindProxy(t, true, func(t *testing.T, w *world, p *proxy) {
		s := affinity.NewSession("k")
		m := watchMoves(s)
		w.reaches("a", s.Context(bg))
		w.game("a").onStream(func(grpc.ServerStream) error { return movedStatus(t, codes.Aborted, movedInfo("")) })
		_, err := w.open(s.Context(bg)).Recv()
		endsDrained(t, err)
		w.reaches("a", s.Context(bg))
		p.ids()
		p.set("b", false)
		w.reaches("b", s.Context(bg))
		require.Equal(t, []string{""}, p.ids(), "it does not ask for a")
		m.are(t, "a b drained")
	})
}

func TestReleaseThroughAProxyForgets(t *testing.T) {
	behindProxy(t, true, func(t *testing.T, w *world, p *proxy) {
		s := affinity.NewSession("k")
		w.reaches("a", s.Context(bg))
		w.game("a").onUnary(logout)
		w.reaches("a", s.Context(bg))
		require.Empty(t, s.ID(proxyTarget))
	})
}

func TestATokenCarriesWhatAnswersSaid(t *testing.T) {
	behindProxy(t, true, func(t *testing.T, w *world, p *proxy) {
		old := affinity.NewSession("k")
		w.reaches("a", old.Context(bg))
		text, err := old.MarshalText()
		require.NoError(t, err)
		var s affinity.Session
		require.NoError(t, s.UnmarshalText(text))
		p.ids()
		p.set("b", false)
		w.reaches("a", s.Context(bg))
		require.Equal(t, []string{"a"}, p.ids())
	})
}

// inPlainWorld runs f with servers that sign as signs has it, behind endpoints without
// metadata.
func inPlainWorld(t *testing.T, signs map[string]string, f func(t *testing.T, w *world)) {
	t.Helper()
	inEmptyWorld(t, func(t *testing.T, w *world) {
		var names []string
		for _, name := range []string{"a", "b", "c"} {
			if id, ok := signs[name]; ok {
				w.start(name, affinity.WithServerID(id))
				names = append(names, name)
			}
		}
		w.listPlain(names...)
		f(t, w)
	}, stickybalancer.Config{}.ServiceConfig())
}

func TestAServerWithoutMetadataIsKnownByTheNameThatItSigns(t *testing.T) {
	inPlainWorld(t, map[string]string{"a": "game-a", "b": "game-b"}, func(t *testing.T, w *world) {
		for range 4 {
			s := affinity.NewSession("")
			m := watchMoves(s)
			home, err := w.call(s.Context(bg))
			require.NoError(t, err)
			require.Equal(t, "game-"+home, s.ID(worldTarget))
			for range 3 {
				w.reaches(home, s.Context(bg))
			}
			require.Equal(t, map[string]place{worldTarget: {id: "at-" + home, name: "game-" + home, bare: true}}, places(s))
			m.are(t)
		}
	})
}

func TestAStreamNamesAServerWithoutMetadata(t *testing.T) {
	inPlainWorld(t, map[string]string{"a": "game-a"}, func(t *testing.T, w *world) {
		w.game("a").onStream(echo("a"))
		s := affinity.NewSession("")
		ss := w.open(s.Context(bg))
		w.says("a", ss)
		require.Equal(t, "game-a", s.ID(worldTarget))
		w.reaches("a", s.Context(bg))
		w.says("a", ss)
		require.NoError(t, ss.CloseSend())
		_, err := ss.Recv()
		require.Equal(t, io.EOF, err)
		require.Equal(t, "game-a", s.ID(worldTarget))
	})
}

func TestASessionOfServersWithoutMetadataMoves(t *testing.T) {
	inPlainWorld(t, map[string]string{"a": "game-a", "b": "game-b"}, func(t *testing.T, w *world) {
		s := affinity.NewSession(w.keyAt("at-a"))
		m := watchMoves(s)
		w.reaches("a", s.Context(bg))
		w.stop("a")
		w.reaches("b", s.Context(bg))
		require.Equal(t, "game-b", s.ID(worldTarget))
		// When it moved only the address was known.
		m.are(t, "game-a at-b failed")
		w.reaches("b", s.Context(bg))
		m.are(t, "game-a at-b failed")
	})
}

func TestAServerWithMetadataMaySignWhatItLikes(t *testing.T) {
	inEmptyWorld(t, func(t *testing.T, w *world) {
		w.start("a", affinity.WithServerID("somebody-else"))
		w.list("a")
		s := affinity.NewSession("")
		m := watchMoves(s)
		for range 3 {
			w.reaches("a", s.Context(bg))
			require.Equal(t, "a", s.ID(worldTarget))
		}
		m.are(t)
	}, stickybalancer.Config{}.ServiceConfig())
}

func TestASignatureThatIsNonsenseIsIgnored(t *testing.T) {
	inEmptyWorld(t, func(t *testing.T, w *world) {
		w.start("a")
		w.listPlain("a")
		for _, nonsense := range []string{"", "a ", " a", strings.Repeat("x", 300)} {
			w.game("a").onUnary(func(ctx context.Context, _ *testpb.SimpleRequest) error {
				return grpc.SetTrailer(ctx, metadata.Pairs(affinity.IDHeader, nonsense))
			})
			s := affinity.NewSession("")
			w.reaches("a", s.Context(bg))
			require.Equal(t, "at-a", s.ID(worldTarget), "%q", nonsense)
		}
	}, stickybalancer.Config{}.ServiceConfig())
}
