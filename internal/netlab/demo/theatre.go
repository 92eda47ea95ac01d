package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"tunneld/internal/netlab"
)

// The plan of the stage. Private and documentation addresses throughout.
const plan = `
	alice.eth0  192.168.1.10/24 -- nat.lan     192.168.1.1/24
	nat.wan     198.51.100.2/24 -- inet.nat    198.51.100.1/24
	hq.eth0     203.0.113.1/24  -- inet.hq     203.0.113.254/24
	hq.lan      10.50.0.1/24    -- server.eth0 10.50.0.10/24
	branch.eth0 192.0.2.2/24    -- inet.branch 192.0.2.1/24
	branch.lan  10.20.0.1/24    -- desk.eth0   10.20.0.10/24

	alice  default 192.168.1.1
	nat    default 198.51.100.1
	hq     default 203.0.113.254
	branch default 192.0.2.1
	server default 10.50.0.1
	desk   default 10.20.0.1

	inet   forwards
	hq     forwards
	branch forwards
	nat    translates wan
`

const (
	network      = "office" // the network's name, and so the tunnels'
	branchPrefix = "10.20.0.0/24"
	port         = 443

	probeEvery   = 5 * time.Millisecond
	transferSize = 64 << 20
	transferRate = 3 << 19  // octets a second: 1.5 MiB, to last through all events
	transferRest = 20 << 20 // octets a second, once they are over

	patience  = 20 * time.Second // with whatever must happen
	roundTrip = 50 * time.Millisecond
)

var (
	server     = netip.MustParseAddr("10.50.0.10")
	desk       = netip.MustParseAddr("10.20.0.10")
	transferTo = netip.AddrPortFrom(server, 5001)
)

// theatre is the stage with everyone on it. One goroutine plays.
type theatre struct {
	lab    *netlab.Lab
	bin    netlab.Binaries
	say    *printer
	report *report
	net    *netlab.Net

	hq, alice, branch *netlab.Daemon
	probe             *netlab.Probe  // alice to the server
	stream            *netlab.Stream // the same way
}

func (t *theatre) play(ctx context.Context) error {
	for _, act := range []func(context.Context) error{
		t.build, t.enrolAlice, t.enrolBranch, t.timeUp, t.startTraffic, t.playEvents,
	} {
		if err := act(ctx); err != nil {
			return err
		}
	}
	return nil
}

// waiting is a context for one thing that must happen now.
func waiting(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, patience, fmt.Errorf("not within %v", patience))
}

// build makes the network and a gateway from nothing.
func (t *theatre) build(ctx context.Context) (err error) {
	if t.net, err = t.lab.Build(plan); err != nil {
		return err
	}
	t.say.line("8 hosts and 6 wires: alice behind NAT, a branch with a desk, a gateway hq with a server")
	t.hq = t.net.Hosts["hq"].Daemon(t.bin, "node")
	err = t.hq.Init(ctx, "--name", "hq", "--public", fmt.Sprintf("203.0.113.1:%d", port),
		"--network", network+"=10.77.0.0/16,fd77::/64", "--route", network+"=10.50.0.0/24")
	if err != nil {
		return err
	}
	// So that a connection that died without a word is noticed within the demo.
	if err := t.hq.Configure("[network.timers]\nhello = \"1s\"\n"); err != nil {
		return err
	}
	if err := t.start(ctx, t.hq); err != nil {
		return err
	}
	t.say.line("gateway from nothing: tunneld init, tunneld run")
	return nil
}

// start starts a daemon and waits until it answers.
func (t *theatre) start(ctx context.Context, d *netlab.Daemon) error {
	ctx, cancel := waiting(ctx)
	defer cancel()
	if err := d.Start(); err != nil {
		return err
	}
	return d.WaitReady(ctx)
}

