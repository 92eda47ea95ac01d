package native

import (
	"bufio"
	"encoding/gob"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tunneld/internal/fdstore"
	"tunneld/internal/netlab/keeper"
	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

// These tests kill engines. Each is a process of its own: this test binary,
// told by an environment variable to be an heir. It speaks to the store of the
// service manager as the daemon does; the test is that manager.
const heirVariable = "TUNNELD_ENGINE_HEIR"

// A will is what an heir is to do.
type will struct {
	Listen  netip.AddrPort
	Device  string // "": a pair of sockets is in the TUN device's place
	Private []byte
	Journal session.ID

	// The one session.
	ID       session.ID
	Peer     engine.PublicKey
	Allowed  []netip.Prefix
	Endpoint netip.AddrPort
	Dials    bool
}

func TestMain(m *testing.M) {
	if os.Getenv(heirVariable) != "" {
		serveHeir()
		return
	}
	os.Exit(m.Run())
}

// serveHeir runs an engine until its standard input says how to end it.
func serveHeir() {
	if err := heir(os.Stdin, os.Stdout); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
}

func heir(stdin io.Reader, stdout io.Writer) error {
	in := bufio.NewReader(stdin)
	var w will
	if err := gob.NewDecoder(in).Decode(&w); err != nil {
		return err
	}
	given, err := fdstore.Given(os.Getenv, os.Getpid())
	if err != nil {
		return err
	}
	c := Config{
		Listen: w.Listen, Keeper: fdstore.Open(os.Getenv), Journal: w.Journal, AllowSwap: true,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	t := &tunnel{name: "loop"}
	for _, f := range given {
		if f.Name == t.name {
			t.fds = append(t.fds, f.FD)
		} else {
			c.Inherited = append(c.Inherited, Descriptor(f))
		}
	}
	e, err := New(c)
	if err != nil {
		return err
	}
	d, err := w.device(e, t)
	if err != nil {
		return err
	}
	if err := d.SetPrivateKey(secret.New(w.Private)); err != nil {
		return err
	}
	if err := d.Add(w.session()); err != nil {
		return err
	}
	e.Settled()
	fmt.Fprintln(stdout, "port", e.Port())
	for {
		switch line, err := in.ReadString('\n'); strings.TrimSpace(line) {
		case "handshake":
			if err := d.Handshake(w.ID, false); err != nil {
				return err
			}
		case "hand over":
			return e.HandOver()
		case "close":
			return e.Close()
		default:
			return fmt.Errorf("told %q: %w", line, err)
		}
	}
}

// device opens the TUN device, or makes one of what is in its place.
func (w *will) device(e *Engine, t *tunnel) (engine.Device, error) {
	if w.Device != "" {
		return e.Open(engine.DeviceConfig{Interface: w.Device, MTU: 1420})
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.attachLocked(t, 1420)
}

// session is the session as the engine takes it.
func (w *will) session() engine.Session {
	return engine.Session{ID: w.ID, PeerKey: w.Peer, AllowedIPs: w.Allowed, Endpoint: w.Endpoint, Gate: engine.Open, Responder: !w.Dials}
}

// A warden starts heirs, one after the other, as a service manager does that
// keeps what they store.
type warden struct {
	*keeper.Manager
	t   *testing.T
	log *os.File
}

func newWarden(t *testing.T) *warden {
	t.Helper()
	m, err := keeper.New(filepath.Join(t.TempDir(), "notify"))
	if err != nil {
		t.Fatal(err)
	}
	w := &warden{Manager: m, t: t}
	if w.log, err = os.Create(filepath.Join(t.TempDir(), "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Close()
		w.log.Close()
		if log, _ := os.ReadFile(w.log.Name()); t.Failed() {
			t.Logf("log of the heirs:\n%s", log)
		}
	})
	return w
}

// names are those under which something is kept.
func (w *warden) names() []string {
	w.t.Helper()
	names, err := w.Names()
	if err != nil {
		w.t.Fatal(err)
	}
	return names
}

// An heirProcess is one heir at work.
type heirProcess struct {
	*warden
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// start starts an heir; in is the command that leads to where it is to run.
func (w *warden) start(will will, in ...string) *heirProcess {
	w.t.Helper()
	argv, env, files, err := w.Launch(os.Args[0])
	if err != nil {
		w.t.Fatal(err)
	}
	argv = append(in, argv...)
	h := &heirProcess{warden: w, cmd: exec.Command(argv[0], argv[1:]...)}
	h.cmd.Env = append(append(os.Environ(), heirVariable+"=1"), env...)
	h.cmd.ExtraFiles, h.cmd.Stderr = files, w.log
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		w.t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	h.out = bufio.NewReader(out)
	if err := h.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	if err := gob.NewEncoder(h.in).Encode(will); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(h.kill)
	return h
}

// ready waits until the heir moves packets, and returns its port.
func (h *heirProcess) ready() (port uint16) {
	h.t.Helper()
	line, err := h.out.ReadString('\n')
	if n, _ := fmt.Sscanf(line, "port %d", &port); n != 1 {
		h.t.Fatalf("the heir says %q, %v", line, err)
	}
	return port
}

// tell gives the heir an order.
func (h *heirProcess) tell(order string) {
	h.t.Helper()
	if _, err := fmt.Fprintln(h.in, order); err != nil {
		h.t.Fatal(err)
	}
}

// wait waits until the heir has ended by itself.
func (h *heirProcess) wait() {
	h.t.Helper()
	if err := h.cmd.Wait(); err != nil {
		h.t.Fatalf("the heir ended with %v", err)
	}
}

// kill ends the heir at whatever instruction it is.
func (h *heirProcess) kill() {
	if h.cmd.ProcessState == nil {
		h.cmd.Process.Kill()
		h.cmd.Wait()
	}
	h.in.Close()
}
