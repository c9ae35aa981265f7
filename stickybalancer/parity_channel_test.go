package stickybalancer_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
)

// What the channel and its configuration do.

func TestParityConnectWithoutACallConnectsEveryServer(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c") // the rig has called Connect and nothing else
		r.state(connectivity.Ready)
		for _, name := range []string{"a", "b", "c"} {
			require.Equal(t, 1, r.connected(name))
		}
	})
}

func TestParityAnIdleChannelWakesForACall(t *testing.T) {
	parity{dial: []grpc.DialOption{grpc.WithIdleTimeout(10 * time.Second)}}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c")
		for range 3 {
			r.share("a", "b", "c")
			r.pass(25 * time.Second)
			r.state(connectivity.Idle)
			for _, name := range []string{"a", "b", "c"} {
				require.Zero(t, r.connected(name))
			}
			_, err := r.call()
			require.NoError(t, err)
			synctest.Wait()
		}
		require.Equal(t, 4, r.dialed("a"))
	})
}

func TestParityAnIdleChannelWakesForConnect(t *testing.T) {
	parity{dial: []grpc.DialOption{grpc.WithIdleTimeout(10 * time.Second)}}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.pass(25 * time.Second)
		r.state(connectivity.Idle)
		r.conn.Connect()
		synctest.Wait()
		r.state(connectivity.Ready)
		r.share("a", "b")
	})
}

func TestParityAChannelGoesIdleWhileItsServersAreDown(t *testing.T) {
	parity{dial: []grpc.DialOption{grpc.WithIdleTimeout(10 * time.Second)}}.run(t, func(t *testing.T, r *rig) {
		r.list("a", "b")
		r.refuses()
		r.pass(25 * time.Second)
		r.state(connectivity.Idle)
		r.start("a", "b")
		_, err := r.call()
		require.NoError(t, err, "a channel that wakes has forgotten its failures")
	})
}

func TestParityCloseEndsQueuedCalls(t *testing.T) {
	for _, c := range []struct {
		name  string
		queue func(r *rig)
		fast  bool
	}{
		{"before the first list", func(*rig) {}, true},
		{"while connecting", func(r *rig) { r.hang("slow"); r.list("slow") }, true},
		{"while all are down", func(r *rig) { r.list("dead") }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			parity{}.run(t, func(t *testing.T, r *rig) {
				c.queue(r)
				calls := []<-chan outcome{r.begin(waitForReady)}
				if c.fast {
					calls = append(calls, r.begin())
				}
				r.queued(calls...)
				require.NoError(t, r.conn.Close())
				for _, call := range calls {
					o := <-call
					require.Equal(t, codes.Canceled, status.Code(o.err), "%v", o.err)
					require.Zero(t, o.took)
				}
			})
		})
	}
}

func TestParityCloseEndsCallsUnderWay(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		block := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		r.answers("a", block)
		r.answers("b", block)
		calls := []<-chan outcome{r.begin(), r.begin(waitForReady)}
		r.queued(calls...)
		require.NoError(t, r.conn.Close())
		for _, call := range calls {
			require.Equal(t, codes.Canceled, status.Code((<-call).err))
		}
	})
}

func TestParityAQueuedCallEndsWithItsDeadline(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.list("dead")
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		start := time.Now()
		_, err := r.client.UnaryCall(ctx, &testpb.SimpleRequest{}, waitForReady)
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		require.ErrorContains(t, err, "connection refused by dead")
		require.Equal(t, 3*time.Second, time.Since(start))
	})
}

func TestParityTheStateIsTold(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		await := func(want connectivity.State) {
			t.Helper()
			for s := r.conn.GetState(); s != want; s = r.conn.GetState() {
				require.True(t, r.conn.WaitForStateChange(ctx, s), "%v never came", want)
			}
		}
		r.up("a", "b")
		await(connectivity.Ready)
		r.stop("a")
		r.state(connectivity.Ready)
		r.stop("b")
		await(connectivity.TransientFailure)
		r.start("a")
		await(connectivity.Ready)
		require.NoError(t, r.conn.Close())
		await(connectivity.Shutdown)
	})
}

const retries = `,"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":4,"initialBackoff":"0.1s",` +
	`"maxBackoff":"1s","backoffMultiplier":2,"retryableStatusCodes":["UNAVAILABLE"]}}]`

func TestParityARetryGoesToTheNextServer(t *testing.T) {
	parity{config: retries}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c")
		fails := func(context.Context) error { return status.Error(codes.Unavailable, "busy") }
		r.answers("a", fails)
		r.answers("b", fails)
		for range 10 {
			server, err := r.call()
			require.NoError(t, err)
			require.Equal(t, "c", server)
		}
		r.answers("c", fails)
		_, err := r.call()
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.ErrorContains(t, err, "busy")
	})
}

func TestParityACallWhoseServerDiesIsRetriedElsewhere(t *testing.T) {
	parity{config: retries}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.answers("a", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		var calls []<-chan outcome
		for range 4 {
			calls = append(calls, r.begin())
		}
		r.stop("a")
		for _, call := range calls {
			o := <-call
			require.NoError(t, o.err)
			require.Equal(t, "b", o.server)
		}
	})
}

