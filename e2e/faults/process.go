package faults

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

const roleVar = "HOMING_FAULTS_ROLE"

// Main runs the part of the world that this process was started for, and then does not
// return. In any other process it returns at once.
func Main() {
	switch os.Getenv(roleVar) {
	case "etcd":
		etcdmain.Main(os.Args)
		os.Exit(0)
	case "row":
		if err := rowMain(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	case "server":
		serverMain()
		os.Exit(0)
	}
}

// process is a child of this one.
type process struct {
	cmd   *exec.Cmd
	input io.Writer
	done  chan struct{}

	mu    sync.Mutex
	lines []string // the last of its output
}

// spawn starts this program again in a role. heard takes the lines of its output that
// are for it; nil takes none.
func spawn(role string, env []string, heard func(line string) bool, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(self, args...), done: make(chan struct{})}
	p.cmd.Env = append(append(os.Environ(), roleVar+"="+role), env...)
	p.cmd.SysProcAttr = dieWithParent()
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stderr = p.cmd.Stdout
	if p.input, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.done)
		for s := bufio.NewScanner(out); s.Scan(); {
			if heard != nil && heard(s.Text()) {
				continue
			}
			p.mu.Lock()
			p.lines = append(p.lines, s.Text())
			if len(p.lines) > 50 {
				p.lines = p.lines[1:]
			}
			p.mu.Unlock()
		}
		_ = p.cmd.Wait()
	}()
	return p, nil
}

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// kill is kill -9. It returns when the process is gone.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

// line waits for a line of output that begins with prefix, and returns the rest of it.
func (p *process) line(prefix string, d time.Duration) (string, error) {
	for deadline := time.Now().Add(d); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		p.mu.Lock()
		for _, l := range p.lines {
			if rest, ok := strings.CutPrefix(l, prefix); ok {
				p.mu.Unlock()
				return rest, nil
			}
		}
		p.mu.Unlock()
		select {
		case <-p.done:
			return "", fmt.Errorf("process ended: %s", p.output())
		default:
		}
	}
	return "", errors.New("no line that begins with " + prefix)
}
