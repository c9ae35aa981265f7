package stickybalancer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"weak"

	"github.com/stretchr/testify/require"
)

// seatsOf returns the seats of a membership, by id.
func seatsOf(members []member) []seat {
	var seats []seat
	for _, m := range members {
		seats = append(seats, seat{newServer(m.id, 0), m.weight})
	}
	slices.SortFunc(seats, func(a, b seat) int { return strings.Compare(a.server.id, b.server.id) })
	return seats
}

// full returns the table of a membership with all slots filled.
func full(members []member) *table { return partly(members, 1) }

// partly returns the table of a membership with each step-th slot filled.
func partly(members []member, step uint32) *table {
	t := tableOf(seatsOf(members), nil, nil)
	var wg sync.WaitGroup
	for part := range uint32(2) {
		wg.Go(func() {
			for slot := part * step; slot < slotCount; slot += 2 * step {
				t.owner(slot)
			}
		})
	}
	wg.Wait()
	return t
}

// forgetTables makes that nothing is shared with what there was.
func forgetTables() {
	tables.mu.Lock()
	defer tables.mu.Unlock()
	clear(tables.byPrint)
}

func TestATableHoldsTheHomes(t *testing.T) {
	for name, members := range map[string][]member{
		"one": named(1, same), "same": named(33, same), "mixed": named(20, mixed), "extreme": named(10, extreme),
	} {
		t.Run(name, func(t *testing.T) {
			table, ms := full(members), of(members)
			require.EqualValues(t, slotCount, table.filled.Load())
			for slot := uint32(0); slot < slotCount; slot += 7 {
				want := members[ms.home(slot)].id
				require.Equal(t, want, table.members[table.owner(slot)-1].id)
				require.Equal(t, want, table.members[table.owner(slot)-1].id, "and again")
			}
		})
	}
}

// TestADerivedTableHoldsTheHomes changes random memberships at random, and
// compares what is carried over with the reference.
func TestADerivedTableHoldsTheHomes(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	weight := func() uint32 {
		switch rnd.IntN(3) {
		case 0:
			return 1 + rnd.Uint32N(5)
		case 1:
			return 1 + rnd.Uint32()>>1
		}
		return 1
	}
	serial := 0
	random := func() member {
		serial++
		return member{fmt.Sprint(rnd.IntN(10), "-", serial), weight()}
	}
	carried, rounds := 0, 40
	if raceEnabled || testing.Short() {
		rounds = 8
	}
	for range rounds {
		members := make([]member, 14+rnd.IntN(30))
		for i := range members {
			members[i] = random()
		}
		old := partly(members, 13)
		for range 3 {
			members = slices.Clone(members)
			for range 1 + rnd.IntN(4) {
				i := rnd.IntN(len(members))
				switch rnd.IntN(4) {
				case 0:
					members = slices.Insert(members, i, random())
				case 1:
					if len(members) > 1 {
						members = slices.Delete(members, i, i+1)
					}
				default:
					members[i].weight = weight()
				}
			}
			now, ms := tableOf(seatsOf(members), old, nil), of(members)
			filled := uint32(0)
			for slot := range uint32(slotCount) {
				if i := now.slots[slot]; i != 0 {
					filled++
					if slot%3 == 0 {
						require.Equal(t, members[ms.home(slot)].id, now.members[i-1].id, "slot %d", slot)
					}
				}
			}
			require.Equal(t, filled, now.filled.Load())
			if filled > 0 {
				carried++
			}
			old = partly(members, 13)
			require.Same(t, old, now, "tables in use are shared")
		}
	}
	require.Greater(t, carried, 3*rounds/2, "most tables must carry something over to prove something")
}

func TestADerivedTableLosesOnlyWhatHasToBeFoundAnew(t *testing.T) {
	forgetTables()
	all := named(50, same)
	lighter := func(i int) uint32 { return uint32(2 - min(i, 1)) } // game-0 has 2
	for name, tc := range map[string]struct {
		from, to []member
		lost     string // whose slots are to be filled again
	}{
		"one leaves":       {all, all[1:], "game-0"},
		"one joins":        {all[1:], all, ""},
		"one gains weight": {all, named(50, lighter), ""},
		"one loses weight": {named(50, lighter), all, "game-0"},
		"nothing":          {all, all, ""},
	} {
		t.Run(name, func(t *testing.T) {
			from := full(tc.from)
			if len(tc.from) != len(tc.to) || tc.from[0] != tc.to[0] {
				forgetTables()
			}
			to := tableOf(seatsOf(tc.to), from, nil)
			for slot, i := range from.slots {
				if from.members[i-1].id == tc.lost {
					require.Zero(t, to.slots[slot])
				} else {
					require.NotZero(t, to.slots[slot])
				}
			}
		})
	}
}

