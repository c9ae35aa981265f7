package stickybalancer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/resolver"
)

// listing is a policy's memory of lists, without what becomes of them.
type listing struct {
	policy
	endpoints map[string]resolver.Endpoint // by id
}

func newListing() *listing {
	return &listing{endpoints: map[string]resolver.Endpoint{}}
}

// take returns how many endpoints a list was found to have that are new or differ.
func (l *listing) take(eps []resolver.Endpoint) int {
	n, any := l.newsLocked(eps, false)
	if !any {
		return 0
	}
	l.last = eps
	for _, w := range n.want {
		s := l.server(w.meta.ID)
		if s == nil {
			s = l.newServerLocked(w.meta.ID)
		}
		s.listed = true
		l.endpoints[s.id] = w.endpoint
	}
	for _, s := range n.leaving {
		s.listed = false
		delete(l.endpoints, s.id)
	}
	return len(n.want)
}

func TestTheDifferenceOfTwoListsIsAllThatThereIs(t *testing.T) {
	rnd := rand.New(rand.NewPCG(23, 24))
	random := func() resolver.Endpoint {
		return at(fmt.Sprint("id", rnd.IntN(30)), fmt.Sprint("addr", rnd.IntN(30)), incarnation(rnd.Int64N(2)))
	}
	for range 500 {
		l := newListing()
		var eps []resolver.Endpoint
		for i := range 16 { // each for itself, mostly
			eps = append(eps, at(fmt.Sprint("id", i), fmt.Sprint("addr", i)))
		}
		for range 20 {
			l.take(eps)
			want := map[string]resolver.Endpoint{}
			for _, u := range (&policy{}).unique(eps) {
				want[u.meta.ID] = u.endpoint
			}
			require.Equal(t, want, l.endpoints)
			eps = slices.Clone(eps)
			for range rnd.IntN(3) {
				i := rnd.IntN(len(eps) + 1)
				switch {
				case rnd.IntN(3) == 0 || i == len(eps):
					eps = slices.Insert(eps, i, random())
				case rnd.IntN(2) == 0:
					eps = slices.Delete(eps, i, i+1)
				default:
					eps[i] = random()
				}
			}
		}
	}
}

func TestOneEndpointThatDiffersIsAllThatIsLookedInto(t *testing.T) {
	l := newListing()
	var eps []resolver.Endpoint
	for i := range 100 {
		eps = append(eps, at(fmt.Sprint("id", i), fmt.Sprint("addr", i)))
	}
	require.Equal(t, 100, l.take(eps))
	eps = slices.Clone(eps)
	eps[50] = at("id50", "another")
	require.Equal(t, 1, l.take(eps))
	require.Equal(t, 0, l.take(slices.Clone(eps)))
	require.Equal(t, 0, l.take(slices.Delete(slices.Clone(eps), 3, 4)))
	require.Equal(t, 1, l.take(eps))
}
