package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/e2e/guides/guidetest"
	freeport "github.com/homing-grpc/homing/e2e/internal/port"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// In the processes that the tests start, this program is the pod's.
func TestMain(m *testing.M) {
	if os.Getenv("POD_NAME") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// pod is a process that has a pod's environment.
type pod struct {
	cmd    *exec.Cmd
	port   string
	output bytes.Buffer
	ended  chan error
}

func start(t *testing.T, name, etcd, port string) *pod {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("there is no SIGTERM to send to a process")
	}
	if port == "" {
		n, err := freeport.Free()
		require.NoError(t, err)
		port = strconv.Itoa(n)
	}
	self, err := os.Executable()
	require.NoError(t, err)
	p := &pod{cmd: exec.Command(self), port: port, ended: make(chan error, 1)}
	_, _, drain := grace(t)
	p.cmd.Env = append(os.Environ(), "POD_NAME="+name, "POD_IP=127.0.0.1", "PORT="+port,
		"ETCD_ENDPOINTS="+etcd, "DRAIN_TIMEOUT="+drain.String())
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	require.NoError(t, p.cmd.Start())
	done := make(chan struct{})
	go func() {
		p.ended <- p.cmd.Wait()
		close(done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-done
		if t.Failed() {
			t.Logf("%s:\n%s", name, p.output.String())
		}
	})
	return p
}

// stop is what Kubernetes does to a pod, after preStop. It returns when the pod has ended.
func (p *pod) stop(t *testing.T) {
	t.Helper()
	all, preStop, _ := grace(t)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-p.ended:
		require.NoError(t, err, "exit 0")
	case <-time.After(all - preStop):
		require.Fail(t, "Kubernetes would kill it now")
	}
}

