package netlab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"tunneld/internal/netlab/keeper"
)

// Environment variables with binaries to use instead of building them.
const (
	TunneldVar   = "TUNNELD_BIN"
	TunnelctlVar = "TUNNELCTL_BIN"
)

// Binaries are the two commands.
type Binaries struct{ Tunneld, Tunnelctl string }

// Build builds both commands into dir, with the race detector if this program
// has it, except those that the environment names ready-made. It runs the go
// command, so the working directory must lie in the module.
func Build(ctx context.Context, dir string) (Binaries, error) {
	b := Binaries{Tunneld: os.Getenv(TunneldVar), Tunnelctl: os.Getenv(TunnelctlVar)}
	for _, one := range []struct {
		file *string
		name string
	}{{&b.Tunneld, "tunneld"}, {&b.Tunnelctl, "tunnelctl"}} {
		if *one.file != "" {
			continue
		}
		*one.file = filepath.Join(dir, one.name)
		args := []string{"build", "-o", *one.file}
		if raceEnabled {
			args = append(args, "-race")
		}
		out, err := exec.CommandContext(ctx, "go", append(args, "tunneld/cmd/"+one.name)...).CombinedOutput()
		if err != nil {
			return Binaries{}, fmt.Errorf("build %s: %w: %s", one.name, err, bytes.TrimSpace(out))
		}
	}
	return b, nil
}

// Daemon is a node: a directory with its configuration and state, and the
// process that runs from it, if any. Methods may be called from any goroutine.
type Daemon struct {
	host    *Host
	bin     Binaries
	dir     string
	socket  string
	args    []string
	machine *Machine // whose systemd runs the process; nil: the laboratory does

	// mu guards everything below.
	mu    sync.Mutex
	proc  *Process
	under []string        // what runs the processes; nothing: nobody
	store *keeper.Manager // nil: what the process has ends with it
}

// Daemon names a node of the host, several of which may be there. Its
// directory is not made: [Daemon.Init] does that.
func (h *Host) Daemon(bin Binaries, name string, args ...string) *Daemon {
	dir := filepath.Join(h.lab.dir, h.name, name)
	return &Daemon{host: h, bin: bin, dir: dir, socket: filepath.Join(dir, "tunneld.sock"), args: args}
}

// Host returns the host that the node runs on.
func (d *Daemon) Host() *Host { return d.host }

// Dir is the node's directory, with tunneld.toml in it.
func (d *Daemon) Dir() string { return d.dir }

// Init runs `tunneld init --dir DIR` with further arguments.
func (d *Daemon) Init(ctx context.Context, args ...string) error {
	if d.machine != nil {
		_, err := d.machine.Run(ctx, machineBin, append([]string{"init"}, args...)...)
		return err
	}
	if err := os.MkdirAll(filepath.Dir(d.dir), 0o755); err != nil {
		return err
	}
	_, err := d.host.Run(ctx, "", d.bin.Tunneld, append([]string{"init", "--dir", d.dir}, args...)...)
	return err
}

