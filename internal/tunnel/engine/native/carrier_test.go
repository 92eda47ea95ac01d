package native

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
)

// A lane carries datagrams over a byte stream, each behind its length, as the
// carrier of a network without UDP would. Its queue is bounded, and drops.
type lane struct {
	conn    net.Conn
	queue   chan []byte
	sent    atomic.Int64
	dropped atomic.Int64
	wg      sync.WaitGroup
}

func newLane(c net.Conn, length int) *lane {
	s := &lane{conn: c, queue: make(chan []byte, length)}
	s.wg.Go(func() {
		for b := range s.queue {
			if _, err := c.Write(binary.BigEndian.AppendUint16(nil, uint16(len(b)))); err != nil {
				continue
			}
			c.Write(b)
		}
	})
	return s
}

func (s *lane) Send(b []byte) bool {
	s.sent.Add(1) // before it can arrive
	select {
	case s.queue <- bytes.Clone(b):
		return true
	default:
		s.sent.Add(-1)
		s.dropped.Add(1)
		return false
	}
}

func (s *lane) Remote() netip.AddrPort {
	return netip.MustParseAddrPort(s.conn.RemoteAddr().String())
}

// read gives an engine what arrives, until the stream ends.
func (s *lane) read(receive func(...[]byte)) {
	s.wg.Go(func() {
		for {
			var size [2]byte
			if _, err := io.ReadFull(s.conn, size[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(s.conn, b); err != nil {
				return
			}
			receive(b)
		}
	})
}

// lanes joins two engines by a stream. Nothing is sent on it any more when the
// engines are closed, before which it ends.
func lanes(t *testing.T, a, b *loop) (sa, sb *lane) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ca, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	cb, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	sa, sb = newLane(ca, 256), newLane(cb, 256)
	sa.read(a.engine.Receive(sa))
	sb.read(b.engine.Receive(sb))
	t.Cleanup(func() {
		a.engine.Close()
		b.engine.Close()
		for _, s := range []*lane{sa, sb} {
			s.conn.Close()
			close(s.queue)
			s.wg.Wait()
		}
	})
	return sa, sb
}

// TestCarrierIsSwitched moves a session from UDP to a stream and back, again and
// again, under packets both ways: none is lost and no handshake is needed.
func TestCarrierIsSwitched(t *testing.T) {
	a, b := newLoop(t), newLoop(t)
	id := sessions(a, b, b.addr())
	passesOn(t, a, b, 1, 2, "by UDP")
	passesOn(t, b, a, 2, 1, "and back")
	sa, sb := lanes(t, a, b)
	before, _ := b.device.Stats(id)
	for round := range 6 {
		ca, cb := engine.Carrier(sa), engine.Carrier(sb)
		if round%2 == 1 {
			ca, cb = nil, nil
		}
		for i := range 30 {
			switch i {
			case 10:
				setCarrier(t, a, id, ca)
			case 20:
				setCarrier(t, b, id, cb)
			}
			passesOn(t, a, b, 1, 2, fmt.Sprint("there ", round, i))
			passesOn(t, b, a, 2, 1, fmt.Sprint("back ", round, i))
		}
	}
	after, _ := b.device.Stats(id)
	if !after.LastHandshake.Equal(before.LastHandshake) {
		t.Error("a change of carriers cost a handshake")
	}
	if after.Endpoint != a.addr() {
		t.Errorf("back on UDP the peer is at %v, want %v", after.Endpoint, a.addr())
	}
	if x, y := sa.sent.Load(), sb.sent.Load(); x < 80 || y < 80 {
		t.Errorf("%d and %d datagrams went by the stream, want about half of 180 each", x, y)
	}
}

func setCarrier(t *testing.T, l *loop, id session.ID, c engine.Carrier) {
	t.Helper()
	if err := l.device.SetCarrier(id, c); err != nil {
		t.Fatal(err)
	}
}

// TestLateDatagramDoesNotSwitch holds a datagram back on UDP, newer than all
// that came, until the session travels by a stream, and the other way round.
func TestLateDatagramDoesNotSwitch(t *testing.T) {
	a, b := newLoop(t), newLoop(t)
	front := listenLoopback(t, 1)
	back := listenLoopback(t, 1)
	var hold atomic.Bool
	held := make(chan []byte, 10)
	pump(t, front, func(p []byte, _ netip.AddrPort) {
		if hold.Load() {
			held <- bytes.Clone(p)
			return
		}
		back.WriteToUDPAddrPort(p, b.addr())
	})
	pump(t, back, func(p []byte, _ netip.AddrPort) { front.WriteToUDPAddrPort(p, a.addr()) })
	id := sessions(a, b, front.LocalAddr().(*net.UDPAddr).AddrPort())
	passesOn(t, a, b, 1, 2, "first")
	passesOn(t, b, a, 2, 1, "answer")
	sa, sb := lanes(t, a, b)

	hold.Store(true)
	a.send(packet(1, 2, "late"))
	late := <-held
	hold.Store(false)
	setCarrier(t, a, id, sa)
	setCarrier(t, b, id, sb)
	sent := sb.sent.Load()
	back.WriteToUDPAddrPort(late, b.addr())
	if got := b.receive(5 * time.Second); !bytes.Equal(got, packet(1, 2, "late")) {
		t.Errorf("the late datagram came out as %x, want its packet: it is the session's", got)
	}
	passesOn(t, b, a, 2, 1, "by the stream")
	if n := sb.sent.Load() - sent; n != 1 {
		t.Errorf("%d datagrams went by the stream after a late one came by UDP, want 1", n)
	}
	if s, _ := b.device.Stats(id); s.Endpoint != sb.Remote() {
		t.Errorf("the peer is shown at %v, want %v", s.Endpoint, sb.Remote())
	}

	setCarrier(t, b, id, nil)
	passesOn(t, a, b, 1, 2, "late by the stream") // a has not switched yet
	passesOn(t, b, a, 2, 1, "by UDP")
	if n := sb.sent.Load() - sent; n != 1 {
		t.Errorf("a datagram by the stream led the session back to it: %d were sent", n)
	}
}

// TestHandshakeByCarrier has a session that never had UDP.
func TestHandshakeByCarrier(t *testing.T) {
	a, b := newLoop(t), newLoop(t)
	id := sessions(a, b, netip.AddrPort{})
	sa, sb := lanes(t, a, b)
	a.send(packet(1, 2, "waits for a place to go"))
	enginetest.Eventually(t, "a packet waits", func() bool { return a.engine.stagedOctets.Load() > 0 })
	setCarrier(t, b, id, sb)
	setCarrier(t, a, id, sa)
	if got := b.receive(10 * time.Second); !bytes.Equal(got, packet(1, 2, "waits for a place to go")) {
		t.Fatalf("by the stream %x arrived", got)
	}
	passesOn(t, b, a, 2, 1, "back")
}

// TestFullCarrierDrops: a stream that nobody reads costs its own session
// packets, and no other session anything.
func TestFullCarrierDrops(t *testing.T) {
	a, b := newLoop(t), newLoop(t)
	id := sessions(a, b, b.addr())
	passesOn(t, a, b, 1, 2, "by UDP")
	stuck, nobody := net.Pipe()
	s := newLane(stuck, 8)
	t.Cleanup(func() {
		a.engine.Close()
		stuck.Close()
		nobody.Close()
		close(s.queue)
		s.wg.Wait()
	})
	other := newLoop(t)
	second := engine.Session{ID: session.NewID(), PeerKey: other.public, AllowedIPs: enginetest.Prefixes("10.0.0.3/32"), Endpoint: other.addr(), Gate: engine.Open}
	answer := engine.Session{ID: second.ID, PeerKey: a.public, AllowedIPs: enginetest.Prefixes("10.0.0.1/32"), Gate: engine.Open, Responder: true}
	if err := a.device.Add(second); err != nil {
		t.Fatal(err)
	}
	if err := other.device.Add(answer); err != nil {
		t.Fatal(err)
	}
	setCarrier(t, a, id, addressed{s})
	for range 100 {
		a.send(packet(1, 2, "into the full stream"))
	}
	passesOn(t, a, other, 1, 3, "beside it")
	enginetest.Eventually(t, "what has no room is dropped and counted", func() bool {
		return s.dropped.Load() >= 90 && a.engine.counts.unsent.Load() == uint64(s.dropped.Load())
	})
	for id, want := range map[session.ID]uint64{id: 90, second.ID: 0} {
		if got, _ := a.device.Stats(id); got.TxDropped[engine.CauseUnsent] < want || want == 0 && got.TxDropped.Total() > 0 {
			t.Errorf("stats = %+v, want at least %d packets not sent", got, want)
		}
	}
}

// addressed is a stream whose end has no address of its own.
type addressed struct{ *lane }

func (addressed) Remote() netip.AddrPort { return netip.MustParseAddrPort("192.0.2.1:443") }