// TestAGrowingTableHoldsTheHomes adds one server at a time, which lowers the
// prices that homes have.
func TestAGrowingTableHoldsTheHomes(t *testing.T) {
	forgetTables()
	table := full(named(4, mixed))
	for n := 5; n < 25; n++ {
		members := named(n, mixed)
		table = tableOf(seatsOf(members), table, nil)
		ms := of(members)
		worst := uint64(0)
		for slot := range uint32(slotCount) {
			i := table.slots[slot]
			if i == 0 {
				t.Fatal("lost", slot)
			}
			worst = max(worst, table.members[i-1].rank(slot).price())
			if slot%101 == 0 {
				require.Equal(t, members[ms.home(slot)].id, table.members[i-1].id)
			}
		}
		require.LessOrEqual(t, worst, table.worst.Load())
		require.Less(t, table.worst.Load(), 4*worst, "known well enough to be of use")
	}
}

// TestATableIsDerivedWhileItFills lets calls fill a table that another is derived
// from, with those homes that a new server beats the soonest: slots filled too late
// are left out, or right.
func TestATableIsDerivedWhileItFills(t *testing.T) {
	rounds := 4
	if raceEnabled {
		rounds = 1
	}
	for round := range rounds {
		forgetTables()
		members := named(20, func(i int) uint32 { return 1 + uint32(i+round)%3 })
		ms := of(members)
		old := tableOf(seatsOf(members), nil, nil)
		var late []uint32
		for slot := range uint32(slotCount) {
			home := ms[ms.home(slot)]
			if (rank{draw(slot, home.hash), home.weight, home.id}).price() < 1<<(32+priceBits)/20 {
				old.owner(slot)
			} else {
				late = append(late, slot)
			}
		}
		grown := append(slices.Clone(members), member{fmt.Sprint("new-", round), 2})
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for _, slot := range slices.Backward(late) {
				select {
				case <-stop:
					return
				default:
					old.owner(slot)
				}
			}
		})
		now := tableOf(seatsOf(grown), old, nil)
		close(stop)
		wg.Wait()
		require.NotZero(t, now.filled.Load())
		ms = of(grown)
		for slot, i := range now.slots {
			if i != 0 && (slot%50 == 0 || slices.Contains(late[len(late)-100:], uint32(slot))) {
				require.Equal(t, grown[ms.home(uint32(slot))].id, now.members[i-1].id, "slot %d", slot)
			}
		}
	}
}

func TestBar(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	weights := []uint32{1, 2, 3, 1000, math.MaxUint32}
	for range 20_000 {
		home := rank{rnd.Uint64() >> rnd.IntN(64), weights[rnd.IntN(5)], "home"}
		weight := weights[rnd.IntN(5)]
		bar := bar(home.price(), weight)
		if bar > 0 {
			require.False(t, rank{bar - 1, weight, "a"}.before(home), "%v %d", home, weight)
			require.False(t, rank{rnd.Uint64N(bar), weight, "a"}.before(home), "%v %d", home, weight)
			// and no higher than need be, but for rounding
			if bar < math.MaxUint64 {
				require.LessOrEqual(t, rank{bar, weight, "a"}.price(), home.price()+1)
			}
		}
	}
	require.Zero(t, bar(rank{0, 1, ""}.price(), 1), "anybody comes before the last")
}

// What is cheaper to find anew is not carried over.
func TestATableBeginsAnewAfterManyChanges(t *testing.T) {
	from := full(named(60, same))
	to := tableOf(seatsOf(named(90, same)), from, nil)
	require.Zero(t, to.filled.Load(), "a third is new")

	few := tableOf(seatsOf(named(61, mixed)), nil, nil)
	for slot := range uint32(100) {
		few.owner(slot)
	}
	to = tableOf(seatsOf(named(62, mixed)), few, nil)
	require.Zero(t, to.filled.Load(), "little is known")
}

