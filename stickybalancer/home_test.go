package stickybalancer

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/homing-grpc/homing/internal/callctx"
)

// Golden vectors. They are the wire contract: if one of them changes, two
// releases disagree on where a key lives, and that is a new major version.

func TestGoldenHash(t *testing.T) {
	for s, want := range map[string]uint64{
		"":        0xef46db3751d8e999, // as published for XXH64
		"a":       0xd24ec4f1a98c6e5b,
		"abc":     0x44bc2cf5ad770999,
		"game-1":  goldenHashGame1,
		"user:42": goldenHashUser42,
	} {
		require.Equal(t, want, callctx.Hash(s), "%q", s)
	}
}

func TestGoldenSlot(t *testing.T) {
	for hash, want := range map[uint64]uint32{
		0:                  0,
		1<<46 - 1:          0,
		1 << 46:            1,
		math.MaxUint64:     slotCount - 1,
		0xef46db3751d8e999: 0xef46db3751d8e999 >> 46,
	} {
		require.Equal(t, want, slotOf(hash), "%#x", hash)
	}
	require.Equal(t, 1<<18, slotCount)
}

func TestGoldenDraw(t *testing.T) {
	// With the hash 0, the draws of slots 0, 1, 2 … are SplitMix64 from seed 0.
	for slot, want := range []uint64{0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4, 0x06c45d188009454f, 0xf88bb8a8724c81ec} {
		require.Equal(t, want, draw(uint32(slot), 0), "slot %d", slot)
	}
	for _, tc := range goldenDraws {
		require.Equal(t, tc.want, draw(tc.slot, callctx.Hash(tc.id)), "%+v", tc)
	}
}

func TestGoldenCost(t *testing.T) {
	for zeros := range 64 {
		require.Equal(t, uint64(zeros+1)<<32, cost(1<<(63-zeros)), "powers of two are exact: 2^%d", 63-zeros)
	}
	require.Equal(t, cost(1), cost(0), "0 counts as 1")
	for _, tc := range goldenCosts {
		require.Equal(t, tc.want, cost(tc.draw), "%#x", tc.draw)
	}
}

func TestGoldenLogTable(t *testing.T) {
	table := logTable()
	for i, want := range goldenLogs {
		require.Equal(t, want, table[i], "entry %d", i)
	}
	sum := sha256.New()
	for _, v := range table {
		fmt.Fprintln(sum, v)
	}
	require.Equal(t, goldenLogTable, hex.EncodeToString(sum.Sum(nil)))
}

// member is one server of a membership; home is the reference for the code
// that finds homes, whatever it keeps.
type member struct {
	id     string
	weight uint32
}

type memberships []struct {
	hash uint64
	member
}

func of(members []member) (ms memberships) {
	for _, m := range members {
		ms = append(ms, struct {
			hash uint64
			member
		}{callctx.Hash(m.id), m})
	}
	return ms
}

func (ms memberships) home(slot uint32) int {
	best, at := rank{draw(slot, ms[0].hash), ms[0].weight, ms[0].id}, 0
	for i, m := range ms[1:] {
		if r := (rank{draw(slot, m.hash), m.weight, m.id}); r.before(best) {
			best, at = r, i+1
		}
	}
	return at
}

func named(n int, weight func(i int) uint32) []member {
	ms := make([]member, n)
	for i := range ms {
		ms[i] = member{fmt.Sprintf("game-%d", i), weight(i)}
	}
	return ms
}

func same(int) uint32      { return 1 }
func mixed(i int) uint32   { return uint32(i%5 + 1) }
func extreme(i int) uint32 { return []uint32{1, 7, 1000, 1 << 20, math.MaxUint32}[i%5] }

func TestGoldenHomes(t *testing.T) {
	ms := of(named(7, mixed))
	for i, want := range goldenHomes {
		key := fmt.Sprintf("user:%d", i)
		require.Equal(t, want, ms[ms.home(slotOf(callctx.Hash(key)))].id, key)
	}
	for _, tc := range []struct {
		members []member
		want    string
	}{
		{named(10, same), goldenSlotsSame},
		{named(32, mixed), goldenSlotsMixed},
		{named(16, extreme), goldenSlotsExtreme},
	} {
		ms := of(tc.members)
		homes := make([]byte, slotCount)
		for slot := range homes {
			homes[slot] = byte(ms.home(uint32(slot)))
		}
		sum := sha256.Sum256(homes)
		require.Equal(t, tc.want, hex.EncodeToString(sum[:]))
	}
}

