package faults

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

var bg = context.Background()

// during plays a fault of etcd while a server joins, mends it, and waits until every
// client calls the one that joined.
func (w *World) during(d time.Duration, broken, mend func() error) error {
	if err := broken(); err != nil {
		return err
	}
	if err := w.newcomer(); err != nil {
		return err
	}
	time.Sleep(d)
	if err := mend(); err != nil {
		return err
	}
	w.mended()
	return w.truth("a", "b", "c", "n")
}

// lasting is during, and then requires that no server goes from etcd again while leases
// that nobody renews would run out.
func (w *World) lasting(d time.Duration, broken, mend func() error) error {
	if err := w.during(d, broken, mend); err != nil {
		return err
	}
	if err := w.listed("a", "b", "c", "n"); err != nil {
		return err
	}
	for end := time.Now().Add(3 * ttl / 2); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		list, err := registry.List(bg, w.direct, service)
		if err != nil {
			return err
		}
		if len(list) != 4 {
			return fmt.Errorf("a server has gone from etcd again: %v", list)
		}
	}
	return nil
}

// proxies does f to all that stands between etcd and anybody.
func (w *World) proxies(f func(*proxy)) func() error {
	return func() error {
		w.etcd.each(func(m *member) { f(m.front); f(m.back) })
		return nil
	}
}

func (w *World) acceptAll() error {
	var errs []error
	w.etcd.each(func(m *member) { errs = append(errs, m.front.accept(), m.back.accept()) })
	return errors.Join(errs...)
}

func (w *World) killEtcd() error {
	w.etcd.each((*member).kill)
	return nil
}

func (w *World) startEtcd() error { return w.etcd.start() }

func etcdRow(name string, short bool, fault func(w *World) error) Row {
	return Row{Group: "etcd", Name: name, Short: short, Fault: fault}
}

func etcdRows() []Row {
	rows := []Row{
		etcdRow("absent when a client starts", true, func(w *World) error {
			if err := w.killEtcd(); err != nil {
				return err
			}
			c, err := w.newChannel()
			if err != nil {
				return err
			}
			w.load.channels = append(w.load.channels, c)
			if err := fails(w, c); err != nil {
				return err
			}
			return w.during(2*ttl, func() error { return nil }, w.startEtcd) // longer than one request
		}),
		etcdRow("refused for 2 TTLs", true, func(w *World) error {
			return w.during(2*ttl, w.proxies((*proxy).refuse), w.acceptAll)
		}),
		etcdRow("black-holed for 2 TTLs", false, func(w *World) error {
			return w.during(2*ttl, w.proxies((*proxy).freeze), w.proxies((*proxy).thaw))
		}),
		etcdRow("slow: 200 ms each way", false, func(w *World) error {
			return w.during(2*ttl, w.proxies(func(p *proxy) { p.slow(200 * time.Millisecond) }), func() error {
				// The newcomer does not wait for better times.
				_, err := w.servers["n"].process.line("state registered", ttl)
				return errors.Join(err, w.proxies(func(p *proxy) { p.slow(0) })())
			})
		}),
		etcdRow("killed and restarted", true, func(w *World) error {
			return w.lasting(0, w.killEtcd, w.startEtcd)
		}),
		etcdRow("down for 3 TTLs", false, func(w *World) error {
			return w.lasting(3*ttl, w.killEtcd, w.startEtcd)
		}),
		etcdRow("stalled for half a TTL", false, func(w *World) error {
			return w.stalled(ttl / 2)
		}),
		etcdRow("stalled for 2 TTLs", true, func(w *World) error {
			return w.stalled(2 * ttl)
		}),
		etcdRow("data wiped", true, func(w *World) error {
			return w.during(0, func() error {
				err := w.killEtcd()
				w.etcd.each(func(m *member) { err = errors.Join(err, m.wipe()) })
				return err
			}, w.startEtcd)
		}),
		etcdRow("data wiped, and as much written since", false, func(w *World) error {
			// Clients come back when the revision that they know is long past again, and
			// the newcomer was put before it: nothing but the records tells them.
			for range 10 {
				if _, err := w.direct.Put(bg, service+"/x", `{"Op":0,"Addr":"127.0.0.1:1"}`); err != nil {
					return err
				}
				if _, err := w.direct.Delete(bg, service+"/x"); err != nil {
					return err
				}
			}
			time.Sleep(100 * time.Millisecond) // until they have seen it
			return w.during(0, func() error {
				err := w.killEtcd()
				w.etcd.each(func(m *member) { m.front.refuse(); err = errors.Join(err, m.wipe()) })
				return err
			}, func() error {
				if err := w.startEtcd(); err != nil {
					return err
				}
				if err := w.listed("a", "b", "c", "n"); err != nil {
					return err
				}
				for range 200 {
					if _, err := w.direct.Put(bg, "unrelated", "x"); err != nil {
						return err
					}
				}
				return w.etcd.members[0].front.accept()
			})
		}),
		etcdRow("compaction while watches are idle, then a reset", true, func(w *World) error {
			var rev int64
			for range 50 {
				r, err := w.direct.Put(bg, "unrelated", "x")
				if err != nil {
					return err
				}
				rev = r.Header.Revision
			}
			if _, err := w.direct.Compact(bg, rev, clientv3.WithCompactPhysical()); err != nil {
				return err
			}
			return w.during(0, w.proxies(func(p *proxy) { p.cut(true) }), func() error { return nil })
		}),
		etcdRow("auth revoked and given back", false, func(w *World) error {
			if err := w.enableAuth(); err != nil {
				return err
			}
			time.Sleep(2 * ttl)
			if err := w.disableAuth(); err != nil {
				return err
			}
			if err := w.listed("a", "b", "c"); err != nil {
				return err
			}
			if err := w.newcomer(); err != nil { // one that starts without a right to is told so
				return err
			}
			if _, err := w.servers["n"].process.line("state registered", 5*time.Second); err != nil {
				return err
			}
			w.mended()
			return w.truth("a", "b", "c", "n")
		}),
		etcdRow("wrong TLS certificate", true, func(w *World) error { return w.wrongTLS() }),
		etcdRow("flapping", false, func(w *World) error {
			return w.lasting(0, func() error {
				for range 20 {
					_ = w.proxies((*proxy).refuse)()
					time.Sleep(150 * time.Millisecond)
					if err := w.acceptAll(); err != nil {
						return err
					}
					time.Sleep(150 * time.Millisecond)
				}
				return nil
			}, func() error { return nil })
		}),
	}
	three := func(name string, within time.Duration, fault func(w *World) error) {
		rows = append(rows, Row{Group: "etcd", Name: name, Members: 3, Fault: fault, Within: within})
	}
	for i := range 3 {
		three(fmt.Sprintf("member %d of 3 killed", i+1), 0, func(w *World) error {
			return w.lasting(ttl, func() error { w.etcd.members[i].kill(); return nil }, func() error { return nil })
		})
	}
	// Nothing tells a client that a member is frozen: its connection stays, and the
	// clients of this row send no keepalives. They have to look for themselves.
	three("the member that all watch frozen", 15*time.Second, func(w *World) error {
		one, others := w.etcd.members[0], w.etcd.members[1:]
		return w.during(0, func() error {
			for _, m := range others {
				m.front.refuse()
			}
			time.Sleep(ttl) // all watch by the one that is left
			for _, m := range others {
				if err := m.front.accept(); err != nil {
					return err
				}
			}
			time.Sleep(ttl) // and could go to the others
			one.front.freeze()
			return nil
		}, func() error { return nil })
	})
	rows[len(rows)-1].Silent = true
	three("leader killed", 0, func(w *World) error {
		return w.lasting(ttl, func() error {
			m, err := w.etcd.leader()
			if err == nil {
				m.kill()
			}
			return err
		}, func() error { return nil })
	})
	three("quorum lost for 2 TTLs", 0, func(w *World) error {
		return w.lasting(2*ttl, func() error {
			w.etcd.members[0].kill()
			w.etcd.members[1].kill()
			return nil
		}, w.startEtcd)
	})
	return rows
}

