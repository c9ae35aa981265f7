package affinity_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/test/bufconn"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// gameTarget is what a program would dial, and by which a session tells services
// apart. Here it is a fixed list of servers inside this process.
const gameTarget = "static:///game"

// room is a server that holds the state of rooms.
type room struct {
	testpb.UnimplementedTestServiceServer
	id      string
	movedTo string // where the state of all its rooms is now, "" if here
	fence   affinity.Fence
}

func (r *room) UnaryCall(ctx context.Context, req *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if string(req.GetPayload().GetBody()) == "logout" {
		return &testpb.SimpleResponse{Hostname: r.id}, affinity.Release(ctx)
	}
	if r.movedTo != "" {
		return nil, affinity.Moved(r.movedTo)
	}
	return &testpb.SimpleResponse{Hostname: r.id}, nil
}

func (r *room) FullDuplexCall(ss testpb.TestService_FullDuplexCallServer) error {
	if err := ss.Send(&testpb.StreamingOutputCallResponse{}); err != nil {
		return err
	}
	<-ss.Context().Done()
	return ss.Context().Err()
}

// serveRooms runs these servers and returns a client of all of them.
func serveRooms(rooms []*room, opts ...affinity.ServerOption) (*grpc.ClientConn, func()) {
	listeners := map[string]*bufconn.Listener{}
	var stops []func()
	var endpoints []resolver.Endpoint
	for _, r := range rooms {
		lis := bufconn.Listen(1 << 16)
		listeners[r.id] = lis
		srv := grpc.NewServer(affinity.ServerOptions(append(opts, affinity.WithServerID(r.id), affinity.WithFence(r.fence))...)...)
		testpb.RegisterTestServiceServer(srv, r)
		go srv.Serve(lis)
		stops = append(stops, srv.Stop)
		ep := resolver.Endpoint{Addresses: []resolver.Address{{Addr: r.id}}}
		endpoints = append(endpoints, endpointsmeta.Set(ep, endpointsmeta.Meta{ID: r.id}))
	}
	static := manual.NewBuilderWithScheme("static")
	static.InitialState(resolver.State{Endpoints: endpoints})
	conn, err := grpc.NewClient(gameTarget, append([]grpc.DialOption{
		grpc.WithResolvers(static),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return listeners[addr].DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()),
	}, affinity.DialOptions()...)...)
	if err != nil {
		log.Fatal(err)
	}
	return conn, func() {
		conn.Close()
		for _, stop := range stops {
			stop()
		}
	}
}

// Calls with a session's context come back to the server that answered the first one.
// Its text lets it survive a restart of the client.
func ExampleSession() {
	conn, stop := serveRooms([]*room{{id: "game-1"}, {id: "game-2"}, {id: "game-3"}})
	defer stop()
	client := testpb.NewTestServiceClient(conn)

	session := affinity.NewSession("") // one for each user
	first, err := client.UnaryCall(session.Context(context.Background()), &testpb.SimpleRequest{})
	if err != nil {
		log.Fatal(err)
	}
	text, err := session.MarshalText() // into a file, or a cookie
	if err != nil {
		log.Fatal(err)
	}

	again := affinity.NewSession("")
	if err := again.UnmarshalText(text); err != nil {
		log.Fatal(err)
	}
	for range 3 {
		r, err := client.UnaryCall(again.Context(context.Background()), &testpb.SimpleRequest{})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(r.GetHostname() == first.GetHostname(), again.ID(gameTarget) == r.GetHostname())
	}
	// Output:
	// true true
	// true true
	// true true
}

// A session that has left a server's state behind says so: load it again.
func ExampleSession_OnMove() {
	rooms := []*room{{id: "game-1"}, {id: "game-2"}}
	conn, stop := serveRooms(rooms)
	defer stop()
	client := testpb.NewTestServiceClient(conn)

	session := affinity.NewSession("")
	moved := make(chan affinity.Move, 1)
	session.OnMove(func(m affinity.Move) { moved <- m })
	for session.ID(gameTarget) != "game-1" { // for the sake of the example
		session.Forget(gameTarget)
		client.UnaryCall(session.Context(context.Background()), &testpb.SimpleRequest{})
	}

	rooms[0].movedTo = "game-2"
	if _, err := client.UnaryCall(session.Context(context.Background()), &testpb.SimpleRequest{}); err != nil {
		log.Fatal(err)
	}
	m := <-moved
	fmt.Println("from", m.From, "to", m.To, "because it", m.Reason)
	// Output: from game-1 to game-2 because it moved
}

// A handler that does not hold the state says who does. The client goes there, and its
// caller sees nothing of it.
func ExampleMoved() {
	conn, stop := serveRooms([]*room{{id: "game-1", movedTo: "game-2"}, {id: "game-2"}})
	defer stop()

	ctx := affinity.With(context.Background(), "game-1")
	r, err := testpb.NewTestServiceClient(conn).UnaryCall(ctx, &testpb.SimpleRequest{})
	fmt.Println(r.GetHostname(), err)

	_, err = testpb.NewTestServiceClient(conn).UnaryCall(affinity.Require(ctx, "game-1"), &testpb.SimpleRequest{})
	fmt.Println(affinity.MovedTo(err))
	// Output:
	// game-2 <nil>
	// game-2 true
}

