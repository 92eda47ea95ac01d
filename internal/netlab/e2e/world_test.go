package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tunneld/internal/netlab"
)

const (
	port    = 443
	office  = "office" // a network's name, and so a tunnel's
	patient = time.Minute

	probeEvery  = 5 * time.Millisecond
	lateAnswers = time.Second
)

// The usual stage: alice behind NAT, a gateway with a server behind it, a
// branch with a desk behind it.
const (
	roadPlan = `
		alice.eth0 192.168.1.10/24 -- nat.lan 192.168.1.1/24
		nat.wan 198.51.100.2/24 -- inet.nat 198.51.100.1/24
		alice default 192.168.1.1
		nat default 198.51.100.1
		nat translates wan
	` + gatewayPlan
	gatewayPlan = `
		hq.eth0 203.0.113.1/24 -- inet.hq 203.0.113.254/24
		hq.lan 10.50.0.1/24 fd50::1/64 -- server.eth0 10.50.0.10/24 fd50::10/64
		hq default 203.0.113.254
		server default 10.50.0.1
		server default fd50::1
		hq forwards
		inet forwards
	`
	branchPlan = `
		branch.eth0 192.0.2.2/24 -- inet.branch 192.0.2.1/24
		branch.lan 10.20.0.1/24 fd20::1/64 -- desk.eth0 10.20.0.10/24 fd20::10/64
		branch default 192.0.2.1
		desk default 10.20.0.1
		desk default fd20::1
		branch forwards
	`
)

var (
	server  = netip.MustParseAddr("10.50.0.10")
	server6 = netip.MustParseAddr("fd50::10")
	desk    = netip.MustParseAddr("10.20.0.10")
	desk6   = netip.MustParseAddr("fd20::10")

	officeInit = []string{"--name", "hq", "--public", "203.0.113.1:443", "--network", "office=10.77.0.0/16,fd77::/64",
		"--route", "office=10.50.0.0/24", "--route", "office=fd50::/64"}
)

// bin is set once, before any test runs.
var bin netlab.Binaries

// slots limits how many laboratories run at once, whatever -parallel says: each
// is several busy processes.
var slots = make(chan struct{}, 2)

func TestMain(m *testing.M) {
	if os.Getenv(triesVariable) != "" {
		tell()
		return
	}
	goleak.VerifyTestMain(built{m})
}

// built builds the commands before the tests, where tests can run, and removes
// them afterwards.
type built struct{ m *testing.M }

func (b built) Run() int {
	if netlab.Check() != nil {
		return b.m.Run() // each test says why it cannot
	}
	dir, err := os.MkdirTemp("", "e2e-")
	if err == nil {
		defer os.RemoveAll(dir)
		bin, err = netlab.Build(context.Background(), dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return b.m.Run()
}

// world is a laboratory with a gateway.
type world struct {
	t       *testing.T
	lab     *netlab.Lab
	net     *netlab.Net
	hq      *netlab.Daemon
	engines engines
}

// newStage makes a laboratory without daemons. The test runs beside others.
func newStage(t *testing.T, plan string) *world {
	t.Helper()
	netlab.Require(t)
	t.Parallel()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots }) // runs last
	w := &world{t: t, lab: netlab.ForTest(t), engines: chosen}
	t.Cleanup(func() {
		for _, crash := range w.lab.Crashes() {
			t.Errorf("a daemon crashed: %s", crash)
		}
	})
	n, err := w.lab.Build(plan)
	w.check(err)
	w.net = n
	return w
}

// newOffice makes a laboratory whose host hq runs a gateway for the network
// office. A transport that died without a word is noticed within seconds.
func newOffice(t *testing.T, plan string, init ...string) *world {
	t.Helper()
	w := newStage(t, plan)
	if init == nil {
		init = officeInit
	}
	w.hq = w.gateway("hq", "", init...)
	return w
}

// newMixedOffice is newOffice with these engines at the two ends.
func newMixedOffice(t *testing.T, plan string, e engines) *world {
	t.Helper()
	w := newStage(t, plan)
	w.engines = e
	w.hq = w.gateway("hq", "", officeInit...)
	return w
}

// gateway makes a gateway from nothing on a host and starts it. edit is more
// text for [[network]].
func (w *world) gateway(host, edit string, init ...string) *netlab.Daemon {
	w.t.Helper()
	d := w.net.Hosts[host].Daemon(bin, "node")
	w.check(d.Init(w.patience(), init...))
	if edit != "" {
		w.edit(d, "\n[[network]]\n", "\n[[network]]\n"+edit+"\n")
	}
	w.check(d.Configure("[network.timers]\nhello = \"1s\"\n"), d.Configure(dataSection(w.engines.gateway, "")))
	w.start(d)
	return d
}

// plain makes a node from nothing on a host and starts it.
func (w *world) plain(host string) *netlab.Daemon {
	w.t.Helper()
	d := w.net.Hosts[host].Daemon(bin, "node")
	w.check(d.Init(w.patience(), "--name", host), d.Configure(dataSection(w.engines.nodes, "")))
	w.start(d)
	return d
}

// node makes a node from nothing on a host and has it join hq; the tunnel is up.
func (w *world) node(host string, invite ...string) *netlab.Daemon {
	w.t.Helper()
	d := w.plain(host)
	w.join(w.hq, d, host, invite...)
	w.ctl(d, "up", office)
	return d
}

func (w *world) join(gateway, node *netlab.Daemon, name string, invite ...string) {
	w.t.Helper()
	code := w.ctl(gateway, append([]string{"invite", name}, invite...)...)
	_, err := node.CtlInput(w.patience(), code, "join", "-")
	w.check(err)
}

