package reference

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/gaissmai/bart"
	"golang.zx2c4.com/wireguard/tun"

	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
	"tunneld/internal/tunnel/engine/meter"
)

// gatedTUN is a tunDevice over memory with an open session at 10.0.0.1 and a
// closed one at 10.0.0.2 and fd00::2.
func gatedTUN(t *testing.T) (d *tunDevice, m *memTUN, open, closed *peer) {
	m = newMemTUN("gated")
	d = newTUNDevice(m)
	t.Cleanup(func() {
		d.Close()
		d.wait()
	})
	open, closed = new(peer), new(peer)
	open.meter.SetGate(engine.Open)
	routes := new(bart.Table[*peer])
	for prefix, p := range map[string]*peer{"10.0.0.1/32": open, "10.0.0.2/32": closed, "fd00::2/128": closed} {
		routes = routes.InsertPersist(enginetest.Prefixes(prefix)[0], p)
	}
	d.routes.Store(routes)
	return d, m, open, closed
}

func counted(p *peer) (s engine.Stats) {
	p.meter.Read(&s)
	return s
}

func TestTUNRead(t *testing.T) {
	d, m, open, closed := gatedTUN(t)
	m.send(
		packet("192.0.2.1", "10.0.0.1", 100),
		packet("192.0.2.1", "10.0.0.2", 200),
		packet("fd00::9", "fd00::2", 300),
		packet("192.0.2.1", "10.0.0.1", 400),
		packet("192.0.2.1", "10.0.0.3", 500), // nobody's: wireguard-go drops it
		[]byte{0x45},                         // no packet: likewise
	)
	bufs, sizes, _ := buffers(batchSize)
	n, err := d.Read(bufs, sizes, 16)
	if err != nil || n != 6 {
		t.Fatalf("Read = %d, %v, want 6 packets", n, err)
	}
	for i, want := range []int{100, 0, 0, 400, 500, 1} {
		if sizes[i] != want {
			t.Errorf("size of packet %d = %d, want %d", i, sizes[i], want)
		}
	}
	if s := counted(open); s.TxPackets != 2 || s.TxBytes != 500 {
		t.Errorf("open: stats = %+v, want 2 packets, 500 bytes sent", s)
	}
	if s := counted(closed); s.TxDropped[engine.CauseGate] != 2 || s.TxPackets != 0 {
		t.Errorf("closed: stats = %+v, want 2 dropped and none sent", s)
	}
}

func TestTUNWrite(t *testing.T) {
	d, m, open, closed := gatedTUN(t)
	const offset = 16
	var bufs [][]byte
	for _, p := range [][]byte{
		packet("10.0.0.1", "192.0.2.1", 100),
		packet("10.0.0.2", "192.0.2.1", 200),
		packet("10.0.0.1", "192.0.2.1", 300),
		packet("10.0.0.9", "192.0.2.1", 400), // nobody's any more
	} {
		bufs = append(bufs, append(make([]byte, offset), p...))
	}
	before := bytes.Join(bufs, nil)
	if _, err := d.Write(bufs, offset); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{100, 300} {
		if got := m.receive(patience); len(got) != want {
			t.Errorf("the host gets %d octets, want %d", len(got), want)
		}
	}
	if got := m.receive(10 * time.Millisecond); got != nil {
		t.Errorf("the host gets %d octets more, want nothing", len(got))
	}
	if !bytes.Equal(bytes.Join(bufs, nil), before) {
		t.Error("Write changed the caller's slice")
	}
	if s := counted(open); s.RxPackets != 2 || s.RxBytes != 400 {
		t.Errorf("open: stats = %+v, want 2 packets, 400 bytes received", s)
	}
	if s := counted(closed); s.RxDropped[engine.CauseGate] != 1 {
		t.Errorf("closed: stats = %+v, want 1 dropped", s)
	}
}

func TestTUNEvents(t *testing.T) {
	d, m, _, _ := gatedTUN(t)
	for _, e := range []tun.Event{tun.EventUp, tun.EventDown, tun.EventDown | tun.EventMTUUpdate, tun.EventMTUUpdate} {
		m.events <- e
	}
	for _, want := range []tun.Event{tun.EventUp, tun.EventMTUUpdate, tun.EventMTUUpdate} {
		if got := <-d.Events(); got != want {
			t.Errorf("event = %b, want %b", got, want)
		}
	}
}