func TestCostIsTheLogarithm(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 200_000 {
		d := rnd.Uint64()>>rnd.IntN(63) | 1
		want := 64 - math.Log2(float64(d))
		require.InDelta(t, want, float64(cost(d))/(1<<32), 1e-6, "%#x", d)
	}
}

func TestCostNeverGrowsWithDraw(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 200_000 {
		a := rnd.Uint64() >> rnd.IntN(64)
		b := a + rnd.Uint64()>>rnd.IntN(64)
		a, b = min(a, b), max(a, b)
		require.GreaterOrEqual(t, cost(a), cost(b), "%#x %#x", a, b)
	}
	// At the joints of the table, and where the number of zeros changes.
	for i := range uint64(1 << logSteps) {
		for _, shift := range []int{0, 1, 13, 40} {
			d := (1<<63 + i<<(63-logSteps)) >> shift
			for _, e := range []uint64{d - 2, d - 1, d, d + 1} {
				require.GreaterOrEqual(t, cost(e), cost(e+1), "%#x", e)
			}
		}
	}
	for shift := range 64 {
		d := uint64(1) << shift
		require.GreaterOrEqual(t, cost(d-1), cost(d))
		require.GreaterOrEqual(t, cost(d), cost(d|1))
	}
}

// TestBeforeIsAStrictTotalOrder draws ranks that tie as often as can be: in
// cost but not draw, in cost over weight but not in weight, in all but the id.
func TestBeforeIsAStrictTotalOrder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	weights := []uint32{1, 1, 2, 3, 4, 6, 8, 32, 64, math.MaxUint32 - 1, math.MaxUint32}
	random := func() rank {
		d := uint64(1) << (56 + rnd.IntN(8)) // whole costs: 1/2 ties with 2/4
		switch rnd.IntN(4) {
		case 0:
			d = math.MaxUint64 - rnd.Uint64N(4) // costs of 0, or nearly
		case 1:
			d += rnd.Uint64N(4) // one cost, several draws
		case 2:
			d = rnd.Uint64() >> rnd.IntN(64)
		}
		return rank{d, weights[rnd.IntN(len(weights))], string(rune('a' + rnd.IntN(3)))}
	}
	ties := 0
	for range 200_000 {
		a, b, c := random(), random(), random()
		if a == b {
			require.False(t, a.before(b))
			continue
		}
		require.NotEqual(t, a.before(b), b.before(a), "%v %v", a, b)
		if a.before(b) && b.before(c) {
			require.True(t, a.before(c), "%v %v %v", a, b, c)
		}
		ah, al := bits.Mul64(cost(a.draw), uint64(b.weight))
		bh, bl := bits.Mul64(cost(b.draw), uint64(a.weight))
		if a.weight != b.weight && ah == bh && al == bl {
			ties++
		}
	}
	require.Greater(t, ties, 300, "the ranks must tie often to prove something")

	// The last resorts, which no other implementation may read differently.
	require.True(t, rank{7, 1, "a"}.before(rank{7, 1, "b"}), "the smaller id")
	require.True(t, rank{1 << 63, 1, "b"}.before(rank{1 << 62, 2, "a"}), "1/1 is 2/2: the higher draw")
}

// TestNoNeedlessMove changes one server of a random membership. Only slots that
// it had before, or has after, may move.
func TestNoNeedlessMove(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 10))
	weight := func() uint32 {
		if rnd.IntN(2) == 0 {
			return 1
		}
		return 1 + uint32(rnd.Uint64()>>(33+rnd.IntN(31)))
	}
	for range 150 {
		before := make([]member, 2+rnd.IntN(30))
		for i := range before {
			before[i] = member{fmt.Sprint("s", rnd.Uint32()), weight()}
		}
		at := rnd.IntN(len(before))
		id := before[at].id
		reweighted := append([]member(nil), before...)
		reweighted[at].weight = weight()
		removed := append(append([]member(nil), before[:at]...), before[at+1:]...)
		all, other, less := of(before), of(reweighted), of(removed)
		grows := reweighted[at].weight >= before[at].weight
		for range 1000 {
			slot := rnd.Uint32N(slotCount)
			was, is, without := before[all.home(slot)].id, reweighted[other.home(slot)].id, removed[less.home(slot)].id
			if was != id {
				require.Equal(t, was, without, "a server that leaves gives away only its own")
			}
			switch {
			case was == is:
			case grows:
				require.Equal(t, id, is, "a server that grows only takes")
			default:
				require.Equal(t, id, was, "a server that shrinks only gives")
			}
		}
	}
}

