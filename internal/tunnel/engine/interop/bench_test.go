package interop

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tunneld/internal/tunnel/engine/enginetest"
)

// benchVariable, set to a number of rounds, has TestBesideWireGuardGo compare.
// With profileVariable, each of our ends writes a CPU profile into that
// directory.
const (
	benchVariable   = "TUNNELD_ENGINE_BENCH"
	profileVariable = "TUNNELD_ENGINE_PROFILE"
)

// TestBesideWireGuardGo measures our engine and wireguard-go's program by turns
// over one wire, and prints the ratios of each round's pair. Absolute figures
// mean nothing on a machine that does other things.
func TestBesideWireGuardGo(t *testing.T) {
	rounds, _ := strconv.Atoi(os.Getenv(benchVariable))
	if rounds == 0 {
		return // a measurement, for who asks for it
	}
	left, right := newHost(t), newHost(t)
	wire(left, right, "wire", "192.0.2.", "2001:db8::")
	ours, theirs := benchNative(t, left, right), benchStock(t, left, right)
	client, server := left.start("native"), right.start("native")
	server.call("Serve", Args{})
	iperf := right.command("iperf3", "-s")
	if err := iperf.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		iperf.Process.Kill()
		iperf.Wait()
	}()
	enginetest.Eventually(t, "iperf3 listens", func() bool { return ours.tcp(left, 1, 1) > 0 && theirs.tcp(left, 1, 1) > 0 })
	only := os.Getenv("TUNNELD_ENGINE_FIGURE")
	for _, f := range []struct {
		name string
		take func(subject) float64
	}{
		{"TCP 1 stream, Mbit/s", func(s subject) float64 { return s.tcp(left, 1, 2) }},
		{"TCP 4 streams, Mbit/s", func(s subject) float64 { return s.tcp(left, 4, 2) }},
		{"CPU seconds per GB of TCP", func(s subject) float64 {
			before := s.cpu(t)
			rate := s.tcp(left, 1, 2)
			return (s.cpu(t) - before) / (rate * 2 / 8 / 1000)
		}},
		{"UDP 64 B flood, received/s", func(s subject) float64 { return flood(client, server, s.addr, 64, 2*time.Second) }},
		{"UDP 1200 B flood, received/s", func(s subject) float64 { return flood(client, server, s.addr, 1200, 2*time.Second) }},
		{"ping p50, µs", func(s subject) float64 { return client.roundTrip(s.addr, 300) }},
		{"ping p50 under TCP, µs", func(s subject) float64 {
			done := make(chan float64)
			go func() { done <- s.tcp(left, 1, 2) }()
			defer func() { <-done }()
			return client.roundTrip(s.addr, 300)
		}},
	} {
		if only != "" && !strings.Contains(f.name, only) {
			continue
		}
		var ratios, a, b []float64
		for round := range rounds {
			var v [2]float64
			for i := range v {
				which := (i + round) % 2 // who is first changes with each round
				v[which] = f.take([]subject{ours, theirs}[which])
			}
			a, b, ratios = append(a, v[0]), append(b, v[1]), append(ratios, v[0]/v[1])
		}
		if os.Getenv("TUNNELD_ENGINE_VERBOSE") != "" {
			fmt.Printf("%v %v\n", a, b)
		}
		fmt.Printf("%-30s ours %10.6g  wireguard-go %10.6g  ratio %5.2f (%.2f to %.2f)\n", f.name, median(a), median(b), median(ratios), slices.Min(ratios), slices.Max(ratios))
	}
	fmt.Printf("memory, MiB: ours %.1f %.1f, wireguard-go %.1f %.1f\n", ours.memory(t, 0), ours.memory(t, 1), theirs.memory(t, 0), theirs.memory(t, 1))
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// A subject is a tunnel from the left host to the right.
type subject struct {
	addr string // of the right host inside
	pids [2]int // left, right
}

func benchNative(t *testing.T, left, right host) subject {
	kind := cmp.Or(os.Getenv("TUNNELD_ENGINE_KIND"), "native")
	a, b := left.start(kind), right.start(kind)
	a.engine("0.0.0.0:0")
	b.engine("0.0.0.0:443")
	pair(a, b, "tnl0", 1, "192.0.2.2:443")
	if dir := os.Getenv(profileVariable); dir != "" {
		for name, p := range map[string]*process{"left": a, "right": b} {
			file := filepath.Join(dir, name+".pprof")
			p.call("Profile", Args{Device: file})
			t.Cleanup(func() { p.try("EndProfile", Args{}) })
		}
	}
	left.ping("10.1.0.2", 3)
	return subject{"10.1.0.2", [2]int{a.pid(), b.pid()}}
}

func benchStock(t *testing.T, left, right host) subject {
	devs := [2]string{fmt.Sprintf("wgl%d", os.Getpid()), fmt.Sprintf("wgr%d", os.Getpid())}
	privateA, publicA := enginetest.NewKey(t)
	privateB, publicB := enginetest.NewKey(t)
	var s subject
	for i, e := range []struct {
		host    host
		private []byte
		peer    []string
	}{
		{left, privateA, []string{publicB.String(), "allowed-ips", "10.9.0.2/32", "endpoint", "192.0.2.2:5000"}},
		{right, privateB, []string{publicA.String(), "allowed-ips", "10.9.0.1/32"}},
	} {
		startStock(t, e.host, devs[i])
		e.host.run(append([]string{"wg", "set", devs[i], "private-key", keyFile(t, e.private), "listen-port", "5000", "peer"}, e.peer...)...)
		e.host.address(devs[i], fmt.Sprintf("10.9.0.%d/24", i+1))
		s.pids[i] = pidOf(t, devs[i])
	}
	left.ping("10.9.0.2", 3)
	s.addr = "10.9.0.2"
	return s
}

