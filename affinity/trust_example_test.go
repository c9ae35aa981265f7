package affinity_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/homing-grpc/homing/affinity"
)

// Only callers whose certificate is that of the gateway say where their calls go. The
// server's own credentials have to ask for certificates and check them.
func ExampleWithTrust() {
	inside := func(ctx context.Context) bool {
		p, ok := peer.FromContext(ctx)
		if !ok {
			return false
		}
		info, ok := p.AuthInfo.(credentials.TLSInfo)
		if !ok || len(info.State.VerifiedChains) == 0 {
			return false
		}
		return info.State.VerifiedChains[0][0].VerifyHostname("gateway.internal") == nil
	}

	conn, stop := serveRooms([]*room{{id: "game-1"}}, affinity.WithTrust(inside, affinity.Refuse()))
	defer stop()
	client := testpb.NewTestServiceClient(conn) // it has no certificate

	ctx := context.Background()
	_, err := client.UnaryCall(ctx, &testpb.SimpleRequest{})
	fmt.Println(status.Code(err))
	_, err = client.UnaryCall(affinity.With(ctx, "game-1"), &testpb.SimpleRequest{})
	fmt.Println(status.Convert(err).Message())
	// Output:
	// OK
	// affinity: incoming header affinity-id: the caller is not trusted to say where its calls go
}

// A server for anybody: what callers outside say of themselves does no harm, and they are
// not told of servers.
func ExampleStrip() {
	conn, stop := serveRooms([]*room{{id: "game-1"}}, affinity.WithTrust(nil, affinity.Strip()))
	defer stop()

	var header metadata.MD
	ctx := affinity.With(context.Background(), "game-1")
	_, err := testpb.NewTestServiceClient(conn).UnaryCall(ctx, &testpb.SimpleRequest{}, grpc.Header(&header))
	fmt.Println(err, header[affinity.IDHeader])
	// Output: <nil> []
}

// gateway serves users, by servers that they do not see.
type gateway struct {
	testpb.UnimplementedTestServiceServer
	rooms  testpb.TestServiceClient
	sealer *affinity.Sealer
}

// login returns who the caller is. Yours checks a token, or a certificate.
func login(ctx context.Context) string {
	if names := metadata.ValueFromIncomingContext(ctx, "user"); len(names) == 1 {
		return names[0]
	}
	return ""
}

func (g *gateway) UnaryCall(ctx context.Context, req *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	var route affinity.Route
	out := affinity.Observe(ctx, &route)
	if ids := metadata.ValueFromIncomingContext(ctx, affinity.IDHeader); len(ids) > 0 {
		out = affinity.With(out, ids[0]) // the interceptor has opened it
	}
	r, err := g.rooms.UnaryCall(out, req)
	if err != nil {
		return nil, err
	}
	id, err := g.sealer.SealID(route.ID(), login(ctx))
	if err != nil {
		return nil, err
	}
	return r, grpc.SetHeader(ctx, metadata.Pairs(affinity.IDHeader, id))
}

// A user of a gateway comes back to its server by an id that it can neither read nor
// change, and that is of no use to anybody else.
func ExampleSealed() {
	inside, stop := serveRooms([]*room{{id: "game-1"}, {id: "game-2"}, {id: "game-3"}})
	defer stop()
	// All gateways have these keys, from where secrets are kept.
	sealer, err := affinity.NewSealer(24*time.Hour, []byte("thirty-two bytes that are random"))
	if err != nil {
		log.Fatal(err)
	}
	lis := bufconn.Listen(1 << 16)
	srv := grpc.NewServer(affinity.ServerOptions(affinity.WithTrust(nil, affinity.Sealed(sealer, login)))...)
	testpb.RegisterTestServiceServer(srv, &gateway{rooms: testpb.NewTestServiceClient(inside), sealer: sealer})
	go srv.Serve(lis)
	defer srv.Stop()

	// Outside. Clients without this module send the header of the last answer back.
	conn, err := grpc.NewClient("passthrough:///gateway", append(affinity.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	client := testpb.NewTestServiceClient(conn)
	as := func(user string) context.Context {
		return metadata.AppendToOutgoingContext(context.Background(), "user", user)
	}

	session := affinity.NewSession("")
	servers := map[string]bool{}
	for range 5 {
		r, err := client.UnaryCall(session.Context(as("alice")), &testpb.SimpleRequest{})
		if err != nil {
			log.Fatal(err)
		}
		servers[r.GetHostname()] = true
	}
	fmt.Println("servers that alice was on:", len(servers))

	stolen := session.ID(conn.CanonicalTarget())
	_, err = client.UnaryCall(affinity.With(as("mallory"), stolen), &testpb.SimpleRequest{})
	fmt.Println("mallory, by alice's id:", status.Code(err) == codes.PermissionDenied)
	_, err = client.UnaryCall(affinity.With(as("mallory"), "game-1"), &testpb.SimpleRequest{})
	fmt.Println("mallory, by a guess:", status.Code(err) == codes.PermissionDenied)
	// Output:
	// servers that alice was on: 1
	// mallory, by alice's id: true
	// mallory, by a guess: true
}

// What is sealed for one user opens for nobody else: the id of a server, or the key of what
// a user may come back to.
func ExampleSealer() {
	sealer, err := affinity.NewSealer(24*time.Hour, []byte("thirty-two bytes that are random"))
	if err != nil {
		log.Fatal(err)
	}
	id, err := sealer.SealID("game-1", "alice")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sealer.OpenID(id, "alice"))
	_, err = sealer.OpenID(id, "mallory")
	fmt.Println("mallory:", err != nil, errors.Is(err, affinity.ErrExpired))

	key, err := sealer.SealKey("room-42", "alice")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sealer.OpenKey(key, "alice"))
	// Output:
	// game-1 <nil>
	// mallory: true false
	// room-42 <nil>
}

// A web server keeps its users' sessions in their own cookies.
func ExampleSealer_SealSession() {
	conn, stop := serveRooms([]*room{{id: "game-1"}, {id: "game-2"}, {id: "game-3"}})
	defer stop()
	client := testpb.NewTestServiceClient(conn)
	sealer, err := affinity.NewSealer(24*time.Hour, []byte("thirty-two bytes that are random"))
	if err != nil {
		log.Fatal(err)
	}

	// serve answers a request of a user who has logged in, with the cookie that it came
	// with, and returns the next one.
	serve := func(user string, cookie *http.Cookie) (server string, next *http.Cookie) {
		session := affinity.NewSession("")
		if cookie != nil {
			switch err := sealer.OpenSession(session, cookie.Value, user); {
			case errors.Is(err, affinity.ErrExpired):
				// It has been a while: the session begins anew.
			case err != nil:
				fmt.Println("not a cookie of", user)
			}
		}
		r, err := client.UnaryCall(session.Context(context.Background()), &testpb.SimpleRequest{})
		if err != nil {
			log.Fatal(err)
		}
		value, err := sealer.SealSession(session, user)
		if err != nil {
			log.Fatal(err)
		}
		return r.GetHostname(), &http.Cookie{Name: "session", Value: value, HttpOnly: true, Secure: true}
	}

	first, cookie := serve("alice", nil)
	second, cookie := serve("alice", cookie)
	fmt.Println("alice came back:", first == second)
	serve("mallory", cookie)
	// Output:
	// alice came back: true
	// not a cookie of mallory
}
