// Package ringcap lets ring_hash have rings of 65,536 entries, which gRPC caps at
// 4,096 by default. gRPC reads the cap when it is initialized. Packages without
// dependencies are initialized in the order of their paths, so this one is earlier.
package ringcap

import "os"

func init() {
	const name = "GRPC_RING_HASH_CAP"
	if os.Getenv(name) == "" {
		os.Setenv(name, "65536")
	}
}
