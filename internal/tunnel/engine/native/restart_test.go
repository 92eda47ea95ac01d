package native

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
	"tunneld/internal/tunnel/engine/noise"
)

// A nonce is a counter under one keypair: the one that an index was told for
// last.
type nonce struct {
	index   [4]byte
	told    uint32
	counter uint64
}

// A tap is the wire between an heir and an engine of the test's. It sees every
// datagram, and says so if one nonce is used twice.
type tap struct {
	t           *testing.T
	front, back *net.UDPConn // towards the heir, towards the other
	heir, other atomic.Pointer[netip.AddrPort]
	greetings   atomic.Int64 // handshake messages
	sent        atomic.Int64 // datagrams of the heir

	mu     sync.Mutex         // guards everything below
	names  map[[4]byte]uint32 // how often an index was told in a handshake: each time for another keypair
	nonces map[nonce]bool
	toHeir [][]byte // transport messages
	await  int64    // of sent
	moment chan struct{}
}

func newTap(t *testing.T) *tap {
	w := &tap{t: t, front: listenLoopback(t, 1), back: listenLoopback(t, 1), names: make(map[[4]byte]uint32), nonces: make(map[nonce]bool)}
	for _, c := range []*net.UDPConn{w.front, w.back} {
		raw, _ := c.SyscallConn()
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) })
	}
	pump(t, w.front, w.fromHeir)
	pump(t, w.back, w.fromOther)
	return w
}

func (w *tap) fromHeir(p []byte, from netip.AddrPort) {
	w.heir.Store(&from)
	w.note(p, true)
	if to := w.other.Load(); to != nil {
		w.back.WriteToUDPAddrPort(p, *to)
	}
}

func (w *tap) fromOther(p []byte, _ netip.AddrPort) {
	w.note(p, false)
	if to := w.heir.Load(); to != nil {
		w.front.WriteToUDPAddrPort(p, *to)
	}
}

// note keeps what a test wants to know of a datagram.
func (w *tap) note(p []byte, heir bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	index := [4]byte(p[4:8]) // the sender's in handshake messages, else the receiver's
	if noise.Classify(p) != noise.KindTransport {
		w.greetings.Add(1)
		w.names[index]++
		return
	}
	n := nonce{index, w.names[index], binary.LittleEndian.Uint64(p[8:])}
	if w.nonces[n] {
		w.t.Errorf("a nonce was used twice: receiver %x, counter %d", n.index, n.counter)
	}
	w.nonces[n] = true
	if !heir {
		w.toHeir = append(w.toHeir, bytes.Clone(p))
		return
	}
	if n := w.sent.Add(1); w.moment != nil && n >= w.await {
		close(w.moment)
		w.moment = nil
	}
}

// after returns what is closed when the heir has sent n more datagrams.
func (w *tap) after(n int) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.await, w.moment = w.sent.Load()+int64(n), make(chan struct{})
	return w.moment
}

// replay sends the heir what was sent to it before, but for the last few when
// all is false: those may still be on their way.
func (w *tap) replay(datagrams [][]byte) {
	to := *w.heir.Load()
	for _, p := range datagrams {
		w.front.WriteToUDPAddrPort(p, to)
	}
}

// used is how many nonces were.
func (w *tap) used() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.nonces)
}

// captured are the last n datagrams to the heir.
func (w *tap) captured(n int) [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.toHeir[max(0, len(w.toHeir)-n):len(w.toHeir):len(w.toHeir)]
}

// A stream is numbered packets from one end to another.
type stream struct {
	t        *testing.T
	from, to int // descriptors of the hosts' ends
	header   []byte
	sent     atomic.Int64
	received atomic.Int64
	highest  atomic.Int64
	seen     []bool // by number
}

const maxStream = 1 << 24

func newStream(t *testing.T, from, to int, a, b byte) *stream {
	return &stream{t: t, from: from, to: to, header: packet(a, b, "12345678"), seen: make([]bool, maxStream)}
}

// send sends the next packet.
func (s *stream) send() {
	p := append(make([]byte, vnetLen), s.header...)
	binary.BigEndian.PutUint64(p[len(p)-8:], uint64(s.sent.Add(1)))
	for {
		switch err := unix.Send(s.from, p, 0); err {
		case nil:
			return
		case unix.EAGAIN:
			unix.Poll([]unix.PollFd{{Fd: int32(s.from), Events: unix.POLLOUT}}, 1000)
		default:
			s.t.Errorf("send: %v", err)
			return
		}
	}
}