// Configure appends text to the configuration file.
func (d *Daemon) Configure(text string) error {
	f, err := os.OpenFile(filepath.Join(d.dir, "tunneld.toml"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("\n" + text)
	return errors.Join(err, f.Close())
}

// KeepIn has the processes that are started from now on leave what they have
// with a service manager, and the next go on with it.
func (d *Daemon) KeepIn(store *keeper.Manager) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.store = store
}

// Under has the processes that are started from now on be run by a program, as
// nsenter(1) is, which puts itself in their place.
func (d *Daemon) Under(argv ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.under = argv
}

// Start starts the process and does not wait for more; see [Daemon.WaitReady].
func (d *Daemon) Start() error {
	if d.machine != nil {
		_, err := d.machine.Systemctl(context.Background(), "start", unitName)
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.proc != nil && d.proc.Running() {
		return fmt.Errorf("tunneld in %s runs already", d.dir)
	}
	argv := slices.Concat(d.under, []string{d.bin.Tunneld, "run", "--config", filepath.Join(d.dir, "tunneld.toml")}, d.args)
	var env []string
	var files []*os.File
	if d.store != nil {
		var err error
		if argv, env, files, err = d.store.Launch(argv...); err != nil {
			return err
		}
	}
	p, err := d.host.startWith(filepath.Base(d.dir), env, files, argv[0], argv[1:]...)
	for _, f := range files {
		f.Close()
	}
	if err == nil {
		d.proc = p
	}
	return err
}

// Process returns the process that was started last, or nil; on a [Machine] it is
// always nil.
func (d *Daemon) Process() *Process {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.proc
}

// WaitReady waits until the daemon answers `status`. It fails at once if the
// process ends instead.
func (d *Daemon) WaitReady(ctx context.Context) error {
	var last error
	err := Poll(ctx, 10*time.Millisecond, func() (bool, error) {
		if p := d.Process(); d.machine == nil && (p == nil || !p.Running()) {
			return false, fmt.Errorf("tunneld in %s has ended, see its log", d.dir)
		}
		_, last = d.Status(ctx)
		return last == nil, nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("daemon of %s is not ready: %w", d.host.name, err), last)
	}
	return nil
}

// Ctl runs tunnelctl with the daemon's socket and returns its output. The
// error is an *[ExitError] when tunnelctl reports one.
func (d *Daemon) Ctl(ctx context.Context, args ...string) (string, error) {
	return d.CtlInput(ctx, "", args...)
}

// CtlInput is Ctl with something on standard input.
func (d *Daemon) CtlInput(ctx context.Context, stdin string, args ...string) (string, error) {
	args = append([]string{"--socket", d.socket}, args...)
	return d.host.Run(ctx, stdin, d.bin.Tunnelctl, args...)
}

// Status is what `tunnelctl --json status` promises, read here without the
// daemon's own types, as a script would.
type Status struct {
	Node    string         `json:"node"`
	BootID  string         `json:"boot_id"`
	Tunnels []TunnelStatus `json:"tunnels"`

	Problems  []Problem `json:"problems"`
	KeyMemory struct {
		Locked bool   `json:"locked"`
		Why    string `json:"why"`
	} `json:"key_memory"`
}

// Problem is something that is in the way of a daemon.
type Problem struct {
	What string `json:"what"`
	Mend string `json:"mend"`
}

// TunnelStatus is one dialled tunnel. What is unknown is the zero value.
type TunnelStatus struct {
	Name      string   `json:"name"`
	State     string   `json:"state"`
	Session   string   `json:"session"`
	Addresses []string `json:"addresses"`
	Endpoint  string   `json:"endpoint"`
	Interface string   `json:"interface"`
	MTU       int      `json:"mtu"`
	Handshake string   `json:"last_handshake_at"`
	KeyEpoch  uint32   `json:"key_epoch"`
	Resumes   uint64   `json:"resumes"`
	RxBytes   uint64   `json:"rx_bytes"`
	TxBytes   uint64   `json:"tx_bytes"`
	LastError string   `json:"last_error"`
}

// SessionStatus is one element of `tunnelctl --json sessions`.
type SessionStatus struct {
	Session   string   `json:"session"`
	Node      string   `json:"node"`
	Network   string   `json:"network"`
	State     string   `json:"state"`
	Addresses []string `json:"addresses"`
	Endpoint  string   `json:"endpoint"`
	Handshake string   `json:"last_handshake_at"`
	KeyEpoch  uint32   `json:"key_epoch"`
	Resumes   uint64   `json:"resumes"`
	RxBytes   uint64   `json:"rx_bytes"`
	TxBytes   uint64   `json:"tx_bytes"`
}

// Established is the state of a session whose control connection works.
const Established = "established"

// Tunnel returns the tunnel of that name, or an empty one.
func (s Status) Tunnel(name string) TunnelStatus {
	for _, t := range s.Tunnels {
		if t.Name == name {
			return t
		}
	}
	return TunnelStatus{}
}

// Status asks the daemon for its view.
func (d *Daemon) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, d.JSON(ctx, &s, "status")
}

// Sessions asks the daemon, a gateway, for its sessions.
func (d *Daemon) Sessions(ctx context.Context) ([]SessionStatus, error) {
	var s []SessionStatus
	return s, d.JSON(ctx, &s, "sessions")
}

// JSON runs tunnelctl --json and decodes what it says into v.
func (d *Daemon) JSON(ctx context.Context, v any, args ...string) error {
	out, err := d.Ctl(ctx, append([]string{"--json"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("tunnelctl --json %q on %s: %w in %q", args, d.host.name, err, out)
	}
	return nil
}

// pollStatus is how often a state is asked for: each time costs a process.
const pollStatus = 40 * time.Millisecond

// WaitTunnel waits until ok of a tunnel's status is true. what says in the
// error what was waited for.
func (d *Daemon) WaitTunnel(ctx context.Context, tunnel, what string, ok func(TunnelStatus) bool) (TunnelStatus, error) {
	var t TunnelStatus
	var last error
	err := Poll(ctx, pollStatus, func() (bool, error) {
		var s Status
		if s, last = d.Status(ctx); last != nil {
			return false, nil
		}
		t = s.Tunnel(tunnel)
		return ok(t), nil
	})
	if err != nil {
		return t, errors.Join(fmt.Errorf("%s: tunnel %s is not %s: %w; it is %+v", d.host.name, tunnel, what, err, t), last)
	}
	return t, nil
}

// WaitSessions waits until ok of the gateway's sessions is true.
func (d *Daemon) WaitSessions(ctx context.Context, what string, ok func([]SessionStatus) bool) ([]SessionStatus, error) {
	var list []SessionStatus
	var last error
	err := Poll(ctx, pollStatus, func() (bool, error) {
		list, last = d.Sessions(ctx)
		return last == nil && ok(list), nil
	})
	if err != nil {
		return list, errors.Join(fmt.Errorf("%s: not %s: %w; sessions are %+v", d.host.name, what, err, list), last)
	}
	return list, nil
}
