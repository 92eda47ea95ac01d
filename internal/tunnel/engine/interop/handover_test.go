package interop

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tunneld/internal/fdstore"
	"tunneld/internal/netlab/keeper"
	"tunneld/internal/tunnel/engine/enginetest"
	"tunneld/internal/tunnel/engine/native"
)

// inherit has the engine of a node go on with what the node was given.
func inherit(c *native.Config) error {
	store := fdstore.Open(os.Getenv)
	if store == nil {
		return nil
	}
	given, err := fdstore.Given(os.Getenv, os.Getpid())
	for _, f := range given {
		c.Inherited = append(c.Inherited, native.Descriptor(f))
	}
	c.Keeper, c.AllowSwap = store, true
	return err
}

// Settled says that all sessions were added.
func (n *Node) Settled(Args, *struct{}) error {
	n.engine.Settled()
	return nil
}

// HandOver ends the engine for the next one.
func (n *Node) HandOver(Args, *struct{}) error { return n.engine.(*native.Engine).HandOver() }

const pacedPort = 9010

// paced is what came in of a paced stream: each number once.
var paced struct {
	sync.Mutex
	seen  map[uint64]bool
	twice int
}

// Collect starts to take in a paced stream.
func (n *Node) Collect(Args, *struct{}) error {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: pacedPort})
	if err != nil {
		return err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if err := raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20) }); err != nil {
		return err
	}
	paced.seen = make(map[uint64]bool)
	go func() {
		b := make([]byte, 2048)
		for {
			if _, _, err := c.ReadFromUDPAddrPort(b); err != nil {
				return
			}
			number := binary.BigEndian.Uint64(b)
			paced.Lock()
			if paced.seen[number] {
				paced.twice++
			}
			paced.seen[number] = true
			paced.Unlock()
		}
	}()
	return nil
}

// Collected is how many different packets have come, none of them twice.
func (n *Node) Collected(_ Args, count *uint64) error {
	paced.Lock()
	defer paced.Unlock()
	if paced.twice > 0 {
		return errors.New("a packet came twice")
	}
	*count = uint64(len(paced.seen))
	return nil
}

// Pace sends 10,000 packets a second for a.Session.Keepalive, and returns how
// many those were. a.MTU is the number of the first.
func (n *Node) Pace(a Args, sent *uint64) error {
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(a.Addr))
	if err != nil {
		return err
	}
	defer c.Close()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	b := make([]byte, 64)
	for start := time.Now(); time.Since(start) < a.Session.Keepalive; {
		<-tick.C
		for due := uint64(time.Since(start) / (100 * time.Microsecond)); *sent < due; *sent++ {
			binary.BigEndian.PutUint64(b, uint64(a.MTU)+*sent)
			if _, err := c.Write(b); err != nil {
				return err
			}
		}
	}
	return nil
}

// TestRestartUnderLoad restarts an engine while 10,000 packets a second flow
// each way: a hand-over loses none of them, kill -9 what was in hand, and there
// is no handshake.
func TestRestartUnderLoad(t *testing.T) {
	ha, hb := newHost(t), newHost(t)
	wire(ha, hb, "wire", "192.0.2.", "2001:db8::")
	m, err := keeper.New(filepath.Join(t.TempDir(), "notify"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	node, gateway := ha.startKept(m), hb.start("native")
	node.engine("0.0.0.0:0")
	gateway.engine("0.0.0.0:443")
	a, b := pair(node, gateway, "tnl0", 1, "192.0.2.2:443")
	if got := ha.run("cat", "/sys/class/net/tnl0/tx_queue_len"); strings.TrimSpace(got) != "2048" {
		t.Errorf("queues of a kept interface hold %s packets, want 2048", got)
	}
	for _, h := range []host{ha, hb} { // what is to be seen is the engine, however slow the machine is
		h.run("ip", "link", "set", "tnl0", "txqueuelen", "60000")
	}
	if got := ha.ping("10.1.0.2", 1); got != 1 {
		t.Fatal("no ping comes through")
	}
	near, far := ha.start("native"), hb.start("native") // programs on the hosts
	near.call("Collect", Args{})
	far.call("Collect", Args{})
	before, there := a.now().LastHandshake, b.now().LastHandshake
	for i, c := range []struct {
		name string
		end  func()
		most int64
	}{
		{"hand-over", func() { a.call("HandOver", Args{}) }, 0},
		{"hand-over again", func() { a.call("HandOver", Args{}) }, 0},
		{"kill -9", func() {}, 256 + 32}, // a batch of each thread
	} {
		length := 3 * time.Second
		out := near.pace("10.1.0.2", i, length)
		in := far.pace("10.1.0.1", i, length)
		outBefore, inBefore := far.collected(), near.collected()
		enginetest.Eventually(t, "packets flow", func() bool { return far.collected() > outBefore+500 && near.collected() > inBefore+500 })
		c.end()
		a.kill()
		began := time.Now()
		a.process = ha.startKept(m)
		a.engine("0.0.0.0:0")
		a.open()
		a.call("Settled", Args{})
		gap := time.Since(began)
		sentOut, sentIn := <-out, <-in
		enginetest.Eventually(t, c.name+": what was sent has come", func() bool {
			return far.collected()-outBefore+uint64(c.most) >= sentOut && near.collected()-inBefore+uint64(c.most) >= sentIn
		})
		hb.ping("10.1.0.1", 1) // behind all of them
		ha.ping("10.1.0.2", 1)
		lostOut, lostIn := int64(sentOut-(far.collected()-outBefore)), int64(sentIn-(near.collected()-inBefore))
		t.Logf("%s: %d and %d packets, of which %d and %d were lost; nobody moved them for %v", c.name, sentOut, sentIn, lostOut, lostIn, gap)
		if lostOut+lostIn > c.most {
			t.Errorf("%s: %d and %d packets lost, want at most %d", c.name, lostOut, lostIn, c.most)
		}
		if after := a.now().LastHandshake; after.Sub(before).Abs() > time.Second/10 { // it is known by its age
			t.Errorf("%s: handshake at %v, want none after %v", c.name, after, before)
		}
	}
	if s := b.now(); !s.LastHandshake.Equal(there) {
		t.Errorf("the gateway had a handshake at %v, want none after %v", s.LastHandshake, there)
	}
}

// startKept starts a node that goes on with what m keeps.
func (h host) startKept(m *keeper.Manager) *process {
	h.t.Helper()
	argv, env, files, err := m.Launch(os.Args[0])
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	return h.launch("native", argv, env, files)
}

// pace starts a stream and returns where it is said how many packets it had.
func (p *process) pace(to string, round int, length time.Duration) <-chan uint64 {
	done := make(chan uint64, 1)
	go func() {
		var sent uint64
		a := Args{Addr: netip.AddrPortFrom(netip.MustParseAddr(to), pacedPort), MTU: round << 32, Session: Session{Keepalive: length}}
		if err := p.client.Call("Node.Pace", a, &sent); err != nil {
			p.t.Errorf("stream to %s: %v", to, err)
		}
		done <- sent
	}()
	return done
}

func (p *process) collected() (count uint64) {
	p.t.Helper()
	if err := p.client.Call("Node.Collected", Args{}, &count); err != nil {
		p.t.Fatal(err)
	}
	return count
}
