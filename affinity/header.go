package affinity

import (
	"fmt"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/internal/sealed"
)

const (
	// maxValue is the most bytes that an id or a key has on the wire. Both are
	// kept in memory by whoever remembers them, so strangers must not choose
	// how much that is.
	maxValue = sealed.MaxValue

	// maxQuoted is how many bytes of a refused value an error repeats.
	maxQuoted = 64
)

// problem says what keeps v from travelling in a header unchanged, "" if
// nothing does.
func problem(v string) string {
	if len(v) > maxValue {
		return fmt.Sprintf("%d bytes are more than %d", len(v), maxValue)
	}
	for i := range len(v) {
		if v[i] < ' ' || v[i] > '~' {
			return fmt.Sprintf("byte %d is not printable ASCII", i)
		}
	}
	// gRPC lets anyone on the way strip these, and RFC 9113 section 8.2.1 calls
	// a field that has them malformed. Two spellings of one key are two homes.
	if v != "" && (v[0] == ' ' || v[len(v)-1] == ' ') {
		return "it starts or ends with a space"
	}
	return ""
}

// unfit is problem for what a client carries: that may be a sealed value, which
// is longer, and is not for the client to open.
func unfit(v string) string {
	if len(v) > maxValue && sealed.Like(v) {
		return ""
	}
	return problem(v)
}

// single returns the one value that a header has, "" if it has none. where is
// for the error, and so is what problem finds.
func single(where, header string, values []string, problem func(string) string) (string, error) {
	if len(values) == 0 {
		return "", nil
	}
	v := values[0]
	for _, other := range values[1:] {
		// Refused even if one of them is empty: the next reader may take the
		// first one, or the last.
		if other != v {
			return "", refuse(where+" header "+header, other, "an earlier value differs")
		}
	}
	if why := problem(v); why != "" {
		return "", refuse(where+" header "+header, v, why)
	}
	return v, nil
}

// refuse returns the status of a call whose affinity cannot be used.
func refuse(what, value, why string) error {
	return status.Errorf(codes.InvalidArgument, "affinity: %s %s: %s", what, quote(value), why)
}

// quote makes any value fit for an error message.
func quote(v string) string {
	if len(v) > maxQuoted {
		return strconv.QuoteToASCII(v[:maxQuoted]) + "..."
	}
	return strconv.QuoteToASCII(v)
}
