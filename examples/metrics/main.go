// Command metrics shows what the packages of this module measure: gRPC's OpenTelemetry
// plugin exports it, beside gRPC's own metrics, to a page for Prometheus.
//
// It runs everything in one process (an etcd, two servers, a client), makes calls, lets
// things go wrong, reads the page over HTTP, and prints the part of it that is ours. See
// README.md.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
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

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "host:port of the page")
	stay := flag.Bool("stay", false, "go on serving the page until interrupted")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, *listen, *stay); err != nil {
		fmt.Fprintf(os.Stderr, "metrics: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, listen string, stay bool) error {
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

	lis, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	page := "http://" + lis.Addr().String() + "/metrics"
	telemetry, err := servePage(lis)
	if err != nil {
		return err
	}
	defer lis.Close()

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
	var lines []string
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		l := s.Text()
		if strings.HasPrefix(l, "homing_") && !strings.Contains(l, "_bucket{") {
			lines = append(lines, withoutScope(l))
		}
	}
	slices.Sort(lines)
	return lines, nil
}

// withoutScope drops the labels of OpenTelemetry's scope, which are those of grpc-go.
func withoutScope(line string) string {
	name, rest, _ := strings.Cut(line, "{")
	labels, value, _ := strings.Cut(rest, "} ")
	kept := slices.DeleteFunc(strings.Split(labels, ","), func(l string) bool { return strings.HasPrefix(l, "otel_scope") })
	return name + "{" + strings.Join(kept, ",") + "} " + value
}