func (w *World) stalled(d time.Duration) error {
	return w.lasting(d, func() error {
		w.etcd.each((*member).stop)
		return nil
	}, func() error {
		w.etcd.each((*member).cont)
		return w.etcd.ready()
	})
}

// fails requires that a call of c with a deadline of 300 ms ends by then.
func fails(w *World, c *channel) error {
	ctx, cancel := context.WithTimeout(bg, 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := w.load.call(ctx, c, nil)
	if took := time.Since(start); err == nil || took > 500*time.Millisecond {
		return fmt.Errorf("a call without etcd ended after %v with %v", took, err)
	}
	return nil
}

func (w *World) enableAuth() error {
	if _, err := w.direct.UserAdd(bg, "root", "secret"); err != nil {
		return err
	}
	if _, err := w.direct.UserGrantRole(bg, "root", "root"); err != nil {
		return err
	}
	_, err := w.direct.AuthEnable(bg)
	return err
}

func (w *World) disableAuth() error {
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: w.direct.Endpoints(), Username: "root", Password: "secret", Logger: zap.NewNop(),
	})
	if err != nil {
		return err
	}
	defer cli.Close()
	_, err = cli.AuthDisable(bg)
	return err
}

// wrongTLS is a client that does not trust etcd. It harms nobody else, and is told.
func (w *World) wrongTLS() error {
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: []string{w.etcd.members[0].front.addr},
		TLS:       &tls.Config{MinVersion: tls.VersionTLS12},
		Logger:    zap.NewNop(),
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(bg, 5*time.Second)
	defer cancel()
	for _, err = range registry.Watch(ctx, cli, service) {
		break
	}
	start := time.Now()
	_ = cli.Close()
	if took := time.Since(start); took > time.Second {
		return fmt.Errorf("the client took %v to close", took)
	}
	if err == nil {
		return errors.New("a client that does not trust etcd was not told")
	}
	w.mended()
	return w.truth("a", "b", "c")
}
