package interop

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/rpc"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
	"tunneld/internal/tunnel/engine/native"
	"tunneld/internal/tunnel/engine/reference"
)

// Sockets and interfaces belong to the namespace of the thread that made them,
// and a Go program has many threads. So each host of a test is a process of
// its own in a namespace of its own: this test binary, told by an environment
// variable to be a node, and then what to do over its standard input.
const nodeVariable = "TUNNELD_ENGINE_NODE"

func TestMain(m *testing.M) {
	if os.Getenv(nodeVariable) != "" {
		serveNode()
		return
	}
	os.Exit(runTests(m))
}

// runTests runs several tests at a time, more than there are processors: mostly
// they wait.
func runTests(m *testing.M) int {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == fmt.Sprint(runtime.GOMAXPROCS(0)) {
		f.Value.Set("4")
	}
	defer built.remove()
	return m.Run()
}

// Node is the engine of another process, as net/rpc sees it.
type Node struct {
	before  goleak.Option // the goroutines there were before the engine
	engine  engine.Engine
	devices map[string]engine.Device
	relay   *relay
}

// Args are the arguments of all methods of Node.
type Args struct {
	Kind      string // of engine: native or reference
	Device    string
	Listen    netip.AddrPort
	Mark      uint32
	MTU       int
	Key       []byte
	Session   Session
	ID        session.ID
	Gate      engine.Gate
	Direction engine.Direction
	Rx, Tx    engine.Rate
	Prefixes  []netip.Prefix
	Addr      netip.AddrPort
	Fresh     bool
	Plain     bool // no offloads
	Size      int
	Delay     time.Duration
	Drop      drops
}

// Session is an engine.Session that can be sent, secrets included.
type Session struct {
	ID         session.ID
	PeerKey    engine.PublicKey
	PSK        []byte
	AllowedIPs []netip.Prefix
	Endpoint   netip.AddrPort
	Keepalive  time.Duration
	Gate       engine.Gate
	Direction  engine.Direction
	Responder  bool
}

type stdio struct {
	io.Reader
	io.Writer
}

func (stdio) Close() error { return nil }

func serveNode() {
	s := rpc.NewServer()
	if err := s.Register(&Node{devices: make(map[string]engine.Device)}); err != nil {
		panic(err)
	}
	s.ServeConn(stdio{os.Stdin, os.Stdout})
}

func (n *Node) Start(a Args, port *uint16) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	n.before = goleak.IgnoreCurrent()
	var err error
	switch a.Kind {
	case "native":
		c := native.Config{Listen: a.Listen, Mark: a.Mark, NoOffload: a.Plain, Log: log}
		if err := inherit(&c); err != nil {
			return err
		}
		n.engine, err = native.New(c)
	case "reference":
		n.engine, err = reference.New(reference.Config{Listen: a.Listen, Mark: a.Mark, Log: log})
	default:
		err = fmt.Errorf("no engine %q", a.Kind)
	}
	if err != nil {
		return err
	}
	*port = n.engine.Port()
	return nil
}

func (n *Node) Open(a Args, _ *struct{}) error {
	d, err := n.engine.Open(engine.DeviceConfig{Interface: a.Device, MTU: a.MTU})
	if err != nil {
		return err
	}
	n.devices[a.Device] = d
	return d.SetPrivateKey(secret.New(a.Key))
}

func (n *Node) SetPrivateKey(a Args, _ *struct{}) error {
	return n.devices[a.Device].SetPrivateKey(secret.New(a.Key))
}

func (n *Node) Add(a Args, _ *struct{}) error {
	s := engine.Session{
		ID: a.Session.ID, PeerKey: a.Session.PeerKey, AllowedIPs: a.Session.AllowedIPs, Endpoint: a.Session.Endpoint,
		Keepalive: a.Session.Keepalive, Gate: a.Session.Gate, Direction: a.Session.Direction, Responder: a.Session.Responder,
	}
	if len(a.Session.PSK) > 0 {
		s.PresharedKey = secret.New(a.Session.PSK)
	}
	return n.devices[a.Device].Add(s)
}