// receive takes what comes until done is closed.
func (s *stream) receive(done <-chan struct{}) {
	b := make([]byte, 1<<16)
	for {
		n, err := unix.Read(s.to, b)
		if err != nil || n == 0 { // 0: the test has failed, and closed it
			select {
			case <-done:
				return
			default:
				unix.Poll([]unix.PollFd{{Fd: int32(s.to), Events: unix.POLLIN}}, 50)
			}
			continue
		}
		number := int64(binary.BigEndian.Uint64(b[n-8 : n]))
		if number < 1 || number >= maxStream || s.seen[number] {
			s.t.Errorf("packet %d came out, twice or never sent", number)
			continue
		}
		s.seen[number] = true
		s.received.Add(1)
		s.highest.Store(max(s.highest.Load(), number))
	}
}

// flow is one heir under load, both ways.
type flow struct {
	*warden
	tap     *tap
	other   *loop
	id      session.ID
	will    will
	out, in *stream // from the heir's host, to it
}

// newFlow makes everything but the heir. dials says that the heir starts
// handshakes.
func newFlow(t *testing.T, dials bool) *flow {
	t.Helper()
	f := &flow{warden: newWarden(t), tap: newTap(t), other: newLoop(t), id: session.NewID()}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20)
	}
	f.Keep("loop", fds[1])
	t.Cleanup(func() { unix.Close(fds[0]) })
	f.out, f.in = newStream(t, fds[0], f.other.host, 1, 2), newStream(t, f.other.host, fds[0], 2, 1)

	private, public := enginetest.NewKey(t)
	front, back := f.tap.front.LocalAddr().(*net.UDPAddr).AddrPort(), f.tap.back.LocalAddr().(*net.UDPAddr).AddrPort()
	f.tap.other.Store(new(f.other.addr()))
	f.will = will{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Private: private, Journal: session.NewID(),
		ID: f.id, Peer: f.other.public, Allowed: enginetest.Prefixes("10.0.0.2/32"), Dials: dials}
	there := engine.Session{ID: f.id, PeerKey: public, AllowedIPs: enginetest.Prefixes("10.0.0.1/32"), Gate: engine.Open, Responder: dials}
	if dials {
		f.will.Endpoint = front
	} else {
		there.Endpoint = back
	}
	if err := f.other.device.Add(there); err != nil {
		t.Fatal(err)
	}
	return f
}

// load moves packets both ways, rate a millisecond each, until the function it
// returns is called.
func (f *flow) load(rate int) (end func()) {
	done, received := make(chan struct{}), make(chan struct{})
	var senders, receivers sync.WaitGroup
	for _, s := range []*stream{f.out, f.in} {
		receivers.Go(func() { s.receive(received) })
		senders.Go(func() {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-done:
					return
				case <-tick.C:
					for range rate {
						s.send()
					}
				}
			}
		})
	}
	return func() {
		close(done)
		senders.Wait()
		for _, s := range []*stream{f.out, f.in} { // the last that came out is the last that was sent
			s.send()
			enginetest.Eventually(f.t, "what was sent has come out", func() bool { return s.highest.Load() == s.sent.Load() })
		}
		close(received)
		receivers.Wait()
	}
}

// TestKilled kills an engine at random moments under load, again and again,
// and looks at every datagram that was ever sent: no nonce is used twice, no
// packet comes out twice, whatever is replayed, no handshake is needed, and no
// kill costs more than each thread had in hand. Handshakes that are asked for
// meanwhile change nothing of that.
func TestKilled(t *testing.T) {
	kills := 100
	if os.Getenv("TUNNELD_LONG") != "" {
		kills = 2000
	}
	for _, c := range []struct{ dials, shakes bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		t.Run(fmt.Sprintf("dials %v, handshakes %v", c.dials, c.shakes), func(t *testing.T) { testKilled(t, c.dials, c.shakes, kills) })
	}
}

