package netlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// helperVar makes the test binary a laboratory that waits to be killed.
const helperVar = "NETLAB_TEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperVar) != "" {
		os.Exit(waitToBeKilled())
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must happen; a machine that does
// other things too stops all of it for seconds.
const patience = time.Minute

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

func durations(list []int) []time.Duration {
	var ds []time.Duration
	for _, n := range list {
		ds = append(ds, ms(n))
	}
	return ds
}

// within is a context for one wait of a test.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// pair is two hosts on one wire, 10.0.0.1 and .2, fd00::1 and ::2.
func pair(t *testing.T, im Impairment) (lab *Lab, a, b *Host, w *Wire) {
	t.Helper()
	lab = ForTest(t)
	a, b = must(lab.Host("a"))(t), must(lab.Host("b"))(t)
	w = must(lab.Wire(a, "eth0", b, "eth0", im))(t)
	check(t, a.SetAddr("eth0", "10.0.0.1/24", "fd00::1/64"), b.SetAddr("eth0", "10.0.0.2/24", "fd00::2/64"))
	return lab, a, b, w
}

// exchange sends n numbered datagrams from a to b, one every gap, and returns
// the numbers as they come, until none does after the last was sent: twice,
// since this process may have been asleep while the time ran out.
func exchange(t *testing.T, a, b *Host, n int, gap time.Duration) []int {
	t.Helper()
	in := must(b.ListenUDP("10.0.0.2:7000"))(t)
	defer in.Close()
	out := must(a.ListenUDP("10.0.0.1:0"))(t)
	defer out.Close()
	go func() {
		tick := time.NewTicker(gap)
		defer tick.Stop()
		for i := range n {
			out.WriteToUDPAddrPort([]byte(fmt.Sprint(i)), ap("10.0.0.2:7000"))
			<-tick.C
		}
		in.SetReadDeadline(time.Now())
	}()
	var numbers []int
	buf := make([]byte, 100)
	for quiet := 0; ; {
		k, err := in.Read(buf)
		if err != nil {
			if quiet++; quiet > 2 {
				return numbers
			}
			in.SetReadDeadline(time.Now().Add(ms(250)))
			continue
		}
		var i int
		fmt.Sscan(string(buf[:k]), &i)
		numbers = append(numbers, i)
	}
}

// pingWithin pings until one takes no longer than most: a busy machine makes
// most of them late, but none early, which is why none may be below least.
func pingWithin(t *testing.T, h *Host, to string, least, most time.Duration) {
	t.Helper()
	ctx, best := within(t, patience), time.Hour
	for best > most {
		rtt, err := h.Ping(ctx, netip.MustParseAddr(to))
		if err != nil {
			t.Fatalf("best ping of %s = %v, want at most %v: %v", to, best, most, err)
		}
		best = min(best, rtt)
	}
	if best < least {
		t.Errorf("best ping of %s = %v, want at least %v", to, best, least)
	}
}

func TestWireDelay(t *testing.T) {
	_, a, _, w := pair(t, Impairment{Delay: ms(20)})
	pingWithin(t, a, "10.0.0.2", ms(40), ms(41))
	pingWithin(t, a, "fd00::2", ms(40), ms(41))
	w.Set(Impairment{})
	pingWithin(t, a, "10.0.0.2", 0, ms(1))
}

func TestWireLoses(t *testing.T) {
	_, a, b, w := pair(t, Impairment{Loss: 0.2, Seed: 11})
	numbers := exchange(t, a, b, 1000, time.Millisecond/2)
	if lost := 1000 - len(numbers); lost < 140 || lost > 260 { // five standard deviations
		t.Errorf("of 1000 packets %d are lost, want about 200", lost)
	}
	if c := w.Counters(AtoB); int(c.Lost) != 1000-len(numbers) {
		t.Errorf("counters = %+v, want %d lost", c, 1000-len(numbers))
	}
}

