package faults

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// Rows returns all rows; short ones only, if short.
func Rows(short bool) []Row {
	rows := slices.Concat(etcdRows(), clockRows(), registryRows(), serverRows(), clientRows(), fenceRows())
	if short {
		rows = slices.DeleteFunc(rows, func(r Row) bool { return !r.Short })
	}
	return rows
}

// onTheWire is how many calls can be under way to one server.
func onTheWire(int64) int64 { return channels * 5 }

func registryRows() []Row {
	var rows []Row
	row := func(name string, short bool, fault func(w *World) error) {
		rows = append(rows, Row{Group: "registry", Name: name, Short: short, Fault: fault})
	}
	row("keepalives starved for 2 TTLs", true, func(w *World) error {
		return w.during(2*ttl, func() error {
			w.etcd.each(func(m *member) { m.back.freeze() })
			return nil
		}, func() error {
			w.etcd.each(func(m *member) { m.back.thaw() })
			return nil
		})
	})
	overwrite := func(name string, short bool, do func(w *World) error) {
		row(name, short, func(w *World) error {
			// Its owner cannot put it right for longer than clients wait for a server
			// that is gone, and for less than leases last.
			w.etcd.each(func(m *member) { m.back.freeze() })
			if err := do(w); err != nil {
				return err
			}
			time.Sleep(ttl * 6 / 10)
			w.etcd.each(func(m *member) { m.back.thaw() })
			w.mended()
			if err := w.listed("a", "b", "c"); err != nil {
				return err
			}
			return w.truth("a", "b", "c")
		})
	}
	put := func(value string) func(w *World) error {
		return func(w *World) error {
			_, err := w.direct.Put(bg, service+"/a", value)
			return err
		}
	}
	overwrite("a key deleted by hand", true, func(w *World) error {
		_, err := w.direct.Delete(bg, service+"/a")
		return err
	})
	overwrite("a key overwritten with garbage", true, put(`}{`))
	overwrite("a key overwritten with another's id", false, put(`{"Op":0,"Addr":"127.0.0.1:1","Metadata":{"id":"b"}}`))
	overwrite("a key overwritten with an empty address", false, put(`{"Op":0,"Addr":"","Metadata":{"id":"a"}}`))
	overwrite("a key overwritten by the official manager", false, func(w *World) error {
		m, err := endpoints.NewManager(w.direct, service)
		if err != nil {
			return err
		}
		return m.AddEndpoint(bg, service+"/a", endpoints.Endpoint{Addr: "127.0.0.1:1"})
	})
	row("a registrant stopped for 2 TTLs, and continued", true, func(w *World) error {
		a := w.servers["a"]
		w.load.timeout.Store(int64(15 * time.Second))
		a.process.signal(syscall.SIGSTOP)
		if err := w.listed("b", "c"); err != nil {
			return err
		}
		time.Sleep(ttl / 2)
		a.process.signal(syscall.SIGCONT)
		w.mended()
		if _, err := a.process.line("state lost", 5*time.Second); err != nil {
			return fmt.Errorf("it does not know that it was gone: %w", err)
		}
		if err := w.listed("a", "b", "c"); err != nil {
			return err
		}
		return w.truth("a", "b", "c")
	})
	row("two registrants with one id, on two addresses", false, func(w *World) error {
		second := &server{id: "a"}
		var err error
		if second.front, err = newProxy(""); err != nil {
			return err
		}
		defer second.close()
		if err := w.launch(second, ""); err != nil {
			return err
		}
		out, err := second.process.line("failed ", 3*ttl)
		if err != nil || !strings.Contains(out, registry.ErrIDTaken.Error()) {
			return fmt.Errorf("the second one was not refused: %q, %v", out, err)
		}
		w.mended()
		return w.truth("a", "b", "c")
	})
	row("two registrants with one id, on one address", false, func(w *World) error {
		a := w.servers["a"]
		second := &server{id: "a", front: a.front}
		if err := w.launch(second, ""); err != nil {
			return err
		}
		if _, err := second.process.line("state registered", 5*time.Second); err != nil {
			return err
		}
		if _, err := a.process.line("state lost", 5*time.Second); err != nil {
			return err
		}
		second.process.kill()
		a.front.mu.Lock()
		a.front.target = a.listen
		a.front.mu.Unlock()
		w.mended()
		if err := w.listed("b", "c"); err != nil { // its lease has to run out
			return err
		}
		w.mended()
		if err := w.listed("a", "b", "c"); err != nil {
			return err
		}
		return w.truth("a", "b", "c")
	})
	rows[len(rows)-1].Moves = []string{"a"} // told that there was another start of it
	restart := func(name string, short bool, registers time.Duration, listen func(s *server) (string, error)) {
		rows = append(rows, Row{
			Group: "registry", Name: name, Short: short, Moves: []string{"a"}, Failed: onTheWire,
			Fault: func(w *World) error {
				a := w.servers["a"]
				a.kill()
				addr, err := listen(a)
				if err != nil {
					return err
				}
				if err := w.launch(a, addr); err != nil {
					return err
				}
				if _, err := a.process.line("state registered", registers); err != nil {
					return err
				}
				w.mended()
				return w.truth("a", "b", "c")
			},
		})
	}
	// A record of its own address is not waited for; another one's is, until it ends.
	restart("restart within the TTL, on the same address", true, ttl/2, func(s *server) (string, error) { return s.listen, nil })
	restart("restart within the TTL, on a new address", false, 3*ttl, func(s *server) (string, error) {
		front, err := newProxy("")
		if err == nil {
			s.front.close()
			s.front = front
		}
		return "", err
	})
	rows = append(rows, Row{Group: "registry", Name: "Close while etcd is down", Moves: []string{"c"}, Fault: func(w *World) error {
		if err := w.killEtcd(); err != nil {
			return err
		}
		c := w.servers["c"]
		if err := c.leave(); err != nil {
			return err
		}
		if err := w.startEtcd(); err != nil {
			return err
		}
		if err := w.listed("a", "b"); err != nil {
			return err
		}
		w.mended()
		return w.truth("a", "b")
	}})
	return rows
}

