package registry

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// List returns the servers of service, sorted by id. Records that make no sense
// are skipped with a warning in the log; those of "game/eu" are not of "game". Of two
// records of one address, one that names no id is passed over, even if the other drains or
// has no lease. It is safe for concurrent use, and ends with ctx, at the latest after a few
// seconds.
func List(ctx context.Context, cli *clientv3.Client, service string, opts ...ListOption) ([]Instance, error) {
	if err := checkService(cli, service); err != nil {
		return nil, err
	}
	f := newFeed(cli, service)
	for _, o := range opts {
		o.applyFeed(f)
	}
	if err := f.list(ctx); err != nil {
		return nil, fmt.Errorf("registry: list of %q: %w", service, err)
	}
	return owned(f.instances()), nil
}

// owned returns a list that is the caller's to change.
func owned(list []Instance) []Instance {
	list = slices.Clone(list)
	for i := range list {
		list[i].Meta.Labels = maps.Clone(list[i].Meta.Labels)
	}
	return list
}

// Watch yields the servers of service, sorted by id: the whole list at first, and
// again after each change; changes that come faster than the loop are yielded as
// one. Where etcd cannot be asked it yields an error, and goes on: the last list
// stands. It ends when ctx does, or the loop; a bad argument is its only word.
func Watch(ctx context.Context, cli *clientv3.Client, service string, opts ...ListOption) iter.Seq2[[]Instance, error] {
	return func(yield func([]Instance, error) bool) {
		if err := checkService(cli, service); err != nil {
			yield(nil, err)
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		news := newMailbox()
		done := make(chan struct{})
		f := newFeed(cli, service)
		for _, o := range opts {
			o.applyFeed(f)
		}
		go func() {
			defer close(done)
			f.run(ctx, news.list, news.fail)
		}()
		defer func() {
			cancel()
			<-done
		}()
		for {
			select {
			case <-ctx.Done():
				return
			case <-news.ready:
				list, has, err := news.take()
				if has && !yield(owned(list), nil) {
					return
				}
				if err != nil && !yield(nil, err) { // it came after the list
					return
				}
			}
		}
	}
}