func TestWireReordersAndDoubles(t *testing.T) {
	_, a, b, _ := pair(t, Impairment{Reorder: 0.2, Duplicate: 0.1, Seed: 12})
	numbers := exchange(t, a, b, 1000, time.Millisecond/2)
	seen, late, highest := map[int]int{}, 0, -1
	for _, n := range numbers {
		if seen[n]++; n < highest {
			late++
		}
		highest = max(highest, n)
	}
	if doubled := len(numbers) - len(seen); len(seen) != 1000 || doubled < 50 || doubled > 150 {
		t.Errorf("%d different packets and %d doubled, want 1000 and about 100", len(seen), doubled)
	}
	if late < 140 {
		t.Errorf("%d packets are late, want about 200", late)
	}
}

func TestWireRate(t *testing.T) {
	lab, a, b, _ := pair(t, Impairment{Rate: 40e6})
	const size = 4 << 20
	ctx := within(t, patience)
	for rate, port := 0.0, uint16(7001); rate < 20; port++ { // a busy machine makes some rounds slow, but none fast
		start := time.Now()
		s, err := lab.Stream(ctx, a, b, netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), port), size, 1<<30)
		if err == nil {
			s.Release()
			err = s.Wait(ctx)
		}
		if err != nil {
			t.Fatalf("TCP over 40 Mbit/s carried %.1f Mbit/s, then: %v", rate, err)
		}
		if rate = size * 8 / time.Since(start).Seconds() / 1e6; rate > 41 {
			t.Fatalf("TCP over 40 Mbit/s carries %.1f Mbit/s", rate)
		}
	}
}

func TestWireCutAndRestore(t *testing.T) {
	_, a, b, w := pair(t, Impairment{Delay: ms(5)})
	to := must(b.Echo("10.0.0.2:0"))(t)
	p := must(a.Probe(to, ms(2)))(t)
	must(p.WaitAnswer(within(t, patience), p.Mark()))(t)

	w.Cut()
	cut := p.Mark()
	check(t, Poll(within(t, patience), time.Millisecond, func() (bool, error) { return p.Mark().sent > cut.sent, nil }))
	silent, cancel := context.WithTimeout(t.Context(), ms(100))
	defer cancel()
	if d, err := p.WaitAnswer(silent, cut); err == nil {
		t.Errorf("a probe sent over a cut wire is answered after %v", d)
	}
	w.Restore()
	restored := p.Mark()
	must(p.WaitAnswer(within(t, patience), restored))(t)
	start := time.Now() // what was lost before is not waited for
	if got := p.Since(t.Context(), restored, 2*patience); got.Lost > 0 || time.Since(start) > patience {
		t.Errorf("after Restore: %+v after %v, want nothing lost, at once", got, time.Since(start))
	}
	s := p.Between(cut, restored)
	if s.Lost == 0 || s.LongestGap < ms(100) { // how many there are is the machine's business
		t.Errorf("stats over a cut of 100 ms = %+v, want some lost and a gap of 100 ms", s)
	}
	// What was lost stays lost: nothing was kept on the wire.
	if c := w.Counters(AtoB); c.Cut == 0 {
		t.Errorf("counters = %+v, want some cut", c)
	}
}

func TestWireCarrier(t *testing.T) {
	_, a, _, w := pair(t, Impairment{})
	for _, up := range []bool{false, true} {
		check(t, w.SetCarrier(up))
		check(t, Poll(within(t, patience), time.Millisecond, func() (bool, error) {
			link, err := a.link("eth0")
			if err != nil {
				return false, err
			}
			return link.Attrs().RawFlags&syscall.IFF_RUNNING != 0 == up, nil
		}))
	}
}

