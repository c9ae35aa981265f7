package bench

import (
	"context"
	"slices"
	"testing"

	"github.com/authzed/consistent"
	"github.com/authzed/consistent/hashring"
	"github.com/dgryski/go-rendezvous"
	"github.com/zeromicro/go-zero/core/hash"
	"google.golang.org/grpc/balancer"

	"github.com/homing-grpc/homing/internal/callctx"
)

// authzed is a policy of others with keys in the context, as it comes: 100 entries of
// its ring a server.
var authzed = subject{"authzed", consistent.BalancerName, `{}`}

func hashBytes(b []byte) uint64 { return callctx.Hash(string(b)) }

func init() { balancer.Register(consistent.NewBuilder(hashBytes)) }

func authzedKey(key string) context.Context {
	return context.WithValue(bg, consistent.CtxKey, []byte(key))
}

// bare is a way that is a data structure: made for a list of servers, it finds the home of a key.
type bare struct {
	servers []string
	build   func(servers []string) func(key string) string
	home    func(key string) string
}

func newBare(build func(servers []string) func(key string) string) func(testing.TB, int) way {
	return func(_ testing.TB, n int) way {
		w := &bare{servers: addresses(n), build: build}
		w.home = build(w.servers)
		return w
	}
}

func (w *bare) homes(keys []string) []string   { return each(keys, w.home) }
func (w *bare) lookup(keys []string) func(int) { return func(i int) { sink = w.home(keys[i]) } }
func (w *bare) leave(_ testing.TB, server int) {
	w.servers = without(w.servers, server)
	w.home = w.build(w.servers)
}

// rendezvousOf is a textbook's rendezvous. It is built again when a server leaves: its
// Remove is out of bounds.
func rendezvousOf(servers []string) func(string) string {
	return rendezvous.New(slices.Clone(servers), callctx.Hash).Lookup
}

func goZeroOf(servers []string) func(string) string {
	ring := hash.NewCustomConsistentHash(100, hashBytes)
	for _, s := range servers {
		ring.Add(s)
	}
	return func(key string) string {
		home, _ := ring.Get(key)
		return home.(string)
	}
}

type ringMember string

func (m ringMember) Key() string { return string(m) }

func authzedOf(servers []string) func(string) string {
	ring := hashring.MustNew(hashBytes, consistent.DefaultReplicationFactor)
	for _, s := range servers {
		if err := ring.Add(ringMember(s)); err != nil {
			panic(err)
		}
	}
	return func(key string) string {
		members, err := ring.FindN([]byte(key), 1)
		if err != nil {
			panic(err)
		}
		return members[0].Key()
	}
}
