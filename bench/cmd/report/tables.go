package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// tables are the full tables, by benchstat as module tools pins it, and empty where it cannot
// be built. Rivals are side by side.
func tables(ctx context.Context, dir string, raw []byte) (md string) {
	f, err := os.CreateTemp("", "bench")
	if err != nil {
		return ""
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(raw); err != nil || f.Close() != nil {
		return ""
	}
	for _, t := range []struct{ title, col, filter string }{
		{"Policies", "/policy", "/policy:/./"},
		{"Ways to find a home", "/way", "/way:/./"},
		{"Whole RPCs", "/setup", "/setup:/./"},
		{"Whole RPCs in turn", ".config", ".name:RPCInTurn"},
	} {
		cmd := exec.CommandContext(ctx, "go", "tool", "benchstat", "-col", t.col, "-filter", t.filter, f.Name())
		cmd.Dir = filepath.Join(dir, "..", "tools")
		cmd.Env, cmd.Stderr = append(os.Environ(), "GOWORK=off"), os.Stderr
		out, err := cmd.Output()
		if err != nil {
			fmt.Fprintln(os.Stderr, "benchstat:", t.title, err)
			continue
		}
		md += fmt.Sprintf("### %s\n\n```\n%s```\n\n", t.title, out)
	}
	return md
}
