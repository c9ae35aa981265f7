// Command metrics shows what the packages of this module measure: gRPC's OpenTelemetry
// plugin exports it, beside gRPC's own metrics, to a page for Prometheus.
//
// It runs everything in one process (an etcd, two servers, a client), makes calls, lets
// things go wrong, reads the page over HTTP, and prints the part of it that is ours. See
// README.md.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	clientv3 "go.etcd.io/etcd/client/v3"
	exporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats/opentelemetry"
)

// Exit statuses.
const (
	exitOK    = 0
	exitWrong = 1
	exitUsage = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("metrics", flag.ContinueOnError)
	fs.SetOutput(stderr)
	listen := fs.String("listen", "127.0.0.1:0", "`host:port` of the page")
	stay := fs.Bool("stay", false, "go on serving the page until interrupted")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil: // it has been said
		return exitUsage
	case fs.NArg() > 0:
		fmt.Fprintf(stderr, "metrics: unexpected argument %q\n", fs.Arg(0))
		return exitUsage
	}
	err := show(ctx, stdout, *listen, *stay)
	switch {
	case err == nil:
		return exitOK
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "metrics: interrupted before its end")
	default:
		fmt.Fprintf(stderr, "metrics: %v\n", err)
	}
	return exitWrong
}

// show plays, prints what was measured of it, and stays if it is to.
func show(ctx context.Context, out io.Writer, listen string, stay bool) error {
	lis, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	defer lis.Close()
	page := "http://" + lis.Addr().String() + "/metrics"
	telemetry, err := servePage(lis)
	if err != nil {
		return err
	}
	endpoint, stopEtcd, err := startEtcd()
	if err != nil {
		return err
	}
	defer stopEtcd()
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer cli.Close()

	w := world{ctx: ctx, cli: cli, telemetry: telemetry}
	defer w.close()
	if err := w.play(); err != nil {
		return err
	}
	lines, err := ours(ctx, page)
	if err != nil {
		return err
	}
	for _, l := range lines {
		fmt.Fprintln(out, l)
	}
	if stay {
		fmt.Fprintln(out, "\nall of it is at", page)
		<-ctx.Done()
	}
	return nil
}

// servePage serves a page with all that is measured by what the option is given to. Which
// metrics those are is left to the plugin: ours are among its defaults.
func servePage(lis net.Listener) (grpc.DialOption, error) {
	all := prometheus.NewRegistry()
	reader, err := exporter.New(exporter.WithRegisterer(all))
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(all, promhttp.HandlerOpts{}))
	go http.Serve(lis, mux) // until lis is closed
	return opentelemetry.DialOption(opentelemetry.Options{MetricsOptions: opentelemetry.MetricsOptions{
		MeterProvider:  metric.NewMeterProvider(metric.WithReader(reader)),
		OptionalLabels: []string{"homing.server_id"},
	}}), nil
}

// ours reads the page and returns the lines that are ours, in order, but for the buckets
// of histograms and what says where the measurement was made.
func ours(ctx context.Context, page string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return nil, fmt.Errorf("GET %s: %s: %s", page, resp.Status, bytes.TrimSpace(why))
	}
	var lines []string
	s := bufio.NewScanner(resp.Body)
	for s.Scan() {
		l := s.Text()
		if strings.HasPrefix(l, "homing_") && !strings.Contains(l, "_bucket{") {
			lines = append(lines, withoutScope(l))
		}
	}
	slices.Sort(lines)
	return lines, s.Err()
}

// withoutScope drops the labels of OpenTelemetry's scope, which are those of grpc-go.
func withoutScope(line string) string {
	name, rest, _ := strings.Cut(line, "{")
	labels, value, _ := strings.Cut(rest, "} ")
	kept := slices.DeleteFunc(strings.Split(labels, ","), func(l string) bool { return strings.HasPrefix(l, "otel_scope") })
	return name + "{" + strings.Join(kept, ",") + "} " + value
}
