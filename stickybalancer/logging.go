package stickybalancer

import (
	"fmt"

	"google.golang.org/grpc/grpclog"
)

var component = grpclog.Component("stickybalancer")

// logger names the channel's policy in each line. Nothing is logged per pick, and no
// key or token of a call: servers are named, callers are not.
type logger struct{ prefix string }

func newLogger(p *policy) logger { return logger{fmt.Sprintf("[%s %p] ", Name, p)} }

func (l logger) infof(format string, args ...any) {
	if component.V(2) {
		component.InfoDepth(1, l.prefix+fmt.Sprintf(format, args...))
	}
}

func (l logger) warningf(format string, args ...any) {
	component.WarningDepth(1, l.prefix+fmt.Sprintf(format, args...))
}
