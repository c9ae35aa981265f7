package affinity_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/homing-grpc/homing/affinity"
)

func TestContextHoldsWhatWasPutIn(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(context.Context) context.Context
		want affinity.Affinity
	}{
		{"nothing", func(ctx context.Context) context.Context { return ctx }, affinity.Affinity{}},
		{"an id", func(ctx context.Context) context.Context { return affinity.With(ctx, "a") }, affinity.Affinity{ID: "a"}},
		{"a required id", func(ctx context.Context) context.Context { return affinity.Require(ctx, "a") }, affinity.Affinity{ID: "a", Required: true}},
		{"a key", func(ctx context.Context) context.Context { return affinity.WithKey(ctx, "k") }, affinity.Affinity{Key: "k"}},
		{"the last id", func(ctx context.Context) context.Context {
			return affinity.With(affinity.With(ctx, "a"), "b")
		}, affinity.Affinity{ID: "b"}},
		{"a preferred id after a required one", func(ctx context.Context) context.Context {
			return affinity.With(affinity.Require(ctx, "a"), "b")
		}, affinity.Affinity{ID: "b"}},
		{"the last key", func(ctx context.Context) context.Context {
			return affinity.WithKey(affinity.WithKey(ctx, "k"), "l")
		}, affinity.Affinity{Key: "l"}},
		{"an id after a key", func(ctx context.Context) context.Context {
			return affinity.With(affinity.WithKey(ctx, "k"), "a")
		}, affinity.Affinity{ID: "a", Key: "k"}},
		{"a key after a required id", func(ctx context.Context) context.Context {
			return affinity.WithKey(affinity.Require(ctx, "a"), "k")
		}, affinity.Affinity{ID: "a", Key: "k", Required: true}},
		{"an empty id and key", func(ctx context.Context) context.Context {
			return affinity.WithKey(affinity.Require(affinity.With(ctx, ""), ""), "")
		}, affinity.Affinity{}},
		{"the key that an empty id leaves", func(ctx context.Context) context.Context {
			return affinity.Require(affinity.WithKey(affinity.Require(ctx, "a"), "k"), "")
		}, affinity.Affinity{Key: "k"}},
		{"the id that an empty key leaves", func(ctx context.Context) context.Context {
			return affinity.WithKey(affinity.With(affinity.WithKey(ctx, "k"), "a"), "")
		}, affinity.Affinity{ID: "a"}},
		{"nothing after all was cleared", func(ctx context.Context) context.Context {
			return affinity.WithKey(affinity.With(affinity.WithKey(affinity.With(ctx, "a"), "k"), ""), "")
		}, affinity.Affinity{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, ok := affinity.FromContext(tc.make(t.Context()))
			require.Equal(t, tc.want, got)
			require.Equal(t, tc.want != affinity.Affinity{}, ok)
		})
	}
}

func TestClearingWhatIsNotThereKeepsTheContext(t *testing.T) {
	ctx := t.Context()
	require.Equal(t, ctx, affinity.With(ctx, ""))
	require.Equal(t, ctx, affinity.WithKey(ctx, ""))

	keyed := affinity.WithKey(ctx, "k")
	require.Equal(t, keyed, affinity.Require(keyed, ""))

	named := affinity.With(ctx, "a")
	require.Equal(t, named, affinity.WithKey(named, ""))
}