func testKilled(t *testing.T, dials, shakes bool, kills int) {
	f := newFlow(t, dials)
	h := f.begin()
	end := f.load(3)
	enginetest.Eventually(t, "packets pass", func() bool { return f.in.received.Load() > 0 && f.out.received.Load() > 0 })
	greetings, since := f.tap.greetings.Load(), time.Now()
	for n := range kills {
		if n%8 == 7 { // at the start, whatever it is doing
			early := time.NewTimer(rand.N(30 * time.Millisecond))
			<-early.C
		} else {
			if n > 0 {
				h.ready()
			}
			moment := f.tap.after(1 + rand.IntN(60))
			if n%3 == 0 {
				f.tap.replay(f.tap.captured(300))
			}
			if shakes && n%2 == 0 {
				f.shake(h, dials)
			}
			<-moment
		}
		h.kill()
		if got := f.tap.greetings.Load(); got != greetings && !shakes {
			if age := time.Since(since); age < noise.RekeyAfterTime-10*time.Second { // it was made a little earlier
				t.Fatalf("after kill %d: %d handshake messages with a keypair %v old, want none", n, got-greetings, age)
			}
			greetings, since = got, time.Now() // it has grown old
		}
		h = f.start(f.will)
	}
	h.ready()
	end()
	f.replayAll()
	outLost, inLost := f.out.lost(), f.in.lost()
	t.Logf("%d kills, %d packets out and %d in, of which %d and %d were lost; %d nonces, %d handshake messages",
		kills, f.out.sent.Load(), f.in.sent.Load(), outLost, inLost, f.tap.used(), f.tap.greetings.Load())
	if outLost > int64(kills*batchReads) || inLost > int64(kills*messages) {
		t.Errorf("%d kills cost %d and %d packets, more than a batch each", kills, outLost, inLost)
	}
}

// TestHandOver ends engines properly under load: nothing is lost, nothing comes
// out twice, and there is no handshake.
func TestHandOver(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: buffers that hold what waits for the next engine")
	}
	for _, dials := range []bool{false, true} {
		f := newFlow(t, dials)
		h := f.begin()
		end := f.load(3)
		greetings := int64(0)
		for n := range 5 {
			moment := f.tap.after(200)
			<-moment
			if n == 0 { // the handshake is done, however many tries that took
				greetings = f.tap.greetings.Load()
			}
			h.tell("hand over")
			h.wait()
			h = f.start(f.will)
			h.ready()
		}
		end()
		f.replayAll()
		if f.out.lost() != 0 || f.in.lost() != 0 || f.tap.greetings.Load() != greetings {
			t.Errorf("dials %v: %d of %d packets out and %d of %d in were lost, with %d handshake messages after the first %d, want none",
				dials, f.out.lost(), f.out.sent.Load(), f.in.lost(), f.in.sent.Load(), f.tap.greetings.Load()-greetings, greetings)
		}
	}
}

// TestEndOfKept: a proper end leaves nothing behind for anybody.
func TestEndOfKept(t *testing.T) {
	f := newFlow(t, false)
	h := f.begin()
	if names := f.names(); !slices.Contains(names, memoryName) || !slices.Contains(names, socketName) {
		t.Errorf("kept: %v, want memory and socket", names)
	}
	h.tell("close")
	h.wait()
	if names := f.names(); !slices.Equal(names, []string{"loop"}) {
		t.Errorf("kept after Close: %v, want what is not the engine's", names)
	}
}

// begin starts the first heir.
func (f *flow) begin() *heirProcess {
	h := f.start(f.will)
	port := h.ready()
	f.tap.heir.Store(new(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)))
	f.will.Listen = netip.AddrPortFrom(f.will.Listen.Addr(), port)
	return h
}

// shake has whoever starts handshakes start one.
func (f *flow) shake(h *heirProcess, dials bool) {
	f.t.Helper()
	if dials {
		h.tell("handshake")
	} else if err := f.other.device.Handshake(f.id, false); err != nil {
		f.t.Fatal(err)
	}
}

// lost is how many packets did not come out.
func (s *stream) lost() int64 { return s.sent.Load() - s.received.Load() }

// replayAll sends the heir every datagram that it was ever sent, and waits
// until it has seen them.
func (f *flow) replayAll() {
	f.t.Helper()
	done := make(chan struct{})
	var receiver sync.WaitGroup
	receiver.Go(func() { f.in.receive(done) })
	all := f.tap.captured(maxStream)
	for len(all) > 0 {
		n := min(len(all), 500) // what its socket has room for
		f.tap.replay(all[:n])
		all = all[n:]
		f.in.send()
		enginetest.Eventually(f.t, "a packet behind the replayed ones comes out", func() bool { return f.in.highest.Load() == f.in.sent.Load() })
	}
	close(done)
	receiver.Wait()
}
