// Package kernelbox gives tests a host with a kernel that is not this one's:
// Debian's cloud kernel in a software-emulated machine, a few seconds from
// start to end. It has WireGuard, L2TP and netem as modules, so an
// implementation by others can be the far end of a test. It is there for
// function, not for speed: emulation is slow, and no throughput taken through
// it means anything.
package kernelbox

import (
	"bufio"
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

//go:embed kernelbox.sh
var script []byte

// packages are the programs that are needed on this host, and what has them.
var packages = []struct{ program, pkg string }{
	{"bash", "bash"},
	{"qemu-system-x86_64", "qemu-system-x86"},
	{"busybox", "busybox-static"},
	{"cpio", "cpio"},
	{"depmod", "kmod"},
	{"ip", "iproute2"},
	{"apt-get", "apt"},
	{"dpkg", "dpkg"},
}

// Box describes a machine.
type Box struct {
	Script   string        // run by bash as root, when the modules are loaded; eth0 is the TAP's other end
	Netns    string        // the network namespace of the TAP; empty: the machine has no network
	Tap      string        // made if it is not there
	Modules  []string      // loaded with what they need: wireguard, l2tp_eth, sch_netem, …
	Programs []string      // of this host, by name or path, taken along with their libraries
	Memory   int           // in MiB; zero: 384
	Timeout  time.Duration // for all of it; zero: two minutes

	// Leaps gives the machine a time of its own that leaps to the next timer
	// whenever nothing runs, so that ten minutes of waiting pass in a second or
	// two. It is for machines without a network: nobody outside keeps pace.
	Leaps bool
}

// Machine is a box that was started.
type Machine struct {
	t    testing.TB
	cmd  *exec.Cmd
	err  error
	done chan struct{} // closed when the machine has ended; err is set then

	mu      sync.Mutex // guards everything below
	output  bytes.Buffer
	changed chan struct{} // closed and replaced when there is a new line
}

// Run runs the box to its end and returns what the script printed. If the
// script fails, so does the test.
func Run(t testing.TB, b Box) string {
	t.Helper()
	return Start(t, b).Wait()
}

// Start starts the box. The machine ends with the script, or with the test. It
// needs root: without, the test is skipped. If a program is missing on this
// host the test fails with one line that names the packages.
func Start(t testing.TB, b Box) *Machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: a TAP device in a network namespace")
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("needs an amd64 host: the machine runs its programs")
	}
	if line := missing(exec.LookPath); line != "" {
		t.Fatal(line)
	}
	dir := t.TempDir()
	tool, guest := filepath.Join(dir, "kernelbox.sh"), filepath.Join(dir, "script")
	write(t, tool, script)
	write(t, guest, []byte(b.Script))
	if b.Timeout == 0 {
		b.Timeout = 2 * time.Minute
	}
	args := []string{tool, "-s", guest, "-T", strconv.Itoa(int(b.Timeout.Seconds())), "-M", strconv.Itoa(cmp.Or(b.Memory, 384))}
	if b.Netns != "" {
		args = append(args, "-n", b.Netns, "-t", b.Tap)
	}
	if b.Leaps {
		args = append(args, "-l")
	}
	for _, m := range b.Modules {
		args = append(args, "-m", m)
	}
	for _, p := range b.Programs {
		args = append(args, "-b", p)
	}
	m := &Machine{t: t, cmd: exec.Command("bash", args...), done: make(chan struct{}), changed: make(chan struct{})}
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that the emulator can be ended with the shell
	m.start()
	return m
}

func write(t testing.TB, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// missing is the line that says which packages to install; empty: none.
func missing(look func(string) (string, error)) string {
	var pkgs []string
	for _, p := range packages {
		if _, err := look(p.program); err != nil {
			pkgs = append(pkgs, p.pkg)
		}
	}
	if len(pkgs) == 0 {
		return ""
	}
	return "kernelbox: programs are missing: apt-get install -y --no-install-recommends " + strings.Join(pkgs, " ")
}

func (m *Machine) start() {
	m.t.Helper()
	var complaints bytes.Buffer
	m.cmd.Stderr = &complaints
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	go func() {
		defer close(m.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			m.add(lines.Text())
		}
		if err := m.cmd.Wait(); err != nil {
			m.err = fmt.Errorf("%w\n%s", err, &complaints)
		}
	}()
	m.t.Cleanup(m.stop)
}

// stop ends the machine, if it runs, by the group of its processes.
func (m *Machine) stop() {
	select {
	case <-m.done:
	default:
		_ = syscall.Kill(-m.cmd.Process.Pid, syscall.SIGTERM) // it may have ended by now
		<-m.done
	}
	if m.t.Failed() {
		m.t.Logf("output of the machine:\n%s", m.Output())
	}
}

func (m *Machine) add(line string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.output.WriteString(line + "\n")
	close(m.changed)
	m.changed = make(chan struct{})
}

// Output is what the script has printed so far.
func (m *Machine) Output() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.output.String()
}

// Await waits until the script has printed text; the test fails if it ends
// without.
func (m *Machine) Await(text string) {
	m.t.Helper()
	for {
		m.mu.Lock()
		found, changed := strings.Contains(m.output.String(), text), m.changed
		m.mu.Unlock()
		if found {
			return
		}
		select {
		case <-changed:
		case <-m.done:
			if !strings.Contains(m.Output(), text) {
				m.t.Fatalf("the machine ended without printing %q: %v", text, m.err)
			}
		}
	}
}

// Wait waits for the end of the script and returns what it printed. If it
// failed, so does the test.
func (m *Machine) Wait() string {
	m.t.Helper()
	<-m.done
	if m.err != nil {
		m.t.Fatalf("the machine's script: %v", m.err)
	}
	return m.Output()
}