// tcpPair connects a to b over TCP.
func tcpPair(t *testing.T, a, b *Host, addr string) (client, server net.Conn) {
	t.Helper()
	var l net.Listener
	check(t, b.Do(func() (err error) { l, err = net.Listen("tcp", addr); return err }))
	defer l.Close()
	client = must(a.DialTCP(within(t, patience), ap(addr)))(t)
	server = must(l.Accept())(t)
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func TestResetTCP(t *testing.T) {
	for _, addr := range []string{"10.0.0.2:443", "[fd00::2]:443"} {
		t.Run(addr, func(t *testing.T) {
			_, a, b, w := pair(t, Impairment{Delay: ms(1)})
			over, overServer := tcpPair(t, a, b, addr) // ended in good order: does not count
			over.Close()
			must(overServer.Read(make([]byte, 1)))
			overServer.Close()
			client, server := tcpPair(t, a, b, addr)
			other, otherServer := tcpPair(t, a, b, strings.Replace(addr, "443", "80", 1))
			client.Write([]byte("ping"))
			must(io.ReadFull(server, make([]byte, 4)))(t)
			server.Write(make([]byte, 10000))
			must(io.ReadFull(client, make([]byte, 10000)))(t)
			if conns := must(a.Conns(443))(t); len(conns) != 1 || conns[0].Remote != ap(addr) {
				t.Errorf("Conns(443) = %v, want one to %s", conns, addr)
			}

			if n := w.ResetTCP(443); n != 1 {
				t.Fatalf("ResetTCP(443) = %d connections, want 1", n)
			}
			for name, conn := range map[string]net.Conn{"client": client, "server": server} {
				conn.SetReadDeadline(time.Now().Add(patience))
				if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("%s reads: %v, want connection reset", name, err)
				}
			}
			if conns := must(a.Conns(443))(t); len(conns) != 0 {
				t.Errorf("Conns(443) after the reset = %v, want none", conns)
			}
			other.Write([]byte("x"))
			must(io.ReadFull(otherServer, make([]byte, 1)))(t)
			if n := w.ResetTCP(443); n != 0 {
				t.Errorf("ResetTCP(443) again = %d connections, want 0", n)
			}
		})
	}
}

func TestDropTCP(t *testing.T) {
	_, a, b, w := pair(t, Impairment{})
	client, server := tcpPair(t, a, b, "10.0.0.2:443")
	to := must(b.Echo("10.0.0.2:443"))(t)
	w.DropTCP(443, true)
	client.Write([]byte("x"))
	server.SetReadDeadline(time.Now().Add(ms(100)))
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read over dropped TCP: %v, want a timeout", err)
	}
	p := must(a.Probe(to, ms(5)))(t)
	must(p.WaitAnswer(within(t, patience), p.Mark()))(t) // UDP of the same port passes

	w.DropTCP(443, false)
	server.SetReadDeadline(time.Now().Add(patience))
	must(server.Read(make([]byte, 1)))(t) // retransmitted
}

func TestWireCloseRemovesInterfaces(t *testing.T) {
	_, a, b, w := pair(t, Impairment{})
	check(t, w.Close(), w.Close())
	if a.HasInterface("eth0") || b.HasInterface("eth0") {
		t.Error("an interface is still there after its wire was closed")
	}
	if n := w.ResetTCP(443); n != 0 { // harmless
		t.Errorf("ResetTCP on a closed wire = %d", n)
	}
}

func TestTapAndPcap(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(PcapVar, dir)
	_, a, b, w := pair(t, Impairment{})
	seen := make(chan packet, 100)
	w.Tap(func(d Direction, frame []byte) {
		if p, ok := parse(append([]byte(nil), frame...)); ok && p.proto == protoUDP && d == AtoB {
			select {
			case seen <- p:
			default:
			}
		}
	})
	exchange(t, a, b, 1, ms(1))
	select {
	case p := <-seen:
		if p.dst != ap("10.0.0.2:7000") || string(p.payload[8:]) != "0" {
			t.Errorf("tapped packet = %+v", p)
		}
	case <-time.After(patience):
		t.Error("the tap saw nothing")
	}
	w.Close()
	b0, err := os.ReadFile(filepath.Join(dir, w.Name()+".pcap"))
	if err != nil || len(b0) < 24+16+43 || string(b0[:4]) != "\xd4\xc3\xb2\xa1" {
		t.Errorf("capture of %d octets, %v, want a header and a frame", len(b0), err)
	}
}

