package stickybalancer

import (
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"weak"
)

// A table is the home of each slot in one membership, an immutable list of ids
// and weights. A slot is filled by the first call that needs it, in time that
// grows with the membership, and for all calls after it.
//
// Which server of the list is reachable, or drains, a table does not know. So
// it is the same for every channel with the same list, and they share it.
type table struct {
	members []tableMember // by id
	total   uint64        // of their weights
	filled  atomic.Uint32 // slots
	worst   atomic.Uint64 // no home in slots has a price above it

	mu       sync.Mutex // one channel derives it, the others wait
	derived  bool       // guarded by mu; no pick uses the table before
	measured uint64     // total when worst was last made exact

	// slots holds the index of each home plus 1, and 0 where it is not known.
	// Picks read and write it atomically.
	slots [slotCount]uint32
}

type tableMember struct {
	hash   uint64
	id     string
	weight uint32
}

func (m *tableMember) rank(slot uint32) rank { return rank{draw(slot, m.hash), m.weight, m.id} }

// owner returns the index of the home of slot, plus 1. Whoever else fills the
// slot at the same time fills it with the same.
func (t *table) owner(slot uint32) uint32 {
	if i := atomic.LoadUint32(&t.slots[slot]); i != 0 {
		return i
	}
	best, at := t.members[0].rank(slot), 0
	for i := 1; i < len(t.members); i++ {
		r := t.members[i].rank(slot)
		if r.weight == best.weight && r.draw < best.draw {
			continue // what before would say, for most
		}
		if r.before(best) {
			best, at = r, i
		}
	}
	for price := best.price(); ; {
		worst := t.worst.Load()
		if price <= worst || t.worst.CompareAndSwap(worst, price) {
			break
		}
	}
	if atomic.CompareAndSwapUint32(&t.slots[slot], 0, uint32(at)+1) {
		t.filled.Add(1)
	}
	return uint32(at) + 1
}

// price is cost/weight, which the home of a slot has the least of, with more
// fractional bits, rounded up.
func (a rank) price() uint64 {
	return (cost(a.draw)<<priceBits + uint64(a.weight) - 1) / uint64(a.weight)
}

const priceBits = 64 - 39 // a cost is at most 2^38

// bar returns the least draw with which a server of that weight has no higher
// price. What is below is no home where the homes' prices are not above.
func bar(price uint64, weight uint32) uint64 {
	hi, lo := bits.Mul64(price, uint64(weight))
	if hi>>priceBits != 0 {
		return 0
	}
	most := hi<<(64-priceBits) | lo>>priceBits
	// Costs never grow with the draw, so there is one place where they pass most.
	below, above := uint64(0), uint64(math.MaxUint64)
	if cost(below) <= most {
		return below
	}
	for above-below > 1 {
		if mid := below + (above-below)/2; cost(mid) <= most {
			above = mid
		} else {
			below = mid
		}
	}
	return above
}

// derive fills t with what another table says of it, and reports whether it got
// to the end. A slot keeps its home unless that has left or lost weight, or one
// of those that came or gained weight comes before it.
func (t *table) derive(from *table, stop <-chan struct{}) bool {
	if from == nil {
		return true
	}
	keeps, grown := t.compare(from)
	// What costs more than to begin anew is left out.
	if len(grown) > len(t.members)/4 || uint64(from.filled.Load())*uint64(len(t.members)) < slotCount {
		return true
	}
	for {
		worst := from.worst.Load()
		if !t.carry(from, keeps, t.contenders(grown, worst), stop) {
			return false
		}
		if from.worst.Load() == worst {
			return true
		}
		// A slot was filled meanwhile that the bars were too high for.
	}
}

// contender is a member that may come before the homes that there were.
type contender struct {
	hash  uint64
	bar   uint64 // it comes before none with a draw below
	index uint32 // plus 1
}

