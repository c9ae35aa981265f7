package stickybalancer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// shareOut picks n times and returns how often each share came.
func shareOut(r *ring, c *counter, n uint64) map[*share]uint64 {
	got := make(map[*share]uint64)
	for range n {
		got[r.next(c)]++
	}
	return got
}

func ringOf(weights ...uint32) (*ring, []*share) {
	r := newRing()
	var shares []*share
	for _, w := range weights {
		s := &share{weight: w}
		shares = append(shares, s)
		r.add(s)
	}
	return r, shares
}

func counterAt(n uint32) *counter {
	c := &counter{}
	c.n.Store(n)
	return c
}

func TestEqualSharesAreTakenInTurn(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 5, 64, 1000} {
		for _, weight := range []uint32{1, 7, math.MaxUint32} {
			weights := slices.Repeat([]uint32{weight}, n)
			r, shares := ringOf(weights...)
			c := counterAt(rand.Uint32N(1 << 31))
			for range 3 { // each m*n picks in a row, wherever they begin
				const m = 5
				got := shareOut(r, c, uint64(m*n))
				for _, s := range shares {
					require.Equal(t, uint64(m), got[s])
				}
				r.next(c)
			}
		}
	}
}

func TestSharesAreTakenByWeight(t *testing.T) {
	for _, weights := range [][]uint32{
		{1, 2, 3},
		{7, 7, 7, 1},
		{1, 1000, 1000},
		{5, 3, 2, 1, 1, 1, 9},
		{2, 4, 8, 16, 32},
		{1, 1_000_000},
	} {
		t.Run(fmt.Sprint(weights), func(t *testing.T) {
			exactly(t, counterAt(rand.Uint32N(1<<30)), weights)
		})
	}
	rnd := rand.New(rand.NewPCG(11, 12))
	for range 100 {
		weights := make([]uint32, 1+rnd.IntN(20))
		for i := range weights {
			weights[i] = 1 + rnd.Uint32N(100)
		}
		exactly(t, counterAt(rnd.Uint32N(1<<30)), weights)
	}
}

// exactly requires that as many picks as the weights add up to split exactly
// by weight, with the endpoints cut into shares of at most the mean, as the
// policy cuts them; and that few picks pass over shares for it.
func exactly(t *testing.T, c *counter, weights []uint32) {
	t.Helper()
	sum := uint64(0)
	for _, w := range weights {
		sum += uint64(w)
	}
	limit := uint32((sum + uint64(len(weights)) - 1) / uint64(len(weights)))
	r, owner := newRing(), make(map[*share]int)
	for i, w := range weights {
		for part := range splitWeight(w, limit) {
			s := &share{weight: part}
			owner[s] = i
			r.add(s)
		}
	}
	for range 2 { // a second time from wherever the first has ended
		start := c.n.Load()
		got := make([]uint64, len(weights))
		for s, n := range shareOut(r, c, sum) {
			got[owner[s]] += n
		}
		for i, w := range weights {
			require.Equal(t, uint64(w), got[i], "weight %d of %v", w, weights)
		}
		passed := float64(c.n.Load()-start) / float64(sum)
		require.LessOrEqual(t, passed, 3.0, "shares looked at per pick, %v", weights)
		r.next(c)
	}
}

func TestAShareOfTheGreatestWeightComesInEveryRound(t *testing.T) {
	r, shares := ringOf(2, 2, 2, 2, 1)
	c := counterAt(0)
	last, widest := 0, 0
	for i := range 9000 {
		if r.next(c) == shares[0] {
			widest, last = max(widest, i-last), i
		}
	}
	require.LessOrEqual(t, widest, 5)
}

func TestTheRotationGoesOnWhereTheCounterWraps(t *testing.T) {
	r, shares := ringOf(1, 1, 1)
	c := counterAt(math.MaxUint32 - 150)
	got := shareOut(r, c, 300)
	for _, s := range shares {
		require.InDelta(t, 100, float64(got[s]), 1)
	}
}

func TestAnEmptyRingHasNoNext(t *testing.T) {
	r, shares := ringOf(3)
	require.False(t, r.empty())
	r.remove(shares[0])
	require.True(t, r.empty())
	require.Nil(t, r.next(counterAt(0)))
}

