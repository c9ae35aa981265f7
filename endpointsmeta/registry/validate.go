package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/internal/records"
)

var errNoClient = errors.New("registry: cli must be an etcd client, got nil")

func checkService(cli *clientv3.Client, service string) error {
	if cli == nil {
		return errNoClient
	}
	if service == "" || strings.HasSuffix(service, "/") {
		return fmt.Errorf("registry: service must be a name that does not end with a slash, got %q", service)
	}
	if strings.HasPrefix(service+"/", records.IntentPrefix) {
		return fmt.Errorf("registry: service must not be where operators' intents are, got %q", service)
	}
	return nil
}

func checkRecord(addr string, m endpointsmeta.Meta) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || port == "" || port == "0" {
		return fmt.Errorf(`registry: addr must be "host:port" as clients reach it, got %q`, addr)
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return fmt.Errorf("registry: addr must be one that clients can reach, not a wildcard, got %q (Serve takes another by WithAdvertise)", addr)
	}
	if err := m.Validate(); err != nil {
		return err
	}
	value, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("registry: metadata: %w", err)
	}
	if len(value) > maxMeta {
		return fmt.Errorf("registry: metadata must have at most %d bytes as JSON, got %d", maxMeta, len(value))
	}
	return nil
}

// maxMeta bounds what every client of a service keeps of each server. etcd itself takes
// 1.5 MB.
const maxMeta = 64 << 10