func (t *table) contenders(grown []uint32, worst uint64) []contender {
	cs := make([]contender, len(grown))
	for i, g := range grown {
		m := &t.members[g-1]
		cs[i] = contender{m.hash, bar(worst, m.weight), g}
	}
	return cs
}

// carry copies the homes that are known, but for what contenders take.
func (t *table) carry(from *table, keeps []uint32, cs []contender, stop <-chan struct{}) bool {
	filled := uint32(0)
	for slot := range uint32(slotCount) {
		if slot%(1<<12) == 0 {
			select {
			case <-stop:
				return false
			default:
			}
		}
		i := keeps[atomic.LoadUint32(&from.slots[slot])]
		if i == 0 {
			t.slots[slot] = 0
			continue
		}
		for j := range cs {
			if draw(slot, cs[j].hash) < cs[j].bar {
				continue
			}
			if t.members[cs[j].index-1].rank(slot).before(t.members[i-1].rank(slot)) {
				i = cs[j].index
			}
		}
		t.slots[slot] = i
		filled++
	}
	t.filled.Store(filled)
	t.worst.Store(from.worst.Load())
	t.measured = from.measured
	if t.total > 2*t.measured {
		t.measure() // prices come down as weights come up
	}
	return true
}

func (t *table) measure() {
	worst := uint64(0)
	t.measured = t.total
	for slot := range uint32(slotCount) {
		if i := t.slots[slot]; i != 0 {
			worst = max(worst, t.members[i-1].rank(slot).price())
		}
	}
	t.worst.Store(worst)
}

// compare returns what becomes of the homes in from: for each index plus 1 there
// the one here, 0 if it gives slots away; and the members that may take some.
func (t *table) compare(from *table) (keeps, grown []uint32) {
	keeps = make([]uint32, len(from.members)+1)
	old := 0
	for i, m := range t.members {
		for old < len(from.members) && from.members[old].id < m.id {
			old++
		}
		before := uint32(0)
		if old < len(from.members) && from.members[old].id == m.id {
			before = from.members[old].weight
			if m.weight >= before {
				keeps[old+1] = uint32(i) + 1
			}
		}
		if m.weight > before {
			grown = append(grown, uint32(i)+1)
		}
	}
	return keeps, grown
}

// tables are those in use, by fingerprint. Who uses a table holds it; here it
// is only known.
var tables = struct {
	mu      sync.Mutex
	byPrint map[uint64]weak.Pointer[table]
}{byPrint: make(map[uint64]weak.Pointer[table])}

// tableOf returns the table of a membership, which is by id: the one that another
// channel has, or one that begins with what from says. If it is stopped, the
// table is not to be used.
func tableOf(want []seat, from *table, stop <-chan struct{}) *table {
	t := knownTable(want)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.derived {
		t.derived = t.derive(from, stop)
	}
	return t
}

func fingerprint(want []seat) uint64 {
	print := uint64(len(want))
	for _, s := range want {
		print = draw(s.weight, print^s.server.hash)
	}
	return print
}

func knownTable(want []seat) *table {
	print := fingerprint(want)
	tables.mu.Lock()
	defer tables.mu.Unlock()
	// Two memberships with one fingerprint only do not share.
	if t := tables.byPrint[print].Value(); t != nil && t.is(want) {
		return t
	}
	for other, t := range tables.byPrint {
		if t.Value() == nil {
			delete(tables.byPrint, other)
		}
	}
	t := &table{members: make([]tableMember, len(want))}
	for i, s := range want {
		t.members[i] = tableMember{s.server.hash, s.server.id, s.weight}
		t.total += uint64(s.weight)
	}
	t.measured = t.total
	tables.byPrint[print] = weak.Make(t)
	return t
}

func (t *table) is(want []seat) bool {
	return slices.EqualFunc(t.members, want, func(m tableMember, s seat) bool {
		return m.id == s.server.id && m.weight == s.weight
	})
}
