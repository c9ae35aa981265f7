package stickybalancer

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestATableOfIDsIsAMap(t *testing.T) {
	rnd := rand.New(rand.NewPCG(31, 32))
	for range 200 {
		var table idTable
		want := map[string]*server{}
		hashes := 1 + rnd.Uint64N(64) // few, so that searches go past each other
		for range 300 {
			id := fmt.Sprint(rnd.IntN(60))
			hash := rnd.Uint64N(hashes)
			switch s := want[id]; {
			case s == nil:
				s = &server{id: id, hash: hash}
				want[id] = s
				table.put(s)
			case rnd.IntN(3) > 0:
				delete(want, id)
				table.remove(s)
			}
			require.Equal(t, len(want), table.n)
			require.LessOrEqual(t, 2*table.n, len(table.entries))
			for id, s := range want {
				require.Same(t, s, table.get(s.hash, id))
			}
			require.Nil(t, table.get(hash, "none"))
		}
	}
}

func TestACopyOfATableThatWasGreatIsSmall(t *testing.T) {
	var table idTable
	var servers []*server
	for i := range 1000 {
		servers = append(servers, newServer(fmt.Sprint("s", i), int32(i)))
		table.put(servers[i])
	}
	for i, s := range servers[10:] {
		if i%100 == 0 {
			c := table.clone()
			require.LessOrEqual(t, len(c.entries), len(table.entries))
			require.Equal(t, table.n, c.n)
			for _, s := range servers[10+i:] {
				require.Same(t, s, c.get(s.hash, s.id))
			}
		}
		table.remove(s)
	}
	c := table.clone()
	require.Equal(t, 10, c.n)
	require.LessOrEqual(t, len(c.entries), 64)
	for _, s := range servers[:10] {
		require.Same(t, s, c.get(s.hash, s.id))
	}
	require.Len(t, table.entries, 2048, "pickers have that one")
}

func TestAPickersIDsDoNotChange(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		p := d.lb.(*policy)
		d.list(ep("a"), ep("b"))
		before := p.members
		d.list(ep("b"), ep("c"))
		require.NotNil(t, before.byID(p.server("a").hash, "a"))
		require.Nil(t, before.byID(p.server("c").hash, "c"))
		require.NotNil(t, p.members.byID(p.server("c").hash, "c"))
	})
}