func (n *Node) SetAllowedIPs(a Args, _ *struct{}) error {
	return n.devices[a.Device].SetAllowedIPs(a.ID, a.Prefixes)
}

func (n *Node) SetGate(a Args, _ *struct{}) error { return n.devices[a.Device].SetGate(a.ID, a.Gate) }

func (n *Node) SetDirection(a Args, _ *struct{}) error {
	return n.devices[a.Device].SetDirection(a.ID, a.Direction)
}

func (n *Node) SetRates(a Args, _ *struct{}) error {
	return n.devices[a.Device].SetRates(a.ID, a.Rx, a.Tx)
}

func (n *Node) SetPresharedKey(a Args, _ *struct{}) error {
	return n.devices[a.Device].SetPresharedKey(a.ID, secret.New(a.Session.PSK))
}

func (n *Node) SetEndpoint(a Args, _ *struct{}) error {
	return n.devices[a.Device].SetEndpoint(a.ID, a.Addr)
}

func (n *Node) Remove(a Args, _ *struct{}) error { return n.devices[a.Device].Remove(a.ID) }

func (n *Node) Handshake(a Args, _ *struct{}) error {
	return n.devices[a.Device].Handshake(a.ID, a.Fresh)
}

// PeerRestarted says that the peer has kept nothing.
func (n *Node) PeerRestarted(a Args, _ *struct{}) error {
	return n.devices[a.Device].PeerRestarted(a.ID, nil)
}

func (n *Node) Probe(a Args, _ *struct{}) error { return n.devices[a.Device].Probe(a.ID) }

func (n *Node) Stats(a Args, s *engine.Stats) (err error) {
	*s, err = n.devices[a.Device].Stats(a.ID)
	return err
}

func (n *Node) PathChanged(Args, *struct{}) error {
	n.engine.PathChanged()
	return nil
}

func (n *Node) CloseDevice(a Args, _ *struct{}) error { return n.devices[a.Device].Close() }

func (n *Node) Close(Args, *struct{}) error { return n.engine.Close() }

// Leaks names goroutines that are left of the engine.
func (n *Node) Leaks(Args, *struct{}) error {
	if err := n.engine.Close(); err != nil {
		return err
	}
	return goleak.Find(n.before, goleak.IgnoreTopFunction("net/rpc.(*Server).ServeCodec"), goleak.IgnoreAnyFunction("net/rpc.(*service).call"))
}

// A host is a namespace.
type host struct {
	t    *testing.T
	name string
}

var hostCount atomic.Int32

// newHost makes a namespace, which ends with the test.
func newHost(t *testing.T) host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces and TUN devices")
	}
	h := host{t, fmt.Sprintf("eng%d-%d", os.Getpid(), hostCount.Add(1))}
	h.outside("ip", "netns", "add", h.name)
	t.Cleanup(func() { h.outside("ip", "netns", "del", h.name) })
	h.run("ip", "link", "set", "lo", "up")
	return h
}