// reconfigure makes the resolver report a service config with this policy.
func (r *rig) reconfigure(policy string, servers ...string) {
	sc := r.resolver.CC().ParseServiceConfig(fmt.Sprintf(`{"loadBalancingConfig":[%s]}`, policy))
	require.NoError(r.t, sc.Err)
	r.resolver.UpdateState(resolver.State{Endpoints: plain(servers...), ServiceConfig: sc})
	synctest.Wait()
}

func TestParityTheChannelCanSwitchPoliciesUnderLoad(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c")
		stop := r.load()
		for range 5 {
			for _, policy := range []string{custom, rival, `{"pick_first":{}}`, custom, `{"custom_round_robin":{}}`} {
				r.pass(33 * time.Millisecond)
				r.reconfigure(policy, "a", "b", "c")
			}
		}
		calls, errs := stop()
		require.Empty(t, errs)
		require.Greater(t, calls, 50)
		r.reconfigure(rival, "a", "b", "c")
		r.share("a", "b", "c")
		r.reconfigure(custom, "a", "b", "c")
		r.share("a", "b", "c")
		for _, name := range []string{"a", "b", "c"} {
			require.Equal(t, 1, r.connected(name), "nothing of the policies before is left")
		}
	})
}

func TestParityTheOldPolicyServesUntilTheNewOneIsReady(t *testing.T) {
	for _, c := range []struct{ name, from, to string }{
		{"round_robin to custom_round_robin", rival, custom},
		{"custom_round_robin to round_robin", custom, rival},
	} {
		t.Run(c.name, func(t *testing.T) {
			parity{policy: c.from}.in(t, func(t *testing.T, r *rig) {
				r.up("a", "b")
				r.share("a", "b")
				old := []*host{r.host("a"), r.host("b")}
				r.hang("a", "b") // new connections take forever; old ones live
				r.reconfigure(c.to, "a", "b")
				r.state(connectivity.Ready)
				r.share("a", "b")
				for _, h := range old {
					r.mu.Lock()
					r.hosts[h.name] = h
					r.mu.Unlock()
				}
				r.pass(10 * time.Minute)
				r.share("a", "b")
				require.Equal(t, 1, r.connected("a"))
			})
		})
	}
}

func TestParityTheSamePolicyAgainReconnectsNothing(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		for range 3 {
			r.reconfigure(r.policy, "a", "b")
			r.share("a", "b")
		}
		require.Equal(t, 1, r.dialed("a"))
	})
}

func TestParityAChangedConfigReconnectsNothing(t *testing.T) {
	parity{policy: custom}.in(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		for _, js := range []string{`{"reconnectWindow":"1s"}`, `{"idHeader":""}`, `{}`, `{"connect":"LAZY"}`, `{"connect":"EAGER"}`} {
			r.reconfigure(`{"custom_round_robin":`+js+`}`, "a", "b")
			r.share("a", "b")
		}
		require.Equal(t, 1, r.dialed("a"))
		require.Equal(t, 1, r.dialed("b"))
	})
}

// The same random history has the same end: calls go in equal parts to the
// servers that are listed and up, and fail if there is none.
func TestParityAnyHistoryEndsAsTheListAndTheServersSay(t *testing.T) {
	all := []string{"a", "b", "c", "d", "e"}
	for seed := range uint64(6) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			parity{dial: []grpc.DialOption{grpc.WithIdleTimeout(0)}}.run(t, func(t *testing.T, r *rig) {
				rnd := rand.New(rand.NewPCG(seed, 0))
				var listed []string
				for range 20 {
					for range 1 + rnd.IntN(4) {
						switch name := all[rnd.IntN(len(all))]; rnd.IntN(6) {
						case 0, 1:
							listed = nil
							for _, i := range rnd.Perm(len(all))[:rnd.IntN(len(all)+1)] {
								listed = append(listed, all[i])
							}
							r.list(listed...)
						case 2:
							r.fail("no names")
						case 3:
							if h := r.host(name); h != nil && h.grpc != nil {
								r.stop(name)
							} else {
								r.start(name)
							}
						case 4:
							if h := r.host(name); h != nil && h.grpc != nil {
								r.cut(h)
							}
						case 5:
							r.pass(time.Duration(rnd.IntN(5000)) * time.Millisecond)
						}
					}
					r.pass(5 * time.Minute)
					var want []string
					for _, name := range listed {
						if r.host(name) != nil {
							want = append(want, name)
						}
					}
					if len(want) == 0 && listed == nil {
						continue // no list yet, or an empty one
					}
					if len(want) == 0 {
						r.state(connectivity.TransientFailure)
						r.refuses()
						continue
					}
					slices.Sort(want)
					r.state(connectivity.Ready)
					r.share(want...)
					for _, name := range r.names() {
						if slices.Contains(want, name) {
							require.Equal(t, 1, r.connected(name), name)
						} else {
							require.Zero(t, r.connected(name), name)
						}
					}
				}
			})
		})
	}
}

