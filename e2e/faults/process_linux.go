package faults

import "syscall"

// dieWithParent keeps children from outliving a parent that is killed.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