func TestARingHoldsWhatWasAddedAndNotRemoved(t *testing.T) {
	rnd := rand.New(rand.NewPCG(13, 14))
	for range 20 {
		r, in := newRing(), []*share{}
		bias := rnd.IntN(10)
		for range 300 {
			if rnd.IntN(10) < bias || len(in) == 0 {
				s := &share{weight: 1 + rnd.Uint32N(3)}
				r.add(s)
				in = append(in, s)
			} else {
				i := rnd.IntN(len(in))
				r.remove(in[i])
				in = slices.Delete(in, i, i+1)
			}
			a := r.array.Load()
			require.EqualValues(t, len(in), a.n.Load())
			require.Equal(t, len(in) == 0, r.empty())
			least, most := uint32(math.MaxUint32), uint32(0)
			for _, s := range in {
				require.Same(t, s, a.shares[s.pos].Load(), "pos")
				least, most = min(least, s.weight), max(most, s.weight)
			}
			for i := range a.shares[len(in):] {
				require.Nil(t, a.shares[len(in)+i].Load(), "a removed share stays reachable")
			}
			if least >= most {
				most = 0 // all the same
			}
			require.Equal(t, most, a.top.Load(), "top")
		}
	}
}

func TestSplitWeight(t *testing.T) {
	check := func(weight, limit uint32) {
		parts := slices.Collect(splitWeight(weight, limit))
		sum := uint64(0)
		for _, p := range parts {
			sum += uint64(p)
			require.NotZero(t, p, "%d by %d", weight, limit)
			require.LessOrEqual(t, p, limit, "%d by %d", weight, limit)
		}
		require.EqualValues(t, weight, sum, "%d by %d", weight, limit)
		require.LessOrEqual(t, slices.Max(parts)-slices.Min(parts), uint32(1), "%d by %d", weight, limit)
		require.Len(t, parts, int((uint64(weight)+uint64(limit)-1)/uint64(limit)), "no more than it takes")
	}
	for weight := range uint32(40) {
		for limit := range uint32(45) {
			check(weight+1, limit+1)
		}
	}
	check(1, math.MaxUint32)
	check(math.MaxUint32, math.MaxUint32)
	check(math.MaxUint32, math.MaxUint32-1)
	check(math.MaxUint32, math.MaxUint32/1000)
}

// TestPicksDuringChanges picks while shares come and go. Whatever a pick that
// runs at the same time sees, it is nil or a share that was in the ring at some
// moment of the pick.
func TestPicksDuringChanges(t *testing.T) {
	type tracked struct {
		share
		gone atomic.Int64 // the epoch by which it had been removed; 0 if it is in
	}
	var (
		r, c   = newRing(), counterAt(0)
		epoch  atomic.Int64
		byPart sync.Map // *share → *tracked
		stop   atomic.Bool
		wg     sync.WaitGroup
		picks  atomic.Int64
	)
	for range max(2, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for !stop.Load() {
				before := epoch.Load()
				s := r.next(c)
				if s == nil {
					continue
				}
				picks.Add(1)
				v, ok := byPart.Load(s)
				if !ok {
					t.Error("picked a share that was never in the ring")
					return
				}
				if gone := v.(*tracked).gone.Load(); gone != 0 && gone <= before {
					t.Errorf("a pick that began in epoch %d got a share removed by epoch %d", before, gone)
					return
				}
			}
		})
	}
	rnd := rand.New(rand.NewPCG(15, 16))
	var in []*tracked
	for n := 0; n < 20_000 || picks.Load() == 0; n++ {
		if n%100 == 0 {
			runtime.Gosched() // where there is one core
		}
		if len(in) == 0 || (len(in) < 40 && rnd.IntN(2) == 0) {
			s := &tracked{share: share{weight: 1 + rnd.Uint32N(4)}}
			byPart.Store(&s.share, s)
			r.add(&s.share)
			in = append(in, s)
			continue
		}
		i := rnd.IntN(len(in))
		r.remove(&in[i].share)
		in[i].gone.Store(epoch.Add(1))
		in = slices.Delete(in, i, i+1)
	}
	stop.Store(true)
	wg.Wait()
}