func TestAStoppedTableIsFinishedByTheNext(t *testing.T) {
	from := full(named(40, same))
	want := seatsOf(named(41, same))
	stop := make(chan struct{})
	close(stop)
	cut := tableOf(want, from, stop)
	require.False(t, cut.derived)
	again := tableOf(want, from, nil)
	require.Same(t, cut, again)
	require.True(t, again.derived)
	require.EqualValues(t, slotCount, again.filled.Load())
}

func TestEqualMembershipsShareATable(t *testing.T) {
	members := named(9, mixed)
	a := tableOf(seatsOf(members), nil, nil)
	require.Same(t, a, tableOf(seatsOf(members), nil, nil))
	heavier := slices.Clone(members)
	heavier[3].weight++
	require.NotSame(t, a, tableOf(seatsOf(heavier), nil, nil))
	require.NotSame(t, a, tableOf(seatsOf(members[1:]), nil, nil))
	renamed := slices.Clone(members)
	renamed[3].id = "other"
	require.NotSame(t, a, tableOf(seatsOf(renamed), nil, nil))
	runtime.KeepAlive(a)
}

// Two memberships with one fingerprint are told apart.
func TestAFingerprintIsNotTrusted(t *testing.T) {
	twin := newServer("twin", 0)
	a := tableOf([]seat{{newServer("a", 0), 1}}, nil, nil)
	twin.hash = a.members[0].hash
	b := tableOf([]seat{{twin, 1}}, nil, nil)
	require.NotSame(t, a, b)
	require.Equal(t, "twin", b.members[0].id)
	runtime.KeepAlive(a)
}

func TestATableNobodyUsesIsFreed(t *testing.T) {
	known := weak.Make(tableOf(seatsOf(named(11, mixed)), nil, nil))
	for range 10 {
		if known.Value() == nil {
			break
		}
		runtime.GC()
	}
	require.Nil(t, known.Value())
	live := tableOf(seatsOf(named(12, mixed)), nil, nil)
	tables.mu.Lock()
	for _, table := range tables.byPrint {
		require.NotEqual(t, known, table, "it is still known")
	}
	tables.mu.Unlock()
	runtime.KeepAlive(live)
}

// TestBalanceOfTables holds the numbers of the design for the tables themselves:
// the busiest server over the mean, and with weights, over what its weight gives.
func TestBalanceOfTables(t *testing.T) {
	for _, tc := range []struct {
		n     int
		limit float64
	}{{100, 1.08}, {1000, 1.25}, {10_000, 2}} {
		if (tc.n > 1000 && testing.Short()) || (tc.n > 100 && raceEnabled) {
			continue // seconds to minutes
		}
		for name, weight := range map[string]func(int) uint32{"same": same, "mixed": mixed} {
			if (tc.n > 1000 || raceEnabled) && name != "same" {
				continue // it holds, and takes half a minute
			}
			t.Run(fmt.Sprintf("%d/%s", tc.n, name), func(t *testing.T) {
				table := full(named(tc.n, weight))
				slots := make([]int, tc.n)
				total := 0.
				for slot := range uint32(slotCount) {
					slots[table.owner(slot)-1]++
				}
				for _, m := range table.members {
					total += float64(m.weight)
				}
				for i, m := range table.members {
					mean := slotCount * float64(m.weight) / total
					load := float64(slots[i]) / mean
					// A server lighter than the mean has fewer slots, and chance more of a say.
					limit := 1 + (tc.limit-1)*math.Sqrt(max(1, total/float64(tc.n)/float64(m.weight)))
					require.LessOrEqual(t, load, limit, "%+v", m)
				}
			})
		}
	}
}

// BenchmarkDerive is the work for one change of a full table.
func BenchmarkDerive(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		for name, weight := range map[string]func(int) uint32{"same": same, "mixed": mixed} {
			if n > 1000 && name != "same" {
				continue // half a minute to fill
			}
			from := full(named(n, weight))
			for change, to := range map[string]func() []member{
				"added":   func() []member { return named(n+1, weight) },
				"removed": func() []member { return named(n-1, weight) },
				"heavier": func() []member { ms := named(n, weight); ms[n/2].weight++; return ms },
			} {
				b.Run(fmt.Sprintf("n=%d/weights=%s/change=%s", n, name, change), func(b *testing.B) {
					want := seatsOf(to())
					b.ReportAllocs()
					for b.Loop() {
						forgetTables()
						tableOf(want, from, nil)
					}
				})
			}
		}
	}
}