// FuzzTally is a peer inside its session: whatever its packets are, they are
// counted for nobody but the owner of the address, and nothing breaks.
func FuzzTally(f *testing.F) {
	f.Add(packet("10.0.0.1", "10.0.0.2", 40))
	f.Add(packet("fd00::1", "fd00::2", 60))
	f.Add([]byte{0x45})
	f.Add([]byte{0x60, 0})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		p := new(peer)
		for _, d := range []meter.Way{meter.Rx, meter.Tx} {
			c := tally{routes: new(bart.Table[*peer]).InsertPersist(enginetest.Prefixes("10.0.0.0/8")[0], p), way: d}
			if found := c.find(data); found != nil && (found != p || data[0]>>4 != 4 || data[12+4*d] != 10) {
				t.Errorf("%x is counted for a session that does not have its address", data)
			}
		}
	})
}

// TestTUNCostsNothing holds the wrapper's share of a batch: no garbage.
func TestTUNCostsNothing(t *testing.T) {
	d := newTUNDevice(&stillTUN{memTUN: newMemTUN("still"), packet: packet("192.0.2.1", "10.0.0.1", 1400)})
	defer d.wait()
	defer d.Close()
	open := new(peer)
	open.meter.SetGate(engine.Open)
	d.routes.Store(new(bart.Table[*peer]).InsertPersist(enginetest.Prefixes("10.0.0.1/32")[0], open))
	bufs, sizes, _ := buffers(batchSize)
	if n := testing.AllocsPerRun(100, func() { d.Read(bufs, sizes, 16) }); n != 0 {
		t.Errorf("Read allocates %v times a batch, want 0", n)
	}
	for i := range bufs {
		bufs[i] = append(bufs[i][:16], packet("10.0.0.1", "192.0.2.1", 1400)...)
	}
	if n := testing.AllocsPerRun(100, func() { d.Write(bufs, 16) }); n != 0 {
		t.Errorf("Write allocates %v times a batch, want 0", n)
	}
	if s := counted(open); s.TxPackets == 0 || s.RxPackets == 0 {
		t.Error("nothing was counted")
	}
}

// stillTUN always has a batch and takes any.
type stillTUN struct {
	*memTUN
	packet []byte
}

func (s *stillTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i := range bufs {
		sizes[i] = copy(bufs[i][offset:], s.packet)
	}
	return len(bufs), nil
}

func (s *stillTUN) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }

func (s *stillTUN) File() *os.File { return nil }

func BenchmarkTUNRead(b *testing.B) {
	m := &stillTUN{memTUN: newMemTUN("still"), packet: packet("192.0.2.1", "10.0.0.1", 1400)}
	d := newTUNDevice(m)
	defer d.wait()
	defer d.Close()
	p := new(peer)
	p.meter.SetGate(engine.Open)
	d.routes.Store(new(bart.Table[*peer]).InsertPersist(enginetest.Prefixes("10.0.0.1/32")[0], p))
	bufs, sizes, _ := buffers(batchSize)
	for name, r := range map[string]interface {
		Read([][]byte, []int, int) (int, error)
	}{"bare": m, "wrapped": d} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				r.Read(bufs, sizes, 16)
			}
		})
	}
}

func TestParseStatus(t *testing.T) {
	text := "private_key=11\nlisten_port=1\n" +
		"public_key=0100000000000000000000000000000000000000000000000000000000000000\npreshared_key=22\nendpoint=192.0.2.1:443\n" +
		"last_handshake_time_sec=5\nlast_handshake_time_nsec=7\ntx_bytes=1\n" +
		"public_key=0200000000000000000000000000000000000000000000000000000000000000\nendpoint=\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\n"
	all, err := parseStatus([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if s := all[engine.PublicKey{1}]; s.endpoint.String() != "192.0.2.1:443" || !s.lastHandshake.Equal(time.Unix(5, 7)) {
		t.Errorf("first peer = %+v, want 192.0.2.1:443 and 5.000000007 s", s)
	}
	if s, ok := all[engine.PublicKey{2}]; !ok || s.endpoint.IsValid() || !s.lastHandshake.IsZero() {
		t.Errorf("second peer = %+v, %v, want no endpoint and no handshake", s, ok)
	}
	for _, bad := range []string{"public_key", "public_key=01", "public_key=zz" + text[len("private_key=11\nlisten_port=1\n")+13:], "endpoint=x", "last_handshake_time_sec=x"} {
		if _, err := parseStatus([]byte(bad)); err == nil {
			t.Errorf("parseStatus(%.20q) = nil, want an error", bad)
		}
	}
}