// enrol makes a node from nothing on a host and has it join.
func (t *theatre) enrol(ctx context.Context, host string, invite ...string) (*netlab.Daemon, error) {
	d := t.net.Hosts[host].Daemon(t.bin, "node")
	if err := d.Init(ctx, "--name", host); err != nil {
		return nil, err
	}
	if err := t.start(ctx, d); err != nil {
		return nil, err
	}
	ctx, cancel := waiting(ctx)
	defer cancel()
	code, err := t.hq.Ctl(ctx, append([]string{"invite", host}, invite...)...)
	if err != nil {
		return nil, err
	}
	if _, err := d.CtlInput(ctx, code, "join", "-"); err != nil {
		return nil, err
	}
	if _, err := d.Ctl(ctx, "up", network); err != nil {
		return nil, err
	}
	status, err := d.Status(ctx)
	if err != nil {
		return nil, err
	}
	tunnel := status.Tunnel(network)
	t.say.line("%s joined and is up: %s on %s, session %s", host, strings.Join(tunnel.Addresses, " "), tunnel.Interface, tunnel.Session)
	return d, nil
}

func (t *theatre) enrolAlice(ctx context.Context) (err error) {
	if t.alice, err = t.enrol(ctx, "alice"); err != nil {
		return err
	}
	return t.ping(ctx, "alice", server, "the server behind the gateway")
}

func (t *theatre) enrolBranch(ctx context.Context) (err error) {
	if t.branch, err = t.enrol(ctx, "branch", "--advertise", branchPrefix); err != nil {
		return err
	}
	if err := t.ping(ctx, "desk", server, "the server, through branch and hq"); err != nil {
		return err
	}
	return t.ping(ctx, "server", desk, "the desk, through hq and branch")
}

func (t *theatre) ping(ctx context.Context, from string, to netip.Addr, what string) error {
	ctx, cancel := waiting(ctx)
	defer cancel()
	rtt, err := t.net.Hosts[from].Ping(ctx, to)
	if err != nil {
		return err
	}
	t.say.line("%s pings %v, %s: %.1f ms", from, to, what, ms(rtt))
	return nil
}

// timeUp measures the way from nothing to the first answer, on a short way and
// on a long one.
func (t *theatre) timeUp(ctx context.Context) error {
	echo, err := t.net.Hosts["server"].Echo(netip.AddrPortFrom(server, 7).String())
	if err != nil {
		return err
	}
	if t.probe, err = t.net.Hosts["alice"].Probe(echo, probeEvery); err != nil {
		return err
	}
	for _, rtt := range []time.Duration{0, roundTrip} {
		t.net.Wires["nat.wan"].Set(netlab.Impairment{Delay: rtt / 2})
		took, err := t.upAgain(ctx)
		if err != nil {
			return err
		}
		t.say.line("tunnelctl up to the first answered packet, %v round trip: %.0f ms", rtt, ms(took))
	}
	t.net.Wires["nat.wan"].Set(netlab.Impairment{})
	return nil
}

// upAgain takes alice's tunnel down and measures how long it takes to carry
// packets again.
func (t *theatre) upAgain(ctx context.Context) (time.Duration, error) {
	ctx, cancel := waiting(ctx)
	defer cancel()
	if _, err := t.alice.Ctl(ctx, "down", network); err != nil {
		return 0, err
	}
	begin := t.probe.Mark()
	if _, err := t.alice.Ctl(ctx, "up", network); err != nil {
		return 0, err
	}
	return t.probe.WaitAnswer(ctx, begin)
}

// startTraffic starts what has to outlive the events.
func (t *theatre) startTraffic(ctx context.Context) (err error) {
	ctx, cancel := waiting(ctx)
	defer cancel()
	t.stream, err = t.lab.Stream(ctx, t.net.Hosts["alice"], t.net.Hosts["server"], transferTo, transferSize, transferRate)
	if err != nil {
		return err
	}
	t.say.line("alice sends the server 64 MiB on one TCP connection, and a probe every %v", probeEvery)
	t.say.show(func() string {
		return fmt.Sprintf("transfer: %d of %d MiB", t.stream.Received()>>20, t.stream.Size()>>20)
	})
	return t.stream.Alive(ctx)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