func TestSetAddrAndRoutes(t *testing.T) {
	_, a, _, _ := pair(t, Impairment{})
	check(t, a.DefaultRoute("10.0.0.2"), a.Route("10.9.0.0/16", "10.0.0.2"))
	if got := fmt.Sprint(must(a.Routes("eth0"))(t)); !strings.Contains(got, "10.9.0.0/16") || !strings.Contains(got, "0.0.0.0/0") {
		t.Errorf("Routes = %v, want 10.9.0.0/16 and the default", got)
	}
	check(t, a.SetAddr("eth0", "10.0.0.3/24"))
	if got := must(a.Addrs("eth0"))(t); len(got) != 1 || got[0].String() != "10.0.0.3/24" {
		t.Errorf("Addrs = %v, want 10.0.0.3/24 alone", got)
	}
	check(t, a.DefaultRoute("10.0.0.2"), a.DefaultRoute("10.0.0.1")) // replaced
	if n := must(a.Rules())(t); n != 0 {
		t.Errorf("Rules() = %d on a new host, want 0", n)
	}
	for _, err := range []error{
		a.SetAddr("eth9", "10.0.0.1/24"), a.SetAddr("eth0", "10.0.0.1"), a.DefaultRoute("x"), a.Route("10.0.0.0/8", "nowhere"),
	} {
		if err == nil || !strings.Contains(err.Error(), "host a: ") {
			t.Errorf("err = %v, want one that names the host", err)
		}
	}
}

func TestVeth(t *testing.T) {
	lab := ForTest(t)
	a, b := must(lab.Host("a"))(t), must(lab.Host("b"))(t)
	check(t, lab.Veth(a, "veth0", b, "veth0"), a.SetAddr("veth0", "10.0.0.1/24"), b.SetAddr("veth0", "10.0.0.2/24"))
	must(a.Ping(within(t, patience), netip.MustParseAddr("10.0.0.2")))(t)
}

func TestDoReturnsToItsNamespace(t *testing.T) {
	_, a, b, _ := pair(t, Impairment{})
	here := must(os.Readlink("/proc/thread-self/ns/net"))(t)
	var inA, inB, back string
	check(t, a.Do(func() error {
		inA, _ = os.Readlink("/proc/thread-self/ns/net")
		if err := b.Do(func() error { inB, _ = os.Readlink("/proc/thread-self/ns/net"); return nil }); err != nil {
			return err
		}
		back, _ = os.Readlink("/proc/thread-self/ns/net")
		return nil
	}))
	after := must(os.Readlink("/proc/thread-self/ns/net"))(t)
	if inA == here || inB == here || inA == inB || back != inA || after != here {
		t.Errorf("namespaces: here %s, in a %s, in b %s, back in a %s, after %s", here, inA, inB, back, after)
	}
}

// natLab is a host behind a NAT, and a server outside.
func natLab(t *testing.T) (lab *Lab, inside, server *Host, nat *NAT) {
	t.Helper()
	lab = ForTest(t)
	inside, router := must(lab.Host("inside"))(t), must(lab.Host("nat"))(t)
	server = must(lab.Host("server"))(t)
	must(lab.Wire(inside, "eth0", router, "lan", Impairment{}))(t)
	must(lab.Wire(router, "wan", server, "eth0", Impairment{}))(t)
	check(t, inside.SetAddr("eth0", "192.168.1.10/24"), router.SetAddr("lan", "192.168.1.1/24"),
		router.SetAddr("wan", "198.51.100.2/24"), server.SetAddr("eth0", "198.51.100.1/24"),
		inside.DefaultRoute("192.168.1.1"))
	return lab, inside, server, must(lab.NAT(router, "wan"))(t)
}

