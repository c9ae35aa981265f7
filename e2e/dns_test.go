package e2e

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver/dns"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/e2e/internal/port"
	"github.com/homing-grpc/homing/stickybalancer"
)

// nameServer answers every question for an IPv4 address with those that it has.
type nameServer struct {
	addr string
	mu   sync.Mutex
	ips  [][4]byte
}

func startNameServer(t *testing.T) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	n := &nameServer{addr: conn.LocalAddr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 512)
		for {
			size, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:size]) != nil || len(m.Questions) != 1 {
				continue
			}
			if answer, err := n.answer(m).Pack(); err == nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	})
	t.Cleanup(func() { conn.Close(); wg.Wait() })
	return n
}

func (n *nameServer) answer(m dnsmessage.Message) *dnsmessage.Message {
	q := m.Questions[0]
	a := &dnsmessage.Message{
		Header:    dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true, RecursionAvailable: true},
		Questions: m.Questions,
	}
	if q.Type != dnsmessage.TypeA {
		return a
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, ip := range n.ips {
		a.Answers = append(a.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
			Body:   &dnsmessage.AResource{A: ip},
		})
	}
	return a
}

func (n *nameServer) has(last ...byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ips = nil
	for _, b := range last {
		n.ips = append(n.ips, [4]byte{127, 0, 0, b})
	}
}

// startServerOn starts a server on an address of this machine; its id is that address.
func startServerOn(t *testing.T, last byte, port int) *server {
	t.Helper()
	addr := fmt.Sprintf("127.0.0.%d:%d", last, port)
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("this machine has but one loopback address: %v", err)
	}
	s := &server{id: addr, addr: addr, lis: lis}
	s.grpc = grpc.NewServer(affinity.ServerOptions(affinity.WithServerID(addr))...)
	testpb.RegisterTestServiceServer(s.grpc, s)
	go s.grpc.Serve(lis)
	t.Cleanup(s.grpc.Stop)
	return s
}

func freePort(t *testing.T) int {
	t.Helper()
	n, err := port.Free()
	require.NoError(t, err)
	return n
}

func dial(t *testing.T, target string, opts ...grpc.DialOption) *channel {
	t.Helper()
	conn, err := grpc.NewClient(target, append(append(affinity.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig())), opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return &channel{t: t, conn: conn, rpc: testpb.NewTestServiceClient(conn)}
}

func TestWithDNSIDsAreAddresses(t *testing.T) {
	n := startNameServer(t)
	n.has(1, 2, 3)
	var servers []*server
	port := freePort(t)
	for _, last := range []byte{1, 2, 3} {
		servers = append(servers, startServerOn(t, last, port))
	}
	target := fmt.Sprintf("dns://%s/game.test:%d", n.addr, port)
	c := dial(t, target)
	c.sees(servers[0].id, servers[1].id, servers[2].id)
	c.reaches(servers[1].id, affinity.Require(bg, servers[1].addr))

	other := dial(t, target)
	other.sees(servers[0].id, servers[1].id, servers[2].id)
	for i := range 20 {
		key := affinity.WithKey(bg, fmt.Sprint("room ", i))
		home, err := c.call(key)
		require.NoError(t, err)
		other.reaches(home, key)
	}
}

func TestWithDNSASessionMovesWhenItsServerIsGoneAndNoSooner(t *testing.T) {
	dns.SetMinResolutionInterval(50 * time.Millisecond)
	t.Cleanup(func() { dns.SetMinResolutionInterval(30 * time.Second) }) // after the channel's end
	n := startNameServer(t)
	n.has(1, 2)
	port := freePort(t)
	servers := map[string]*server{}
	for _, last := range []byte{1, 2, 3} {
		s := startServerOn(t, last, port)
		servers[s.id] = s
	}
	c := dial(t, fmt.Sprintf("dns://%s/game.test:%d", n.addr, port))
	third := fmt.Sprintf("127.0.0.3:%d", port)
	soon(t, func() bool { _, err := c.call(bg); return err == nil }, "the name is known")
	var sessions []*affinity.Session
	homes := map[*affinity.Session]string{}
	for i := range 10 {
		s := affinity.NewSession(fmt.Sprint("player ", i))
		id, err := c.call(s.Context(bg))
		require.NoError(t, err)
		sessions = append(sessions, s)
		homes[s] = id
	}
	gone := homes[sessions[0]]
	stays := byte(1)
	if gone == fmt.Sprintf("127.0.0.1:%d", port) {
		stays = 2
	}
	n.has(stays, 3)
	servers[gone].grpc.Stop() // the loss of a connection makes gRPC ask again
	soon(t, func() bool { id, err := c.call(sessions[0].Context(bg)); return err == nil && id != gone }, "the session moves")
	soon(t, func() bool { id, err := c.call(bg); return err == nil && id == third }, "the new server is known")
	for _, s := range sessions {
		if homes[s] != gone {
			c.reaches(homes[s], s.Context(bg))
		}
	}
}