// pidOf finds the process with an argument.
func pidOf(t *testing.T, argument string) int {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		args := strings.Split(string(b), "\x00")
		if strings.HasSuffix(args[0], "wireguard-go") && slices.Contains(args, argument) {
			pid, _ := strconv.Atoi(strings.Split(f, "/")[2])
			return pid
		}
	}
	t.Fatalf("no process with argument %s", argument)
	return 0
}

// pid is the node's own: `ip netns exec` becomes what it starts.
func (p *process) pid() int { return p.cmd.Process.Pid }

// cpu is the seconds of both ends.
func (s subject) cpu(t *testing.T) (seconds float64) {
	for _, pid := range s.pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')'):]))
		user, _ := strconv.ParseFloat(f[12], 64)
		system, _ := strconv.ParseFloat(f[13], 64)
		seconds += (user + system) / 100
	}
	return seconds
}

func (s subject) memory(t *testing.T, i int) (mib float64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pids[i]))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &mib); n == 1 {
			return mib / 1024
		}
	}
	return 0
}

// tcp is what streams carry, in Mbit/s.
func (s subject) tcp(h host, streams, seconds int) float64 {
	out, err := h.command("iperf3", "-J", "-c", s.addr, "-P", strconv.Itoa(streams), "-t", strconv.Itoa(seconds)).Output()
	var answer struct {
		End struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err != nil || json.Unmarshal(out, &answer) != nil {
		h.t.Errorf("iperf3: %v: %s", err, out)
	}
	return answer.End.Received.BitsPerSecond / 1e6
}

// flood sends as fast as one thread can, and returns how many a second come.
func flood(client, server *process, addr string, size int, length time.Duration) float64 {
	var before, after uint64
	server.client.Call("Node.Received", Args{}, &before)
	start := time.Now()
	client.call("Flood", Args{Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), sinkPort), MTU: size, Session: Session{Keepalive: length}})
	took := time.Since(start)
	server.client.Call("Node.Received", Args{}, &after)
	return float64(after-before) / took.Seconds()
}

// roundTrip is the median of n small packets, in µs.
func (p *process) roundTrip(addr string, n int) float64 {
	var us float64
	if err := p.client.Call("Node.RoundTrip", Args{Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), echoPort), MTU: n}, &us); err != nil {
		p.t.Error(err)
	}
	return us
}

// Ports on the right host.
const echoPort, sinkPort = 7007, 9009

var sunk atomic.Uint64

// Serve starts what answers on the right host; it ends with the process.
func (n *Node) Serve(Args, *struct{}) error {
	echo, err := net.ListenUDP("udp4", &net.UDPAddr{Port: echoPort})
	if err != nil {
		return err
	}
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{Port: sinkPort})
	if err != nil {
		return err
	}
	sink.SetReadBuffer(4 << 20)
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := echo.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			echo.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	go func() {
		buf := make([]byte, 2048)
		for {
			if _, _, err := sink.ReadFromUDPAddrPort(buf); err != nil {
				return
			}
			sunk.Add(1)
		}
	}()
	return nil
}

// Received is how many packets the sink has had.
func (n *Node) Received(_ Args, count *uint64) error {
	*count = sunk.Load()
	return nil
}

// Flood sends packets of a.MTU octets for a.Session.Keepalive.
func (n *Node) Flood(a Args, _ *struct{}) error {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{})
	if err != nil {
		return err
	}
	defer c.Close()
	payload := make([]byte, a.MTU)
	for start := time.Now(); time.Since(start) < a.Session.Keepalive; {
		for range 64 { // between two looks at the clock
			c.WriteToUDPAddrPort(payload, a.Addr) // a full queue drops, as it may
		}
	}
	return nil
}

// RoundTrip is the median of a.MTU round trips, one at a time.
func (n *Node) RoundTrip(a Args, us *float64) error {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{})
	if err != nil {
		return err
	}
	defer c.Close()
	var trips []float64
	buf := make([]byte, 128)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for range a.MTU {
		<-tick.C
		start := time.Now()
		if _, err := c.WriteToUDPAddrPort(buf[:64], a.Addr); err != nil {
			return err
		}
		c.SetReadDeadline(start.Add(time.Second))
		if _, _, err := c.ReadFromUDPAddrPort(buf); err == nil {
			trips = append(trips, float64(time.Since(start))/1e3)
		}
	}
	if len(trips) < a.MTU/2 {
		return fmt.Errorf("%d of %d packets came back", len(trips), a.MTU)
	}
	*us = median(trips)
	return nil
}

// Profile writes a CPU profile to the file a.Device until EndProfile.
func (n *Node) Profile(a Args, _ *struct{}) error {
	f, err := os.Create(a.Device)
	if err != nil {
		return err
	}
	return pprof.StartCPUProfile(f)
}

// EndProfile ends it.
func (n *Node) EndProfile(Args, *struct{}) error {
	pprof.StopCPUProfile()
	return nil
}