func TestNAT(t *testing.T) {
	_, inside, server, nat := natLab(t)
	outer := must(server.ListenUDP("198.51.100.1:53"))(t)
	defer outer.Close()
	inner := must(inside.ListenUDP("192.168.1.10:4000"))(t)
	defer inner.Close()
	source := func() netip.AddrPort {
		t.Helper()
		inner.WriteToUDPAddrPort([]byte("x"), ap("198.51.100.1:53"))
		outer.SetReadDeadline(time.Now().Add(patience))
		_, from, err := outer.ReadFromUDPAddrPort(make([]byte, 10))
		check(t, err)
		return from
	}
	arrives := func(to netip.AddrPort, wait time.Duration) bool {
		outer.WriteToUDPAddrPort([]byte("y"), to)
		inner.SetReadDeadline(time.Now().Add(wait))
		_, err := inner.Read(make([]byte, 10))
		return err == nil
	}
	first := source()
	if first.Addr() != netip.MustParseAddr("198.51.100.2") || first != source() || !arrives(first, patience) {
		t.Fatalf("mapping %v: want 198.51.100.2, the same for each packet, and answers to come in", first)
	}
	check(t, nat.Rebind())
	if arrives(first, ms(100)) {
		t.Error("after Rebind a packet to the old mapping still arrives")
	}
	second := source()
	if second.Addr() != first.Addr() || second.Port() == first.Port() || !arrives(second, patience) {
		t.Errorf("mapping after Rebind = %v, before %v: want the same address with another port", second, first)
	}
	check(t, nat.SetOutside("198.51.100.1", "198.51.100.77/24"))
	if third := source(); third.Addr() != netip.MustParseAddr("198.51.100.77") {
		t.Errorf("mapping after a change of address = %v, want 198.51.100.77", third)
	}
}

func TestProbeAndStream(t *testing.T) {
	lab, a, b, _ := pair(t, Impairment{Delay: ms(2), Loss: 0.01, Seed: 3})
	to := must(b.Echo("[fd00::2]:0"))(t)
	p := must(a.Probe(to, ms(1)))(t)
	from := p.Mark()
	s := must(lab.Stream(within(t, patience), a, b, ap("[fd00::2]:7002"), 2<<20, 8<<20))(t)
	check(t, s.Alive(within(t, patience)))
	early, cancel := context.WithTimeout(t.Context(), ms(500))
	defer cancel()
	if err := s.Wait(early); err == nil {
		t.Error("a stream that was not released came to its end")
	}
	s.Release()
	s.SetRate(1 << 30)
	check(t, s.Wait(within(t, patience)))
	if s.Received() != s.Size() {
		t.Errorf("Received() = %d, want %d", s.Received(), s.Size())
	}
	check(t, Poll(within(t, patience), ms(5), func() (bool, error) { return p.Mark().sent > from.sent+300, nil }))
	if got := p.Since(t.Context(), from, 3*time.Second); got.Sent < 100 || got.Lost == 0 || got.Lost > got.Sent/10 {
		t.Errorf("stats = %+v, want some hundred sent and about 2 %% lost", got)
	}
}

func TestStreamDies(t *testing.T) {
	lab, a, b, w := pair(t, Impairment{})
	s := must(lab.Stream(within(t, patience), a, b, ap("10.0.0.2:7003"), 64<<20, 1<<20))(t)
	check(t, s.Alive(within(t, patience)))
	w.ResetTCP(7003)
	if err := s.Wait(within(t, patience)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a stream after a reset: err = %v, want connection reset", err)
	}
	if err := s.Alive(within(t, patience)); err == nil {
		t.Error("a dead stream is alive")
	}
}