// outside runs a command where the test runs.
func (h host) outside(args ...string) string {
	h.t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// command makes a command that runs in the namespace.
func (h host) command(args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", h.name}, args...)...)
}

// run runs a command in the namespace; it must succeed.
func (h host) run(args ...string) string {
	h.t.Helper()
	return h.outside(append([]string{"ip", "netns", "exec", h.name}, args...)...)
}

// address gives an interface an address, and sets it up.
func (h host) address(dev string, addrs ...string) {
	h.t.Helper()
	for _, a := range addrs {
		args := []string{"ip", "addr", "add", a, "dev", dev}
		if strings.Contains(a, ":") {
			args = append(args, "nodad")
		}
		h.run(args...)
	}
	h.run("ip", "link", "set", dev, "up")
}

// ping sends n packets in one burst and returns how many were answered. After
// an answer ping(8) waits no longer than its interval for the next one, whatever
// -W says; so that is a second.
func (h host) ping(addr string, n int, more ...string) int {
	h.t.Helper()
	args := append([]string{"ping", "-n", "-i", "1", "-l", fmt.Sprint(n), "-W", "1", "-c", fmt.Sprint(n)}, more...)
	out, _ := h.command(append(args, addr)...).CombinedOutput() // its status says no more than its output
	var sent, got int
	for line := range strings.Lines(string(out)) {
		if _, err := fmt.Sscanf(line, "%d packets transmitted, %d received", &sent, &got); err == nil {
			return got
		}
	}
	h.t.Fatalf("ping %s: %s", addr, out)
	return 0
}

// wire joins two hosts: interface name at both, addresses .1 and .2.
func wire(a, b host, name, prefix4, prefix6 string) {
	a.t.Helper()
	a.outside("ip", "link", "add", name, "netns", a.name, "type", "veth", "peer", "name", name, "netns", b.name)
	a.address(name, prefix4+"1/24", prefix6+"1/64")
	b.address(name, prefix4+"2/24", prefix6+"2/64")
	a.awaitPing(prefix6 + "2")
	b.awaitPing(prefix6 + "1")
}

// awaitPing waits until an address answers. A fresh one of IPv6 hears no
// solicitation until the kernel has joined its multicast group, and who asked
// too soon asks again a second later.
func (h host) awaitPing(addr string) {
	h.t.Helper()
	for deadline := time.Now().Add(time.Minute); h.ping(addr, 1) == 0; {
		if time.Now().After(deadline) {
			h.t.Fatalf("%s does not answer", addr)
		}
	}
}

// A process is a Node in a host.
type process struct {
	host
	client *rpc.Client
	kind   string // of its engine
	plain  bool   // without offloads
	cmd    *exec.Cmd
	log    *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// start starts a node in the host, for an engine of that kind, by way of
// another program if one is named. It ends with the test; its log is shown if
// the test fails.
func (h host) start(kind string, program ...string) *process {
	h.t.Helper()
	return h.launch(kind, append(program, os.Args[0]), nil, nil)
}

// launch is start with all of the command, more environment, and descriptors
// from 3 on.
func (h host) launch(kind string, argv, env []string, files []*os.File) *process {
	h.t.Helper()
	p := &process{host: h, kind: kind, cmd: h.command(argv...), log: new(syncBuffer)}
	p.cmd.Env = append(append(os.Environ(), nodeVariable+"=1"), env...)
	p.cmd.Stderr, p.cmd.ExtraFiles = p.log, files
	in, err := p.cmd.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	p.client = rpc.NewClient(struct {
		io.Reader
		io.WriteCloser
	}{out, in})
	h.t.Cleanup(func() {
		p.kill()
		if h.t.Failed() {
			h.t.Logf("log of %s:\n%s", h.name, p.log)
		}
	})
	return p
}

// kill ends the node without a word to its engine.
func (p *process) kill() {
	if p.cmd.ProcessState == nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		p.client.Close()
	}
}

// try calls a method of the node.
func (p *process) try(method string, a Args) error {
	return p.client.Call("Node."+method, a, &struct{}{})
}

// call calls a method of the node; it must succeed.
func (p *process) call(method string, a Args) {
	p.t.Helper()
	if err := p.try(method, a); err != nil {
		p.t.Fatalf("%s on %s: %v", method, p.name, err)
	}
}

// engine starts the node's engine.
func (p *process) engine(listen string) uint16 {
	p.t.Helper()
	var port uint16
	if err := p.client.Call("Node.Start", Args{Kind: p.kind, Plain: p.plain, Listen: netip.MustParseAddrPort(listen)}, &port); err != nil {
		p.t.Fatalf("engine on %s: %v", p.name, err)
	}
	return port
}

func (p *process) stats(dev string, id session.ID) engine.Stats {
	p.t.Helper()
	var s engine.Stats
	if err := p.client.Call("Node.Stats", Args{Device: dev, ID: id}, &s); err != nil {
		p.t.Fatalf("stats on %s: %v", p.name, err)
	}
	return s
}

// An end is one interface of a node and one session on it.
type end struct {
	*process
	dev     string
	private []byte
	session Session
	mtu     int
}

func (e *end) open() {
	e.t.Helper()
	e.call("Open", Args{Device: e.dev, MTU: cmp.Or(e.mtu, 1420), Key: e.private})
	e.call("Add", Args{Device: e.dev, Session: e.session})
}

func (e *end) do(method string, a Args) {
	e.t.Helper()
	a.Device, a.ID = e.dev, e.session.ID
	e.call(method, a)
}

func (e *end) now() engine.Stats {
	e.t.Helper()
	return e.stats(e.dev, e.session.ID)
}

// await waits until ok is true of the counters.
func (e *end) await(what string, ok func(engine.Stats) bool) {
	e.t.Helper()
	enginetest.Eventually(e.t, what, func() bool { return ok(e.now()) })
}

// pair makes two ends of one session, dialler and gateway: interfaces, inner
// addresses 10.N.0.1 and .2, fdN::1 and ::2. The engines run already, the
// gateway's at the address to.
func pair(node, gateway *process, dev string, n int, to string, options ...func(node, gateway *end)) (a, b *end) {
	t := node.t
	t.Helper()
	id := session.NewID()
	privateA, publicA := enginetest.NewKey(t)
	privateB, publicB := enginetest.NewKey(t)
	psk := make([]byte, engine.KeySize)
	rand.Read(psk)
	inner := func(host int) []netip.Prefix {
		return enginetest.Prefixes(fmt.Sprintf("10.%d.0.%d/32", n, host), fmt.Sprintf("fd%02d::%d/128", n, host))
	}
	a = &end{process: node, dev: dev, private: privateA, session: Session{ID: id, PeerKey: publicB, PSK: psk, AllowedIPs: inner(2), Endpoint: netip.MustParseAddrPort(to), Gate: engine.Open}}
	b = &end{process: gateway, dev: dev, private: privateB, session: Session{ID: id, PeerKey: publicA, PSK: psk, AllowedIPs: inner(1), Gate: engine.Open, Responder: true}}
	for _, o := range options {
		o(a, b)
	}
	for i, e := range []*end{a, b} {
		e.open()
		e.address(dev, fmt.Sprintf("10.%d.0.%d/24", n, i+1), fmt.Sprintf("fd%02d::%d/64", n, i+1))
	}
	return a, b
}

// ofEach runs a test with each kind of engine.
func ofEach(t *testing.T, test func(t *testing.T, kind string)) {
	for _, kind := range []string{"native", "reference"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			test(t, kind)
		})
	}
}

// kinds are the engines of the two ends.
type kinds struct{ node, gateway string }

// each runs a test with all the engines that the two ends can have.
func each(t *testing.T, test func(t *testing.T, k kinds)) {
	for _, k := range []kinds{{"native", "native"}, {"native", "reference"}, {"reference", "native"}, {"reference", "reference"}} {
		t.Run(k.node+" to "+k.gateway, func(t *testing.T) {
			t.Parallel()
			test(t, k)
		})
	}
}

// hosts makes two hosts on one wire, with an engine on each.
func hosts(t *testing.T, k kinds) (node, gateway *process) {
	t.Helper()
	ha, hb := newHost(t), newHost(t)
	wire(ha, hb, "wire", "192.0.2.", "2001:db8::")
	node, gateway = ha.start(k.node), hb.start(k.gateway)
	node.engine("[::]:0")
	gateway.engine("[::]:443")
	return node, gateway
}

// errorIs reports whether the text of an error from a node names a sentinel.
func errorIs(err, sentinel error) bool {
	return errors.Is(err, sentinel) || err != nil && strings.Contains(err.Error(), sentinel.Error())
}
