// Package port finds ports for those who listen on them later, or more than once.
package port

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// Of these no system that Go runs on gives one to a connection that asks for any: Linux
// begins at 32768, others at 49152. Such a connection may take what is free for a moment.
const first, last = 20000, 31999

var given sync.Map // int → struct{}, of this process

// Free returns a port that nobody listens on at 127.0.0.1, and that it has not returned
// before.
func Free() (int, error) {
	for range 1000 {
		n := first + rand.N(last-first+1)
		if _, again := given.LoadOrStore(n, struct{}{}); again {
			continue
		}
		if lis, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", n)); err == nil {
			lis.Close()
			return n, nil
		}
	}
	return 0, errors.New("port: none is free")
}

// FreeAddr is [Free] with the host before it.
func FreeAddr() (string, error) {
	n, err := Free()
	return fmt.Sprintf("127.0.0.1:%d", n), err
}
