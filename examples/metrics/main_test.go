package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestThePageHasWhatHappened(t *testing.T) {
	var out, wrong bytes.Buffer
	require.Equal(t, exitOK, run(t.Context(), nil, &out, &wrong), &wrong)
	page := out.String()
	t.Log(page)
	const lb, target = "homing_lb_custom_round_robin_", `grpc_target="etcd:///game"`
	for _, want := range []string{
		lb + `picks_total\{` + target + `,homing_reason="round_robin"\} [1-9]\d*`,
		lb + `picks_total\{` + target + `,homing_reason="id"\} [1-9]\d*`,
		lb + `picks_total\{` + target + `,homing_reason="home"\} [1-9]\d*`,
		lb + `picks_total\{` + target + `,homing_reason="rehomed"\} 1`,
		lb + `queue_duration_seconds_count\{` + target + `,homing_reason="rehomed"\} 1`,
		lb + `queue_duration_seconds_sum\{` + target + `,homing_reason="rehomed"\} 0\.[2-9]\d*`,
		lb + `rehomed_sessions_total\{` + target + `,homing_reason="failed"\} 1`,
		lb + `known_endpoints\{` + target + `\} 2`,
		lb + `ready_endpoints\{` + target + `\} 1`,
		lb + `draining_endpoints\{` + target + `\} 0`,
		lb + `kept_endpoints\{` + target + `\} 0`,
		`homing_resolver_etcd_list_staleness_seconds\{` + target + `\} \d`,
		`homing_registry_registrations_lost_total\{homing_server_id="game-1",homing_service="game"\} 1`,
		`homing_registry_registrations_regained_total\{homing_server_id="game-1",homing_service="game"\} 1`,
	} {
		require.Regexp(t, regexp.MustCompile("(?m)^"+want+"$"), page)
	}
}

func TestWhatIsNotAFlagOfItsIsRefused(t *testing.T) {
	for arg, says := range map[string]string{
		"-nope":  "flag provided but not defined: -nope",
		"9464":   `metrics: unexpected argument "9464"`,
		"-stay=": `invalid boolean value "" for -stay`,
	} {
		t.Run(arg, func(t *testing.T) {
			var out, wrong bytes.Buffer
			require.Equal(t, exitUsage, run(t.Context(), []string{arg}, &out, &wrong))
			require.Contains(t, wrong.String(), says)
			require.Empty(t, out.String())
		})
	}
}

func TestAnAddressInUseIsNamed(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer lis.Close()
	addr := lis.Addr().String()
	var out, wrong bytes.Buffer
	require.Equal(t, exitWrong, run(t.Context(), []string{"-listen", addr}, &out, &wrong))
	require.Contains(t, wrong.String(), "metrics: listen tcp "+addr)
}

func TestAnInterruptIsNoSuccess(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, wrong bytes.Buffer
	require.Equal(t, exitWrong, run(ctx, nil, &out, &wrong))
	require.Equal(t, "metrics: interrupted before its end\n", wrong.String())
	require.ErrorIs(t, new(server).waitUntilBack(ctx), context.Canceled)
}

// stop ends what writes to it once the page is said to stay, and has been read.
type stop struct {
	bytes.Buffer
	cancel func()
	page   string
}

func (s *stop) Write(p []byte) (int, error) {
	if _, url, ok := strings.Cut(string(p), "all of it is at "); ok {
		defer s.cancel()
		resp, err := http.Get(strings.TrimSpace(url))
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		all, err := io.ReadAll(resp.Body)
		if s.page = string(all); err != nil {
			return 0, err
		}
	}
	return s.Buffer.Write(p)
}

func TestThePageStaysUntilAnInterrupt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &stop{cancel: cancel}
	var wrong bytes.Buffer
	require.Equal(t, exitOK, run(ctx, []string{"-stay"}, out, &wrong), &wrong)
	require.Contains(t, out.page, "homing_lb_custom_round_robin_known_endpoints")
	require.Contains(t, out.page, "grpc_client_attempt_started", "gRPC's own")
}

func TestAPageThatCannotBeMadeIsAnError(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "collected twice", http.StatusInternalServerError)
	}))
	defer srv.Close()
	_, err := ours(t.Context(), srv.URL)
	require.EqualError(t, err, "GET "+srv.URL+": 500 Internal Server Error: collected twice")
}
