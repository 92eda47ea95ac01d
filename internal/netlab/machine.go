package netlab

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

//go:embed machine.sh
var machineScript []byte

// A Machine is a host with systemd on it: Debian's own, as the first process of
// namespaces, with our unit and commands installed below /usr/local. Methods may
// be called from any goroutine.
type Machine struct {
	host  *Host
	proc  *Process
	first int // process id of systemd
}

// units are those that a service refers to; there is nothing in them.
var units = []string{"lab", "sysinit", "basic", "network", "nss-lookup", "multi-user", "shutdown", "umount", "local-fs", "final", "exit", "poweroff"}

const (
	unitDir    = "usr/local/lib/systemd/system"
	unitName   = "tunneld.service"
	bootWait   = 30 * time.Second
	machineBin = "/usr/local/sbin/tunneld"
)

// Boot boots systemd on the host, with the unit and the users that lie in the
// directory packaging. The service is not started.
func (h *Host) Boot(ctx context.Context, bin Binaries, packaging string) (*Machine, error) {
	dir, err := h.lab.path(h.name, "machine", "root")
	if err != nil {
		return nil, err
	}
	dir = filepath.Dir(dir)
	files := filepath.Join(dir, "files")
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "root"), 0o755), layMachine(files, bin, packaging)); err != nil {
		return nil, fmt.Errorf("host %s: files of the machine: %w", h.name, err)
	}
	script := filepath.Join(dir, "machine.sh")
	if err := os.WriteFile(script, machineScript, 0o644); err != nil {
		return nil, err
	}
	p, err := h.Start("systemd", "unshare", "--mount", "bash", script, filepath.Join(dir, "root"), files, filepath.Join(h.lab.dir, h.name))
	if err != nil {
		return nil, err
	}
	m := &Machine{host: h, proc: p}
	h.lab.add(m) // closed before its process is
	return m, m.awaitBoot(ctx)
}

// layMachine writes what the machine has beside the programs of this one.
func layMachine(files string, bin Binaries, packaging string) error {
	unit, err := os.ReadFile(filepath.Join(packaging, unitName))
	if err != nil {
		return err
	}
	users, err := os.ReadFile(filepath.Join(packaging, "tunneld.sysusers"))
	if err != nil {
		return err
	}
	texts := map[string]string{
		unitDir + "/" + unitName:                strings.Replace(string(unit), "/usr/sbin/tunneld", machineBin, 1) + logOf("tunneld"),
		"usr/local/lib/sysusers.d/tunneld.conf": string(users),
		"etc/machine-id":                        strings.Repeat("5182", 8) + "\n",
	}
	for _, name := range units {
		texts[unitDir+"/"+name+".target"] = "[Unit]\nDefaultDependencies=no\n"
	}
	for name, text := range texts {
		if err := layFile(filepath.Join(files, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for name, from := range map[string]string{"sbin/tunneld": bin.Tunneld, "bin/tunnelctl": bin.Tunnelctl} {
		program, err := os.ReadFile(from)
		if err == nil {
			err = layFile(filepath.Join(files, "usr/local", name), program, 0o755)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func layFile(path string, b []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b, mode)
}

// awaitBoot waits until systemd has reached its target.
func (m *Machine) awaitBoot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootWait)
	defer cancel()
	var last error
	err := Poll(ctx, 20*time.Millisecond, func() (bool, error) {
		if !m.proc.Running() {
			return false, errors.New("it has ended, see systemd.log")
		}
		if m.first == 0 {
			m.first = firstProcess(m.proc.PID())
		}
		if m.first != 0 {
			_, last = m.Systemctl(ctx, "is-active", "lab.target")
		}
		return m.first != 0 && last == nil, nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("host %s: systemd is not up: %w", m.host.name, err), last)
	}
	return nil
}

// firstProcess finds the first process of the namespace that one below pid has
// made; 0 if there is none yet.
func firstProcess(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, child := range strings.Fields(string(b)) {
		n, err := strconv.Atoi(child)
		if err != nil {
			return 0
		}
		if status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", n)); isFirst(string(status)) {
			return n
		}
		if found := firstProcess(n); found != 0 {
			return found
		}
	}
	return 0
}

// isFirst reads from proc(5) whether a process has number 1 in its own
// namespace, and another one here.
func isFirst(status string) bool {
	_, numbers, _ := strings.Cut(status, "\nNSpid:")
	numbers, _, _ = strings.Cut(numbers, "\n")
	all := strings.Fields(numbers)
	return len(all) > 1 && all[len(all)-1] == "1"
}

// Run runs a program on the machine to its end and returns what it wrote.
func (m *Machine) Run(ctx context.Context, path string, args ...string) (string, error) {
	return m.host.Run(ctx, "", "nsenter", append([]string{"--target", strconv.Itoa(m.first), "--mount", "--pid", "--uts", "--ipc", "--root", "--wd=/", "--", path}, args...)...)
}

// Unit is the service's unit as it is installed.
func (m *Machine) Unit() (string, error) {
	b, err := os.ReadFile(m.Path("/" + unitDir + "/" + unitName))
	return string(b), err
}

// Install adds a service whose output goes to NAME.log, beside those of the
// laboratory.
func (m *Machine) Install(ctx context.Context, name, unit string) error {
	if err := layFile(m.Path("/"+unitDir+"/"+name+".service"), []byte(unit+logOf(name)), 0o644); err != nil {
		return err
	}
	_, err := m.Systemctl(ctx, "daemon-reload")
	return err
}

// logOf is where a service writes to: there is no journal.
func logOf(name string) string {
	return "\n[Service]\nStandardOutput=append:/var/log/" + name + ".log\nStandardError=inherit\n"
}

// Systemctl runs systemctl on the machine.
func (m *Machine) Systemctl(ctx context.Context, args ...string) (string, error) {
	return m.Run(ctx, "systemctl", args...)
}

// Path is a file of the machine as programs outside name it.
func (m *Machine) Path(name string) string { return fmt.Sprintf("/proc/%d/root%s", m.first, name) }

// Daemon is the machine's: to be asked, since systemd starts and ends it.
func (m *Machine) Daemon(bin Binaries) *Daemon {
	return &Daemon{host: m.host, bin: bin, dir: m.Path("/etc/tunneld"), socket: m.Path("/run/tunneld/tunneld.sock"), machine: m}
}

// PID is the process id of the service as it is seen outside; 0 if it does not run.
func (m *Machine) PID(ctx context.Context) (int, error) {
	out, err := m.Systemctl(ctx, "show", "--value", "--property=ControlGroup", unitName)
	if err != nil {
		return 0, err
	}
	b, err := os.ReadFile(m.Path(filepath.Join("/sys/fs/cgroup", strings.TrimSpace(out), "cgroup.procs")))
	if errors.Is(err, os.ErrNotExist) || err == nil && len(strings.Fields(string(b))) == 0 {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.Fields(string(b))[0])
}

// Close kills everything on the machine, and waits until what was made for it is
// gone.
func (m *Machine) Close() error {
	if m.first == 0 || !m.proc.Running() {
		return m.proc.Close()
	}
	first, err := os.FindProcess(m.first)
	if err != nil {
		return err
	}
	if err := first.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopWait)
	defer cancel()
	err = m.proc.Wait(ctx)
	if _, ended := errors.AsType[*exec.ExitError](err); ended {
		err = nil // by the kill
	}
	return errors.Join(err, m.proc.Close())
}
