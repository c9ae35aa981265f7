package main

import (
	"bytes"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestThePageHasWhatHappened(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), &out, "127.0.0.1:0", false))
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