// A server that etcd has lost refuses what belongs to sessions: they are served elsewhere
// by now. Callers see nothing of it.
func ExampleWithFence() {
	fence := registry.NewFence(0) // goes to registry.Serve, by registry.WithFence
	conn, stop := serveRooms([]*room{{id: "game-1", fence: fence}, {id: "game-2"}})
	defer stop()
	client := testpb.NewTestServiceClient(conn)

	// It has never been registered, so nobody should know it any more.
	ctx := affinity.With(context.Background(), "game-1")
	r, err := client.UnaryCall(ctx, &testpb.SimpleRequest{})
	fmt.Println(r.GetHostname(), err)

	_, err = client.UnaryCall(affinity.Require(ctx, "game-1"), &testpb.SimpleRequest{})
	_, elsewhere := affinity.MovedTo(err)
	fmt.Println(elsewhere, err)
	// Output:
	// game-2 <nil>
	// true rpc error: code = Aborted desc = affinity: server "game-1" is out of the registry, and must not serve calls with affinity
}

// A client whose requests name what they are about: callers need not know of affinity.
func ExampleWithKeyFunc() {
	opts := affinity.DialOptions(affinity.WithKeyFunc(func(_ context.Context, method string, req any) string {
		if r, ok := req.(interface{ GetPayload() *testpb.Payload }); ok && strings.HasPrefix(method, "/grpc.testing.TestService/") {
			return string(r.GetPayload().GetBody()) // the room
		}
		return "" // round robin
	}))

	lis := bufconn.Listen(1 << 16)
	srv := grpc.NewServer(affinity.ServerOptions()...)
	testpb.RegisterTestServiceServer(srv, rooms{})
	go srv.Serve(lis)
	defer srv.Stop()
	conn, err := grpc.NewClient("passthrough:///rooms", append(opts,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	req := &testpb.SimpleRequest{Payload: &testpb.Payload{Body: []byte("room-42")}}
	r, err := testpb.NewTestServiceClient(conn).UnaryCall(context.Background(), req)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(r.GetUsername())
	// Output: room-42
}

// Where did this call go, and why?
func ExampleObserve() {
	conn, stop := serveRooms([]*room{{id: "game-1"}, {id: "game-2"}})
	defer stop()
	client := testpb.NewTestServiceClient(conn)

	for _, ctx := range []context.Context{
		affinity.With(context.Background(), "game-2"),
		affinity.WithKey(context.Background(), "room-42"),
	} {
		var route affinity.Route
		if _, err := client.UnaryCall(affinity.Observe(ctx, &route), &testpb.SimpleRequest{}); err != nil {
			log.Fatal(err)
		}
		fmt.Println(route.Reason(), route.ID(), route.Attempts())
	}
	// Output:
	// id game-2 1
	// home game-1 1
}

// The streams of a server that leaves end in good order, and are opened again elsewhere.
func ExampleWithDrain() {
	draining, drain := context.WithCancel(context.Background()) // the context that ends registry.Serve
	conn, stop := serveRooms([]*room{{id: "game-1"}}, affinity.WithDrain(draining, 10*time.Millisecond))
	defer stop()

	ss, err := testpb.NewTestServiceClient(conn).FullDuplexCall(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	if _, err := ss.Recv(); err != nil {
		log.Fatal(err)
	}
	drain()
	for err == nil {
		_, err = ss.Recv()
	}
	if _, again := affinity.MovedTo(err); again {
		fmt.Println("open it again")
	} else if !errors.Is(err, io.EOF) {
		fmt.Println("failed:", err)
	}
	// Output: open it again
}

// A handler that holds nothing of the session any more says so: the next call of the
// session may go anywhere.
func ExampleRelease() {
	conn, stop := serveRooms([]*room{{id: "game-1"}})
	defer stop()
	client := testpb.NewTestServiceClient(conn)
	call := func(session *affinity.Session, what string) {
		_, err := client.UnaryCall(session.Context(context.Background()), &testpb.SimpleRequest{Payload: &testpb.Payload{Body: []byte(what)}})
		if err != nil {
			log.Fatal(err)
		}
	}

	session := affinity.NewSession("player-7")
	call(session, "move")
	fmt.Printf("%q\n", session.ID(gameTarget))
	call(session, "logout") // whose handler calls affinity.Release(ctx)
	fmt.Printf("%q\n", session.ID(gameTarget))
	// Output:
	// "game-1"
	// ""
}

// A client that stores its sessions, and goes on with them after a restart.
func ExampleSession_MarshalText() {
	conn, stop := serveRooms([]*room{{id: "game-1"}, {id: "game-2"}})
	defer stop()
	session := affinity.NewSession("player-7")
	r, err := testpb.NewTestServiceClient(conn).UnaryCall(session.Context(context.Background()), &testpb.SimpleRequest{})
	if err != nil {
		log.Fatal(err)
	}
	text, err := json.Marshal(map[string]*affinity.Session{"player-7": session})
	if err != nil {
		log.Fatal(err)
	}

	var restored map[string]*affinity.Session
	if err := json.Unmarshal(text, &restored); err != nil {
		log.Fatal(err)
	}
	fmt.Println(restored["player-7"].ID(gameTarget) == r.GetHostname())
	// Output: true
}

// A session that is to start anew: its user has begun another game.
func ExampleSession_Forget() {
	conn, stop := serveRooms([]*room{{id: "game-1"}})
	defer stop()
	session := affinity.NewSession("")
	if _, err := testpb.NewTestServiceClient(conn).UnaryCall(session.Context(context.Background()), &testpb.SimpleRequest{}); err != nil {
		log.Fatal(err)
	}
	session.Forget(gameTarget)
	fmt.Printf("%q\n", session.ID(gameTarget))
	// Output: ""
}