// TestBalanceBySlots holds the numbers of the design: the busiest server over
// the mean. They are facts of the hash, so they are the same on every run.
func TestBalanceBySlots(t *testing.T) {
	for _, tc := range []struct {
		n     int
		limit float64
	}{{10, 1.03}, {100, 1.08}, {1000, 1.25}} {
		t.Run(fmt.Sprint(tc.n), func(t *testing.T) {
			t.Parallel()
			slots := slotsOf(of(named(tc.n, same)))
			most := 0
			for _, n := range slots {
				most = max(most, n)
			}
			require.Less(t, float64(most)*float64(tc.n)/slotCount, tc.limit)
		})
	}
}

func TestWeightsAreHonoured(t *testing.T) {
	members := named(25, mixed)
	total := uint32(0)
	for _, m := range members {
		total += m.weight
	}
	for i, n := range slotsOf(of(members)) {
		want := float64(slotCount) * float64(members[i].weight) / float64(total)
		// Five standard deviations: what chance alone would allow.
		require.InDelta(t, want, float64(n), 5*math.Sqrt(want), members[i].id)
	}
}

func slotsOf(ms memberships) []int {
	const parts = 4
	var got [parts][]int
	var wg sync.WaitGroup
	for part := range parts {
		wg.Go(func() {
			n := make([]int, len(ms))
			for slot := part; slot < slotCount; slot += parts {
				n[ms.home(uint32(slot))]++
			}
			got[part] = n
		})
	}
	wg.Wait()
	for _, n := range got[1:] {
		for i := range n {
			got[0][i] += n[i]
		}
	}
	return got[0]
}

const (
	goldenHashGame1    = 0x9bb32ddc7247dbe9
	goldenHashUser42   = 0xdc1fea7da8d2d1c2
	goldenLogTable     = "655b5375f662a109bc1d74336d37d4ddb0f3c5c5b0a8e519f5b0103deb59bca1"
	goldenSlotsSame    = "d7caef94d14a66b7410427f8e03abb2322bbebc14563e896302283d2b54cb4ce"
	goldenSlotsMixed   = "080809b83962ff988ff2f641dc87d8d1b0c288da65602d6fe7ee84028d52b6c3"
	goldenSlotsExtreme = "b6dbac5c74913f52d43a07f7983320f670cde0245a1db4d38fbdec3c2371e6c0"
)

var goldenDraws = []struct {
	slot uint32
	id   string
	want uint64
}{
	{0, "game-1", 0xcfa89a2e48f67369},
	{1, "game-1", 0x3242d92ea91255fa},
	{262143, "game-1", 0xab0037caf8ae6ceb},
	{0, "10.0.0.1:8080", 0xf03d76c9ae539e51},
	{77777, "game-2", 0x75f74dd69da1508c},
}

var goldenCosts = []struct{ draw, want uint64 }{
	{0x0, 0x4000000000},
	{0x1, 0x4000000000},
	{0x2, 0x3f00000000},
	{0x3, 0x3e6a3fe5c7},
	{0x5, 0x3dad961ed1},
	{0x7, 0x3d31513016},
	{0x3e8, 0x3608c25c73},
	{0xffffffff, 0x2000000002},
	{0x123456789abcdef0, 0x3d053f783},
	{0x7fffffffffffffff, 0x100000001},
	{0x8000000000000001, 0x100000000},
	{0xe220a8397b1dcdaf, 0x2dd36604},
	{0xfffffffffffffffe, 0x1},
	{0xffffffffffffffff, 0x1},
}

var goldenLogs = map[int]uint64{
	0:    0x0,
	1:    0x5c4994,
	2:    0xb87c1f,
	255:  0x521ffc19,
	256:  0x5269e12f,
	511:  0x95828704,
	512:  0x95c01a39,
	513:  0x95fda32d,
	768:  0xceaecfea,
	1000: 0xfba57787,
	1023: 0xffd1d28e,
	1024: 0x100000000,
}

var goldenHomes = []string{
	"game-4",
	"game-4",
	"game-2",
	"game-2",
	"game-4",
	"game-2",
	"game-0",
	"game-5",
	"game-3",
	"game-3",
	"game-2",
	"game-5",
	"game-3",
	"game-0",
	"game-3",
	"game-3",
}
