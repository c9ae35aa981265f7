package faults

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// A clock that jumps for a few processes and for nobody else takes a time package that
// can. This program is built once more with such a one, and plays the row there: its
// clients, its servers and its etcd all have clocks that jump. Go reads the clock
// without a system call, so nothing outside of a process could make it jump.

const jumpVar = "HOMING_FAULTS_JUMP"

// jump makes the clock of this process jump. It is nil where the clock cannot.
var jump func(time.Duration)

func clockRows() []Row {
	row := etcdRow("a clock that jumps, everywhere", false, func(w *World) error {
		c := w.servers["c"].front
		return w.during(ttl, func() error {
			// Set back while servers are out of touch with etcd and clients with c: who
			// asked the wall clock would wait for an hour, to say so or to go elsewhere.
			w.etcd.each(func(m *member) { m.back.freeze() })
			c.refuse()
			time.Sleep(ttl / 10) // until clients have seen it
			if err := w.jump(-time.Hour); err != nil {
				return err
			}
			for _, s := range w.servers {
				if _, err := s.process.line("state lost", 3*ttl); err != nil {
					return fmt.Errorf("%s does not know that its lease is over: %w", s.id, err)
				}
			}
			time.Sleep(ttl)
			// Set on while clients keep servers that are in no list: they would let go of
			// them when something makes them look.
			if err := w.jump(2 * time.Hour); err != nil {
				return err
			}
			if _, err := w.direct.Put(bg, service+"/x", `{"Op":0,"Addr":"127.0.0.1:1"}`); err != nil {
				return err
			}
			time.Sleep(ttl)
			if _, err := w.direct.Delete(bg, service+"/x"); err != nil {
				return err
			}
			return w.jump(-time.Hour)
		}, func() error {
			w.etcd.each(func(m *member) { m.back.thaw() })
			return c.accept()
		})
	})
	row.Moves, row.Failed, row.Slowest = []string{"c"}, onTheWire, 2*time.Second
	row.Play = playElsewhere
	return []Row{row}
}

// jump makes all clocks jump, and waits until they have.
func (w *World) jump(d time.Duration) error {
	var all []*process
	for _, s := range w.servers {
		all = append(all, s.process)
	}
	w.etcd.each(func(m *member) { all = append(all, m.process) })
	for _, p := range all {
		if _, err := fmt.Fprintln(p.input, d); err != nil {
			return err
		}
	}
	jump(d)
	for _, p := range all {
		if _, err := p.line("jumped by "+d.String(), 5*time.Second); err != nil {
			return err
		}
	}
	return nil
}

// playElsewhere plays a row in a process whose clock can jump.
func playElsewhere(row Row) (r Result, err error) {
	if jump != nil {
		return play(row)
	}
	exe, clean, err := buildJumper()
	defer clean()
	if err != nil {
		return r, err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleVar+"=row", jumpVar+"="+row.Name)
	cmd.SysProcAttr = dieWithParent()
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return r, fmt.Errorf("the process whose clock jumps: %w: %s", err, out)
	}
	// Lines before it are of the processes that it started.
	if err := json.Unmarshal(out[bytes.LastIndexByte(bytes.TrimSpace(out), '\n')+1:], &r); err != nil {
		return r, fmt.Errorf("the process whose clock jumps: %w: %s", err, out)
	}
	r.Row = row
	return r, nil
}

// rowMain is the other side of playElsewhere.
func rowMain() error {
	for _, row := range Rows(false) {
		if row.Name == os.Getenv(jumpVar) {
			os.Setenv(roleVar, "")
			r, err := Run(row)
			if err != nil {
				return err
			}
			return json.NewEncoder(os.Stdout).Encode(r)
		}
	}
	return errors.New("no such row: " + strconv.Quote(os.Getenv(jumpVar)))
}

// nowInTime is what the time package has, and shiftedNow what it gets instead. The
// reading of the monotonic clock stays as it is, as on a machine whose wall clock is
// set.
const (
	nowInTime  = "func Now() Time {"
	shiftedNow = `var shift atomic.Int64

// Jump makes the wall clock jump.
func Jump(d Duration) { shift.Add(int64(d / Second)) }

func Now() Time {
	t := unshiftedNow()
	t.addSec(shift.Load())
	return t
}

func unshiftedNow() Time {`
)

// buildJumper builds the program of the matrix with a clock that can jump.
func buildJumper() (exe string, clean func(), err error) {
	dir, err := os.MkdirTemp("", "homing-clock-")
	if err != nil {
		return "", func() {}, err
	}
	clean = func() { _ = os.RemoveAll(dir) }
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", clean, err
	}
	source := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	text, err := os.ReadFile(source)
	if err != nil {
		return "", clean, err
	}
	shifted := strings.Replace(string(text), nowInTime, shiftedNow, 1)
	shifted = strings.Replace(shifted, "import (", "import (\n\t\"sync/atomic\"", 1)
	if !strings.Contains(shifted, "unshiftedNow") || !strings.Contains(shifted, "sync/atomic") {
		return "", clean, fmt.Errorf("the time package of %s is not as this rig knows it", runtime.Version())
	}
	changed, overlay := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{source: changed}})
	if err != nil {
		return "", clean, err
	}
	if err := errors.Join(os.WriteFile(changed, []byte(shifted), 0o600), os.WriteFile(overlay, replace, 0o600)); err != nil {
		return "", clean, err
	}
	exe = filepath.Join(dir, "faults")
	build := exec.Command("go", "build", "-overlay", overlay, "-tags", "clockjump", "-o", exe,
		"github.com/homing-grpc/homing/e2e/cmd/faults")
	if out, err := build.CombinedOutput(); err != nil {
		return "", clean, fmt.Errorf("%w: %s", err, out)
	}
	return exe, clean, nil
}
