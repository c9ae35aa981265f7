package faults

import "syscall"

// dieWithParent keeps children from outliving a parent that is killed. A terminal's ^C is
// for the parent alone.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