func serverRows() []Row {
	var rows []Row
	row := func(name string, short bool, failed func(int64) int64, moves []string, fault func(w *World) error) {
		rows = append(rows, Row{Group: "server", Name: name, Short: short, Failed: failed, Moves: moves, Fault: fault})
	}
	a := []string{"a"}
	row("killed", true, onTheWire, a, func(w *World) error {
		w.servers["a"].kill()
		w.mended()
		return w.truth("b", "c")
	})
	row("drained, under calls and streams", true, nil, a, func(w *World) error {
		c := w.load.channels[0]
		var left []*affinity.Session
		for _, s := range c.sessions {
			if s.ID(target) == "a" {
				left = append(left, s)
			}
		}
		ended := make(chan error, len(left))
		for _, s := range left {
			st, err := c.stream(bg, s)
			if err != nil {
				return err
			}
			go func() {
				_, err := st.Recv() // until the stream is told to go
				ended <- err
			}()
		}
		if err := w.servers["a"].leave(); err != nil {
			return err
		}
		w.mended()
		for range left {
			err := <-ended
			if _, ok := affinity.MovedTo(err); !ok || status.Code(err) != codes.Aborted {
				return fmt.Errorf("a stream was not told to go, but: %v", err)
			}
		}
		return w.truth("b", "c")
	})
	rows[len(rows)-1].Slowest = 700 * time.Millisecond // none waits out the window of a second
	row("refused for 3 s", false, onTheWire, a, func(w *World) error {
		w.servers["a"].front.refuse()
		time.Sleep(3 * time.Second)
		if err := w.servers["a"].front.accept(); err != nil {
			return err
		}
		w.mended()
		return w.truth("a", "b", "c")
	})
	row("black-holed for 3 s", true, nil, nil, func(w *World) error {
		w.load.timeout.Store(int64(15 * time.Second))
		w.servers["a"].front.freeze()
		time.Sleep(3 * time.Second)
		w.servers["a"].front.thaw()
		w.mended()
		return w.truth("a", "b", "c")
	})
	rows = append(rows, Row{
		Group: "server", Name: "half-open: gone, and nobody was told", Moves: a, Within: 20 * time.Second,
		// Each call to it, until its connection's keepalive has noticed, which gRPC
		// clamps to 10 s; then those that are held by their deadline.
		Failed: func(n int64) int64 { return 5 * onTheWire(n) },
		Fault: func(w *World) error {
			a := w.servers["a"]
			a.front.freeze()
			a.process.kill()
			w.mended()
			return w.truth("b", "c")
		},
	})
	row("reset, again and again", false, func(n int64) int64 { return 20 * onTheWire(n) }, nil, func(w *World) error {
		for range 20 {
			w.servers["a"].front.cut(true)
			time.Sleep(100 * time.Millisecond)
		}
		w.mended()
		return w.truth("a", "b", "c")
	})
	// With nobody there, calls fail as they do under round_robin.
	all := []string{"a", "b", "c"}
	row("all killed at once, and restarted", false, func(n int64) int64 { return n }, all, func(w *World) error {
		for _, s := range w.servers {
			s.kill()
		}
		for _, s := range w.servers {
			if err := w.launch(s, s.listen); err != nil {
				return err
			}
		}
		for _, s := range w.servers {
			if _, err := s.process.line("state registered", 3*ttl); err != nil {
				return err
			}
		}
		w.mended()
		return w.truth("a", "b", "c")
	})
	row("rolling restart of all, one by one", true, nil, all, func(w *World) error {
		for _, id := range all {
			s := w.servers[id]
			if err := s.leave(); err != nil {
				return err
			}
			if err := w.launch(s, s.listen); err != nil {
				return err
			}
			if _, err := s.process.line("state registered", 3*ttl); err != nil {
				return err
			}
			if err := w.truth("a", "b", "c"); err != nil {
				return err
			}
			w.mended()
		}
		return w.truth("a", "b", "c")
	})
	return rows
}