func TestProcess(t *testing.T) {
	lab := ForTest(t)
	h := must(lab.Host("h"))(t)
	p := must(h.Start("sleeper", "/bin/sh", "-c", "echo $0 begins; exec sleep 1000", "sleeper"))(t)
	check(t, p.Freeze())
	if state := must(procState(p.PID()))(t); state != 'T' || !p.Running() {
		t.Errorf("frozen process: state %c, running %v", state, p.Running())
	}
	check(t, p.Thaw(), p.Kill9())
	if p.Running() || p.Wait(t.Context()) == nil {
		t.Errorf("after Kill9: running %v, Wait = nil, want an error", p.Running())
	}
	if err := p.Freeze(); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Freeze of a dead process: %v, want %v", err, os.ErrProcessDone)
	}

	good := must(h.Start("good", "/bin/sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done"))(t)
	check(t, Poll(within(t, patience), ms(5), func() (bool, error) {
		return strings.Contains(lab.LogTails(5), "\nready\n"), nil
	}))
	check(t, good.Stop())
	bad := must(h.Start("bad", "/bin/sh", "-c", "echo 'panic: at the disco'; exit 2"))(t)
	if err := bad.Wait(within(t, patience)); err == nil || !strings.Contains(err.Error(), "bad on h: exit status 2") {
		t.Errorf("Wait = %v, want exit status 2 of bad on h", err)
	}
	if crashes := lab.Crashes(); len(crashes) != 1 || !strings.HasSuffix(crashes[0], "h/bad.log: panic: at the disco") {
		t.Errorf("Crashes() = %q, want the one of bad", crashes)
	}
}

func TestRun(t *testing.T) {
	lab := ForTest(t)
	h := must(lab.Host("h"))(t)
	// The child must see the host's namespace: lo and nothing else.
	out := must(h.Run(t.Context(), "in", "/bin/sh", "-c", "cat; tail -n +3 /proc/net/dev | cut -d: -f1"))(t)
	if out != "in    lo\n" {
		t.Errorf("Run = %q, want the input and one interface, lo", out)
	}
	_, err := h.Run(t.Context(), "", "/bin/sh", "-c", "echo no >&2; exit 4")
	if exit, ok := errors.AsType[*ExitError](err); !ok || exit.Status != 4 || exit.Stderr != "no\n" {
		t.Errorf("Run = %v, want exit status 4 with its stderr", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), ms(50))
	defer cancel()
	if _, err := h.Run(ctx, "", "/bin/sleep", "1000"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run past its deadline: %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestClose(t *testing.T) {
	Require(t)
	lab := must(New(Options{}))(t)
	h := must(lab.Host("h"))(t)
	p := must(h.Start("sleeper", "/bin/sleep", "1000"))(t)
	check(t, p.Freeze()) // a frozen one ends too
	check(t, lab.Close(), lab.Close())
	if p.Running() {
		t.Error("a process runs on after Close")
	}
	if _, err := os.Stat(lab.Dir()); !os.IsNotExist(err) {
		t.Errorf("the directory after Close: %v, want it gone", err)
	}
	if err := h.Do(func() error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("Do after Close = %v, want %v", err, ErrClosed)
	}
	if _, err := h.Start("x", "/bin/true"); !errors.Is(err, ErrClosed) {
		t.Errorf("Start after Close = %v, want %v", err, ErrClosed)
	}
}

func TestPicture(t *testing.T) {
	lab, inside, _, _ := natLab(t)
	must(inside.Start("node", "/bin/sleep", "1000"))(t)
	got := lab.Picture()
	for _, want := range []string{
		"inside  node pid ", " runs, default via 192.168.1.1\n",
		"├─ eth0  192.168.1.10/24 ═══ 192.168.1.1/24  lan of nat\n",
		"│    nat  masquerades out of wan, ports 20000-20999\n",
		"│    │    server\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the picture has no %q:\n%s", want, got)
		}
	}
}