func (w *world) start(d *netlab.Daemon) {
	w.t.Helper()
	w.check(d.Start())
	w.check(d.WaitReady(w.patience()))
}

// reconfigured restarts hq with another text where its configuration had the old
// one.
func (w *world) reconfigured(old, text string) {
	w.t.Helper()
	w.check(w.hq.Process().Stop())
	w.edit(w.hq, old, text)
	w.start(w.hq)
}

// edit replaces the first old text in a node's configuration.
func (w *world) edit(d *netlab.Daemon, old, text string) {
	w.t.Helper()
	file := filepath.Join(d.Dir(), "tunneld.toml")
	b, err := os.ReadFile(file)
	w.check(err)
	if !bytes.Contains(b, []byte(old)) {
		w.t.Fatalf("no %q in the configuration", old)
	}
	w.check(os.WriteFile(file, bytes.Replace(b, []byte(old), []byte(text), 1), 0o600))
}

func (w *world) ctl(d *netlab.Daemon, args ...string) string {
	w.t.Helper()
	out, err := d.Ctl(w.patience(), args...)
	w.check(err)
	return out
}

// refused runs tunnelctl, which must end with the given exit status.
func (w *world) refused(d *netlab.Daemon, status int, args ...string) *netlab.ExitError {
	w.t.Helper()
	out, err := d.Ctl(w.patience(), args...)
	exit, ok := errors.AsType[*netlab.ExitError](err)
	if !ok || exit.Status != status {
		w.t.Fatalf("tunnelctl %q says %q, %v; want exit status %d", args, out, err, status)
	}
	return exit
}

func (w *world) check(errs ...error) {
	w.t.Helper()
	if err := errors.Join(errs...); err != nil {
		w.t.Fatal(err)
	}
}

// patience is a context for one thing that must happen.
func (w *world) patience() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), patient)
	w.t.Cleanup(cancel)
	return ctx
}

func (w *world) ping(from string, to ...netip.Addr) {
	w.t.Helper()
	for _, a := range to {
		_, err := w.net.Hosts[from].Ping(w.patience(), a)
		w.check(err)
	}
}

// probe starts probing the server from a host, and returns when the first
// answer has come.
func (w *world) probe(from string) *netlab.Probe {
	w.t.Helper()
	to, err := w.net.Hosts["server"].Echo(netip.AddrPortFrom(server, 7).String())
	w.check(err)
	p, err := w.net.Hosts[from].Probe(to, probeEvery)
	w.check(err)
	w.answered(p)
	return p
}

// answered waits until a datagram sent from now on is answered.
func (w *world) answered(p *netlab.Probe) {
	w.t.Helper()
	_, err := p.WaitAnswer(w.patience(), p.Mark())
	w.check(err)
}

// stream starts a TCP connection to the server that goes on until finish.
func (w *world) stream(from string) *netlab.Stream {
	w.t.Helper()
	s, err := w.lab.Stream(w.patience(), w.net.Hosts[from], w.net.Hosts["server"], netip.AddrPortFrom(server, 5001), 256<<20, 256<<10)
	w.check(err)
	w.check(s.Alive(w.patience()))
	return s
}

// established waits until node and gateway call the tunnel's session
// established, and returns how each sees it.
func (w *world) established(d *netlab.Daemon) (netlab.TunnelStatus, netlab.SessionStatus) {
	w.t.Helper()
	return w.resumed(d, 0)
}

// resumed is established for a session that was resumed at least n times.
func (w *world) resumed(d *netlab.Daemon, n uint64) (netlab.TunnelStatus, netlab.SessionStatus) {
	w.t.Helper()
	tunnel, err := d.WaitTunnel(w.patience(), office, netlab.Established, func(s netlab.TunnelStatus) bool {
		return s.State == netlab.Established
	})
	w.check(err)
	s := w.session(fmt.Sprintf("established and resumed %d times", n), func(s netlab.SessionStatus) bool {
		return s.Session == tunnel.Session && s.State == netlab.Established && s.Resumes >= n
	})
	return tunnel, s
}

// session waits until hq has a session of which ok is true, and returns it.
func (w *world) session(what string, ok func(netlab.SessionStatus) bool) (s netlab.SessionStatus) {
	w.t.Helper()
	_, err := w.hq.WaitSessions(w.patience(), what, func(list []netlab.SessionStatus) bool {
		i := slices.IndexFunc(list, ok)
		if i >= 0 {
			s = list[i]
		}
		return i >= 0
	})
	w.check(err)
	return s
}

// gone waits until hq has no session of that UUID.
func (w *world) gone(id string) {
	w.t.Helper()
	_, err := w.hq.WaitSessions(w.patience(), "without session "+id, func(list []netlab.SessionStatus) bool {
		return !slices.ContainsFunc(list, func(s netlab.SessionStatus) bool { return s.Session == id })
	})
	w.check(err)
}

// same compares a session with what it was: everything that a resume keeps.
func (w *world) same(before, after netlab.TunnelStatus) {
	w.t.Helper()
	if after.Session != before.Session || !slices.Equal(after.Addresses, before.Addresses) || after.Interface != before.Interface {
		w.t.Errorf("session %s with %v on %s is now %s with %v on %s",
			before.Session, before.Addresses, before.Interface, after.Session, after.Addresses, after.Interface)
	}
}

// renewed compares a session with the one before it: another UUID, the same
// addresses.
func (w *world) renewed(before, after netlab.TunnelStatus) {
	w.t.Helper()
	if after.Session == before.Session || !slices.Equal(after.Addresses, before.Addresses) {
		w.t.Errorf("after session %s with %v comes %s with %v, want a new UUID and the same addresses",
			before.Session, before.Addresses, after.Session, after.Addresses)
	}
}
