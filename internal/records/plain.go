package records

import (
	"bytes"
	"net"
	"strconv"

	"github.com/homing-grpc/homing/endpointsmeta"
)

// isPlainAddress reports whether value is a bare "host:port", and nothing else.
func isPlainAddress(value []byte) bool {
	if len(value) > endpointsmeta.MaxIDLen || bytes.ContainsFunc(value, notOfAddress) {
		return false
	}
	host, port, err := net.SplitHostPort(string(value))
	if err != nil || host == "" {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// notOfAddress reports whether r is in no address: neither of a host name, nor of an IP
// with its brackets and its zone.
func notOfAddress(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		return false
	}
	switch r {
	case '.', '-', '_', ':', '[', ']', '%':
		return false
	}
	return true
}
