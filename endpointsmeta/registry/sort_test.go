package registry

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestInstancesAreSortedByIDAndThenByKey(t *testing.T) {
	s := []Instance{{ID: "b", Key: "1"}, {ID: "a", Key: "3"}, {ID: "a", Key: "2"}}
	sortInstances(s)
	require.Equal(t, []Instance{{ID: "a", Key: "2"}, {ID: "a", Key: "3"}, {ID: "b", Key: "1"}}, s)
}