func client(t *testing.T, cli *clientv3.Client) *grpc.ClientConn {
	t.Helper()
	builder, err := registry.NewBuilder(cli)
	require.NoError(t, err)
	conn, err := grpc.NewClient("etcd:///game", append(affinity.DialOptions(),
		grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	return guidetest.Client(t, conn, err)
}

func TestAPodThatIsToldToStopLosesNoCall(t *testing.T) {
	etcd, cli := guidetest.Etcd(t)
	start(t, "game-0", etcd, "")
	leaves := start(t, "game-1", etcd, "")
	conn := client(t, cli)
	guidetest.Sees(t, conn, "game-0", "game-1")
	rpc := testpb.NewTestServiceClient(conn)

	// What its record says meanwhile.
	watching, unwatch := context.WithCancel(t.Context())
	defer unwatch()
	var said []string
	seen, told := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(told)
		for list, err := range registry.Watch(watching, cli, "game") {
			now := "gone"
			for _, i := range list {
				if i.ID == "game-1" {
					now = map[bool]string{false: "there", true: "draining"}[i.Meta.Draining]
				}
			}
			if err == nil && (len(said) == 0 || said[len(said)-1] != now) {
				if said = append(said, now); len(said) == 1 {
					close(seen)
				}
			}
		}
	}()
	<-seen

	// A long call and a stream that are under way when it is told.
	there := affinity.Require(t.Context(), "game-1")
	long := make(chan error, 1)
	go func() {
		r, err := rpc.UnaryCall(there, &testpb.SimpleRequest{Payload: &testpb.Payload{Body: []byte("3s")}})
		if err == nil && r.GetHostname() != "game-1" {
			t.Errorf("the long call was answered by %s", r.GetHostname())
		}
		long <- err
	}()
	stream, err := rpc.FullDuplexCall(there)
	require.NoError(t, err)
	turn := func() {
		require.NoError(t, stream.Send(&testpb.StreamingOutputCallRequest{}))
		_, err := stream.Recv()
		require.NoError(t, err)
	}
	turn()

	// And calls all the while.
	loading, unload := context.WithCancel(t.Context())
	defer unload()
	var wg sync.WaitGroup
	session := affinity.NewSession("player-7")
	for _, ctx := range []context.Context{
		t.Context(), affinity.With(t.Context(), "game-1"),
		affinity.WithKey(t.Context(), "room-7"), session.Context(t.Context()),
	} {
		wg.Go(func() {
			n := 0
			for ; loading.Err() == nil; n++ {
				if _, err := guidetest.Who(ctx, conn); err != nil {
					t.Errorf("lost: %v", err)
				}
			}
			t.Logf("%d calls", n)
		})
	}

	stopped := make(chan struct{})
	go func() {
		leaves.stop(t)
		close(stopped)
	}()
	guidetest.Soon(t, func() bool {
		list, err := registry.List(t.Context(), cli, "game")
		return err == nil && len(list) == 2 && list[1].Meta.Draining
	}, "it drains")
	turn()
	require.NoError(t, stream.CloseSend())
	require.NoError(t, <-long)
	<-stopped
	guidetest.Sees(t, conn, "game-0")
	unload()
	wg.Wait()
	unwatch()
	<-told
	require.Equal(t, []string{"there", "draining", "gone"}, said)
}

func TestARollingUpdateKeepsIDs(t *testing.T) {
	etcd, cli := guidetest.Etcd(t)
	start(t, "game-0", etcd, "")
	old := start(t, "game-1", etcd, "")
	conn := client(t, cli)
	guidetest.Sees(t, conn, "game-0", "game-1")
	old.stop(t)
	guidetest.Sees(t, conn, "game-0")
	start(t, "game-1", etcd, "") // on another address
	guidetest.Sees(t, conn, "game-0", "game-1")
	guidetest.Stays(affinity.Require(t.Context(), "game-1"), t, conn, "game-1")
}

func TestAContainerThatWasKilledIsBackUnderItsIDAtOnce(t *testing.T) {
	etcd, cli := guidetest.Etcd(t)
	old := start(t, "game-0", etcd, "")
	conn := client(t, cli)
	guidetest.Sees(t, conn, "game-0")
	require.NoError(t, old.cmd.Process.Kill())
	<-old.ended
	before := time.Now()
	start(t, "game-0", etcd, old.port) // the pod keeps its address
	guidetest.Soon(t, func() bool {
		name, err := guidetest.Who(affinity.Require(t.Context(), "game-0"), conn)
		return err == nil && name == "game-0"
	}, "calls reach it")
	require.Less(t, time.Since(before), 9*time.Second, "it does not wait for the lease of its former self")
}

func TestAPodIsReadyWhenItIsRegistered(t *testing.T) {
	etcd, _ := guidetest.Etcd(t)
	ready := start(t, "game-0", etcd, "")
	probe(t, ready, "registered", healthpb.HealthCheckResponse_SERVING)
	ready.stop(t)
}

func TestAPodThatItsOperatorDrainsIsNotReady(t *testing.T) {
	etcd, cli := guidetest.Etcd(t)
	const word = "/homing/operator/game/game-0"
	_, err := cli.Put(t.Context(), word, `{"draining":true}`)
	require.NoError(t, err)
	drained := start(t, "game-0", etcd, "")
	guidetest.Soon(t, func() bool {
		list, err := registry.List(t.Context(), cli, "game")
		return err == nil && len(list) == 1 && list[0].Meta.Draining
	}, "it is registered, and drains")
	probe(t, drained, "registered", healthpb.HealthCheckResponse_NOT_SERVING)
	_, err = cli.Delete(t.Context(), word)
	require.NoError(t, err)
	probe(t, drained, "registered", healthpb.HealthCheckResponse_SERVING)
}

func TestAPodWithoutEtcdIsAliveAndNotReadyAndCanBeStopped(t *testing.T) {
	alone := start(t, "game-0", "127.0.0.1:1", "")
	probe(t, alone, "", healthpb.HealthCheckResponse_SERVING)
	probe(t, alone, "registered", healthpb.HealthCheckResponse_NOT_SERVING)
	alone.stop(t)
}

// probe asks what kubelet asks until the answer is want.
func probe(t *testing.T, p *pod, service string, want healthpb.HealthCheckResponse_ServingStatus) {
	t.Helper()
	conn, err := grpc.NewClient("127.0.0.1:"+p.port, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	guidetest.Soon(t, func() bool {
		r, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: service}, grpc.WaitForReady(true))
		return err == nil && r.GetStatus() == want
	}, "the probe of %q says %v", service, want)
}

func TestAnEtcdThatIsAwayDoesNotMakeAPodUnready(t *testing.T) {
	probes := health.NewServer()
	tell := readiness(probes)
	for _, c := range []struct {
		state registry.State
		want  healthpb.HealthCheckResponse_ServingStatus
	}{
		{registry.Registered, healthpb.HealthCheckResponse_SERVING},
		{registry.Lost, healthpb.HealthCheckResponse_SERVING},
		{registry.Registered, healthpb.HealthCheckResponse_SERVING},
		{registry.Draining, healthpb.HealthCheckResponse_NOT_SERVING},
		{registry.Closed, healthpb.HealthCheckResponse_NOT_SERVING},
	} {
		tell(c.state)
		r, err := probes.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "registered"})
		require.NoError(t, err)
		require.Equal(t, c.want, r.GetStatus(), c.state)
	}
}