// Lists, errors, connections and calls change all at once, and nobody waits for
// anybody. It ends as the list says, and no call is forgotten. This one runs in
// real time: Go 1.26.8's race detector crashes on it in a bubble, whatever the
// policy.
func TestParityAStormEndsAsTheListSays(t *testing.T) {
	all := []string{"a", "b", "c", "d", "e"}
	for _, policy := range []struct{ name, js string }{{"round_robin", rival}, {"custom_round_robin", custom}} {
		t.Run(policy.name, func(t *testing.T) {
			parity{policy: policy.js, dial: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.6, MaxDelay: 50 * time.Millisecond},
				MinConnectTimeout: time.Second,
			})}}.with(t, func() {}, func(t *testing.T, r *rig) {
				r.up(all...)
				patient, hasty := r.load(waitForReady), r.load()
				var wg sync.WaitGroup
				wg.Go(func() {
					for range 200 {
						var eps []resolver.Endpoint
						for _, i := range rand.Perm(len(all))[:1+rand.IntN(len(all))] {
							ep := plain(all[i])[0]
							ep.Addresses[0].Attributes = attributes.New(tagKey{}, rand.IntN(2))
							eps = append(eps, ep)
						}
						switch rand.IntN(10) {
						case 0:
							r.resolver.CC().ReportError(errors.New("no names"))
						case 1:
							r.resolver.UpdateState(resolver.State{})
						default:
							r.resolver.UpdateState(resolver.State{Endpoints: eps})
						}
						time.Sleep(time.Duration(rand.IntN(4000)) * time.Microsecond)
					}
				})
				wg.Go(func() {
					for range 200 {
						r.cut(r.host(all[rand.IntN(len(all))]))
						time.Sleep(time.Duration(rand.IntN(4000)) * time.Microsecond)
					}
				})
				wg.Wait()
				r.list(all...)
				for _, stop := range []func() (int, []error){patient, hasty} {
					ended := make(chan []error, 1)
					go func() {
						_, errs := stop()
						ended <- errs
					}()
					select {
					case errs := <-ended:
						for _, err := range errs {
							require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
						}
					case <-time.After(20 * time.Second):
						require.Fail(t, "a call was forgotten")
					}
				}
				want := map[string]int{}
				for _, name := range all {
					want[name] = 10
				}
				for deadline := time.Now().Add(20 * time.Second); ; {
					got := map[string]int{}
					for range 10 * len(all) {
						server, _ := r.call()
						got[server]++
					}
					if maps.Equal(want, got) {
						break
					}
					require.True(t, time.Now().Before(deadline), "calls go to %v", got)
				}
			})
		})
	}
}

// Real connections, real time.

func TestParityOverTCPAServersEndAndReturnFailNoMoreThanItsOwnCalls(t *testing.T) {
	for _, policy := range []struct{ name, js string }{{"round_robin", rival}, {"custom_round_robin", custom}} {
		t.Run(policy.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			var addrs []string
			servers := map[string]*grpc.Server{}
			start := func(addr string) string {
				lis, err := net.Listen("tcp", addr)
				require.NoError(t, err)
				s := grpc.NewServer()
				testpb.RegisterTestServiceServer(s, &host{name: lis.Addr().String()})
				go func() { _ = s.Serve(lis) }()
				servers[lis.Addr().String()] = s
				return lis.Addr().String()
			}
			for range 3 {
				addrs = append(addrs, start("127.0.0.1:0"))
			}
			defer func() {
				for _, s := range servers {
					s.Stop()
				}
			}()
			res := manual.NewBuilderWithScheme("tcp")
			res.InitialState(resolver.State{Endpoints: plain(addrs...)})
			conn, err := grpc.NewClient("tcp:///", grpc.WithResolvers(res),
				grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithDefaultServiceConfig(fmt.Sprintf(`{"loadBalancingConfig":[%s]}`, policy.js)))
			require.NoError(t, err)
			defer conn.Close()
			client := testpb.NewTestServiceClient(conn)

			// until polls rounds of calls until they go to exactly these servers.
			until := func(want ...string) {
				t.Helper()
				for {
					got := map[string]int{}
					failed := false
					for range 4 * len(want) {
						resp, err := client.UnaryCall(ctx, &testpb.SimpleRequest{})
						failed = failed || err != nil
						got[resp.GetHostname()]++
					}
					even := len(got) == len(want)
					for _, name := range want {
						even = even && got[name] == 4
					}
					if even && !failed {
						return
					}
					require.NoError(t, ctx.Err(), "calls go to %v", got)
				}
			}
			until(addrs...)
			var failed atomic.Int32
			servers[addrs[0]].GracefulStop()
			for range 100 {
				if _, err := client.UnaryCall(ctx, &testpb.SimpleRequest{}); err != nil {
					failed.Add(1)
				}
			}
			require.Zero(t, failed.Load(), "a server that stops gracefully fails no call")
			until(addrs[1:]...)
			start(addrs[0])
			conn.ResetConnectBackoff()
			until(addrs...)
			servers[addrs[1]].Stop()
			until(addrs[0], addrs[2])
		})
	}
}
