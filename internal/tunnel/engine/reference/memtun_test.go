package reference

import (
	"encoding/binary"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
)

// memTUN is an interface in memory.
type memTUN struct {
	name   string
	in     chan [][]byte // batches of packets that the host sends
	out    chan []byte   // packets that the host gets
	events chan tun.Event
	done   chan struct{}
	once   sync.Once
}

func newMemTUN(name string) *memTUN {
	return &memTUN{name: name, in: make(chan [][]byte, 16), out: make(chan []byte, 1024), events: make(chan tun.Event, 4), done: make(chan struct{})}
}

func (m *memTUN) File() *os.File           { return nil }
func (m *memTUN) MTU() (int, error)        { return 1420, nil }
func (m *memTUN) Name() (string, error)    { return m.name, nil }
func (m *memTUN) Events() <-chan tun.Event { return m.events }
func (m *memTUN) BatchSize() int           { return batchSize }

func (m *memTUN) Close() error {
	m.once.Do(func() {
		close(m.done)
		close(m.events)
	})
	return nil
}

func (m *memTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case batch := <-m.in:
		for i, p := range batch {
			sizes[i] = copy(bufs[i][offset:], p)
		}
		return len(batch), nil
	case <-m.done:
		return 0, os.ErrClosed
	}
}

func (m *memTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		select {
		case m.out <- append([]byte(nil), b[offset:]...):
		default:
		}
	}
	return len(bufs), nil
}

// send lets the host send a batch.
func (m *memTUN) send(packets ...[]byte) { m.in <- packets }

// receive waits for a packet; nil if none comes within d.
func (m *memTUN) receive(d time.Duration) []byte { return within(m.out, d) }

// patience is how long a test waits for what must happen, on any machine.
const patience = time.Minute

// within is what comes out of c within d, nil if nothing does. What came while
// this process was asleep came in time.
func within(c <-chan []byte, d time.Duration) []byte {
	select {
	case b := <-c:
		return b
	case <-time.After(d):
	}
	select {
	case b := <-c:
		return b
	default:
		return nil
	}
}

// packet makes an IP packet of size octets.
func packet(src, dst string, size int) []byte {
	from, to := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	b := make([]byte, size)
	if from.Is4() {
		b[0] = 0x45
		binary.BigEndian.PutUint16(b[2:], uint16(size))
		copy(b[12:], from.AsSlice())
		copy(b[16:], to.AsSlice())
		return b
	}
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(size-40))
	copy(b[8:], from.AsSlice())
	copy(b[24:], to.AsSlice())
	return b
}

// loopback makes an engine on 127.0.0.1.
func loopback(t *testing.T) *Engine {
	t.Helper()
	e, err := New(Config{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func (e *Engine) addr() netip.AddrPort { return e.hub.sockets[0].Local }

// memDevice makes a device of e whose interface is in memory.
func memDevice(t *testing.T, e *Engine, name string, private []byte) (*Device, *memTUN) {
	t.Helper()
	m := newMemTUN(name)
	d, err := newDevice(e, m)
	if err != nil {
		t.Fatal(err)
	}
	e.mu.Lock()
	e.devices[d] = struct{}{}
	e.mu.Unlock()
	t.Cleanup(func() { d.Close() })
	if err := d.SetPrivateKey(secret.New(private)); err != nil {
		t.Fatal(err)
	}
	return d, m
}

// A memEnd is one end of a session between devices in memory.
type memEnd struct {
	*Device
	tun     *memTUN
	private []byte
	session engine.Session
}

// memPair makes a session between two engines: a at 10.0.0.1 dials b at 10.0.0.2.
func memPair(t *testing.T, ea, eb *Engine) (a, b *memEnd) {
	t.Helper()
	privateA, publicA := enginetest.NewKey(t)
	privateB, publicB := enginetest.NewKey(t)
	id := session.NewID()
	a = &memEnd{private: privateA, session: engine.Session{ID: id, PeerKey: publicB, AllowedIPs: enginetest.Prefixes("10.0.0.2/32"), Endpoint: eb.addr(), Gate: engine.Open}}
	b = &memEnd{private: privateB, session: engine.Session{ID: id, PeerKey: publicA, AllowedIPs: enginetest.Prefixes("10.0.0.1/32"), Gate: engine.Open, Responder: true}}
	a.Device, a.tun = memDevice(t, ea, "a", privateA)
	b.Device, b.tun = memDevice(t, eb, "b", privateB)
	for _, e := range []*memEnd{a, b} {
		if err := e.Add(e.session); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

func aToB(size int) []byte { return packet("10.0.0.1", "10.0.0.2", size) }
func bToA(size int) []byte { return packet("10.0.0.2", "10.0.0.1", size) }

// arrives sends a packet that must come out of to.
func arrives(from, to *memTUN, p []byte) bool {
	from.send(p)
	return to.receive(patience) != nil
}

// crosses reports whether a packet comes out of to within a second.
func crosses(from, to *memTUN, p []byte) bool {
	from.send(p)
	return to.receive(time.Second) != nil
}

func secretOf(b []byte) secret.Value { return secret.New(b) }