func clientRows() []Row {
	var rows []Row
	row := func(name string, short bool, moves []string, fault func(w *World) error) {
		rows = append(rows, Row{Group: "client", Name: name, Short: short, Moves: moves, Fault: fault})
	}
	row("idle, and woken while etcd is down", true, nil, func(w *World) error {
		var etcd []string
		w.etcd.each(func(m *member) { etcd = append(etcd, m.front.addr) })
		cli, err := connect(etcd, true)
		if err != nil {
			return err
		}
		defer cli.Close()
		b, err := registry.NewBuilder(cli)
		if err != nil {
			return err
		}
		conn, err := w.dial(b, grpc.WithIdleTimeout(500*time.Millisecond))
		if err != nil {
			return err
		}
		defer conn.Close()
		rpc := testpb.NewTestServiceClient(conn)
		if _, err := rpc.UnaryCall(bg, &testpb.SimpleRequest{}); err != nil {
			return err
		}
		if err := until(5*time.Second, "idle", func() bool { return conn.GetState().String() == "IDLE" }); err != nil {
			return err
		}
		if err := w.killEtcd(); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		for range 20 {
			if _, err := rpc.UnaryCall(ctx, &testpb.SimpleRequest{}); err != nil {
				return fmt.Errorf("the last good list was not used: %w", err)
			}
		}
		return w.during(0, func() error { return nil }, w.startEtcd)
	})
	row("200 channels made and closed under churn", false, nil, func(w *World) error {
		ctx, cancel := context.WithCancel(bg)
		churned := make(chan struct{})
		go func() {
			defer close(churned)
			for i := 0; ctx.Err() == nil; i++ {
				key := fmt.Sprint(service, "/x", i%10)
				_, _ = w.direct.Put(ctx, key, `{"Op":0,"Addr":"127.0.0.1:1"}`)
				_, _ = w.direct.Delete(ctx, key)
			}
		}()
		cli, err := connect([]string{w.etcd.members[0].front.addr}, true)
		if err != nil {
			cancel()
			return err
		}
		defer cli.Close()
		b, err := registry.NewBuilder(cli)
		for i := 0; i < 200 && err == nil; i++ {
			var conn *grpc.ClientConn
			if conn, err = w.dial(b); err == nil {
				conn.Connect()
				time.Sleep(time.Duration(i%5) * time.Millisecond)
				err = conn.Close()
			}
		}
		cancel()
		<-churned
		for i := range 10 {
			_, _ = w.direct.Delete(bg, fmt.Sprint(service, "/x", i))
		}
		if err != nil {
			return err
		}
		w.mended()
		return w.truth("a", "b", "c")
	})
	row("calls cancelled and timed out while they are queued", true, []string{"a"}, func(w *World) error {
		w.servers["a"].kill()
		c := w.load.channels[0]
		for i := range 40 {
			ctx, cancel := context.WithTimeout(affinity.Require(bg, "a"), 20*time.Millisecond)
			if i%2 == 0 {
				time.AfterFunc(10*time.Millisecond, cancel)
			}
			start := time.Now()
			_, err := c.rpc.UnaryCall(ctx, &testpb.SimpleRequest{})
			cancel()
			if took := time.Since(start); err == nil || took > 500*time.Millisecond {
				return fmt.Errorf("a call for 20 ms ended after %v with %v", took, err)
			}
		}
		w.mended()
		return w.truth("b", "c")
	})
	rows[len(rows)-1].Failed = onTheWire
	return rows
}

func (w *World) dial(b resolver.Builder, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient(target, append(opts, grpc.WithResolvers(b),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
}
