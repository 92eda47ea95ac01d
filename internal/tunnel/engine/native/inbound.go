package native

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/memfile"
	"tunneld/internal/tunnel/engine/meter"
	"tunneld/internal/tunnel/engine/noise"
	"tunneld/internal/tunnel/engine/udp"
)

// writeAt is how many octets of packets are collected before they are written,
// even if more datagrams are at hand.
const writeAt = 1 << 16

// counterAt is where a transport message has its counter.
const counterAt = 8

// An inbound is the thread that receives from one socket, opens what it gets
// and gives it to the host.
type inbound struct {
	e         *Engine
	receiver  *receiver     // nil: datagrams come by
	via       *udp.Endpoint // a carrier
	coalescer coalescer
	vectors   [maxPieces + 2]unix.Iovec
	device    *Device // whose packets are in coalescer
	hand      *memfile.Hand
	held      int // datagrams of this batch, as far as they were counted
	now       noise.Instant

	// The datagrams of a batch mostly belong together: what was found for the
	// last one is kept.
	entry          *entry
	pair           *noise.Keypair // held
	open           bool           // packets may pass; else
	why            engine.Cause   // they may not
	src            netip.Addr     // looked up last
	owner          *peer          // and whose it is
	packets, bytes uint64
	dropped        uint64 // for why
	data           bool   // packets opened, whatever became of them
	octets         int    // outer, of what opened
	top            uint64 // highest counter of what opened
}

func newInbound(e *Engine, s *socket) *inbound {
	return &inbound{e: e, receiver: newReceiver(e, s), hand: e.legacy.hand()}
}

// run receives until the engine is closed.
func (in *inbound) run() {
	w := newWaiter(in.receiver.s.fd, in.e.bell)
	defer in.e.legacy.putBack(in.hand)
	for {
		n, err := in.receiver.read()
		switch {
		case err == nil:
			in.batch(n)
			if n == messages && !w.rung() { // there may be more
				continue
			}
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		default:
			in.e.complain("receive", err)
			if !w.pause() {
				return
			}
		}
		if !w.wait() {
			return
		}
	}
}

// batch moves the first n messages.
func (in *inbound) batch(n int) {
	in.holds(n)
	in.now = now()
	in.coalescer.reset()
	for i := range n {
		m := in.receiver.message(i)
		in.message(&m)
	}
	in.write()
	in.device, in.owner, in.src = nil, nil, netip.Addr{}
	in.holds(0)
}

// holds says how many datagrams this thread has in hand.
func (in *inbound) holds(n int) {
	in.held = n
	in.hand.Holds(n)
}

// message moves the datagrams of one message.
func (in *inbound) message(m *message) {
	if more := len(m.data) - m.Size; more > 0 {
		in.holds(in.held + (more+m.Size-1)/m.Size)
	}
	for data := m.data; len(data) > 0; {
		b := data[:min(m.Size, len(data))]
		data = data[len(b):]
		switch kind := noise.Classify(b); kind {
		case noise.KindTransport:
			in.transport(b, m)
		case noise.KindInvalid:
			in.e.counts.unknown.Add(1)
		default:
			in.e.greeter.take(kind, b, in.place(m))
		}
	}
	in.settle(m)
}

// transport opens one datagram.
func (in *inbound) transport(b []byte, m *message) {
	if index := noise.Receiver(b); in.entry == nil || in.entry.index != index {
		in.settle(m)
		if !in.turn(index) {
			in.e.counts.unknown.Add(1)
			return
		}
	}
	counter := binary.LittleEndian.Uint64(b[counterAt:])
	packet, err := in.pair.Open(b, in.now)
	if err != nil {
		in.e.counts.rejected.Add(1)
		return
	}
	in.octets += len(b)
	in.top = max(in.top, counter)
	if in.entry.fresh.Load() {
		in.entry.peer.confirm(in.entry, in.pair, in.place(m), in.now)
	}
	if len(packet) > 0 {
		in.packet(packet, m.ECN)
	}
}

// turn makes the session of index the one that datagrams belong to.
func (in *inbound) turn(index uint32) bool {
	e := in.e.table.find(index)
	if e == nil {
		return false
	}
	pair := e.pair.Load()
	if pair == nil || !pair.Hold() {
		return false
	}
	in.entry, in.pair = e, pair
	in.why, in.open = e.peer.meter.Passes(meter.Rx, int64(in.now))
	if d := e.peer.d; d != in.device {
		in.write()
		in.device = d
		in.owner, in.src = nil, netip.Addr{}
		in.coalescer.join, in.coalescer.udp = d.tun.tcp.Load(), d.tun.udp.Load()
	}
	return true
}

// packet checks what came out of a datagram, and keeps it to be written.
func (in *inbound) packet(p []byte, ecn byte) {
	in.data = true
	p, src, ok := parseIP(p)
	if !ok {
		in.e.counts.badPacket.Add(1)
		return
	}
	if src != in.src {
		in.src = src
		in.owner, _ = in.device.routes.Load().Lookup(src)
	}
	m := &in.entry.peer.meter
	switch {
	case in.owner != in.entry.peer:
		m.Drop(meter.Rx, engine.CauseSource, 1)
		return
	case !in.open:
		in.dropped++
		return
	case !combineECN(p, ecn):
		m.Drop(meter.Rx, engine.CauseCongested, 1)
		return
	case !m.Take(meter.Rx, len(p), int64(in.now)):
		return
	}
	in.packets++
	in.bytes += uint64(len(p))
	in.coalescer.add(p)
	if in.coalescer.bytes >= writeAt {
		in.write()
	}
}

// parseIP cuts the padding off a packet and finds its source.
func parseIP(p []byte) ([]byte, netip.Addr, bool) {
	switch {
	case len(p) >= ip4Header && p[0]>>4 == 4:
		n := int(binary.BigEndian.Uint16(p[2:]))
		if n < ip4Header || n > len(p) {
			return nil, netip.Addr{}, false
		}
		return p[:n], netip.AddrFrom4([4]byte(p[12:])), true
	case len(p) >= ip6Header && p[0]>>4 == 6:
		n := int(binary.BigEndian.Uint16(p[4:])) + ip6Header
		if n > len(p) {
			return nil, netip.Addr{}, false
		}
		return p[:n], netip.AddrFrom16([16]byte(p[8:])), true
	}
	return nil, netip.Addr{}, false
}

// place is where m came from.
func (in *inbound) place(m *message) *udp.Endpoint {
	if in.via != nil {
		return in.via
	}
	return in.receiver.endpoint(m)
}

// settle adds what was counted to its session.
func (in *inbound) settle(m *message) {
	if in.entry == nil {
		return
	}
	p := in.entry.peer
	if in.octets > 0 {
		in.authenticated(p, m)
	}
	p.meter.Count(meter.Rx, in.packets, in.bytes)
	p.meter.Drop(meter.Rx, in.why, in.dropped)
	in.pair.Release()
	in.entry, in.pair = nil, nil
	in.packets, in.bytes, in.dropped, in.octets, in.top, in.data = 0, 0, 0, 0, 0, false
}

// authenticated notes that something of p opened.
func (in *inbound) authenticated(p *peer, m *message) {
	newest := in.top >= in.entry.top.Load()
	if newest {
		in.entry.top.Store(in.top)
	}
	p.heard(in.place(m), in.octets, newest)
	var wake noise.Instant
	if in.data {
		wake = p.timers.DataReceived(in.now)
	} else {
		wake = p.timers.KeepaliveReceived(in.now)
	}
	in.e.agenda.at(p, wake)
	if in.pair.RekeyOnReceive(in.now) {
		p.want(in.now)
	}
}

// write gives the host what was collected.
func (in *inbound) write() {
	if in.coalescer.n > 0 && in.device != nil {
		t := in.device.tun
		t.mu.RLock()
		if len(t.fds) > 0 {
			in.writeTo(t)
		}
		t.mu.RUnlock()
	}
	in.coalescer.reset()
}

// writeTo writes each group through the queue of its flow: the kernel has what
// answers it read from there.
func (in *inbound) writeTo(t *tunnel) {
	for i := range in.coalescer.groups[:in.coalescer.n] {
		g := &in.coalescer.groups[i]
		vectors := in.vectors[:1+len(g.pieces)]
		first := g.withHeader()
		vectors[0].Base = &first[0]
		vectors[0].SetLen(len(first))
		for j, b := range g.pieces {
			vectors[1+j].Base = &b[0]
			vectors[1+j].SetLen(len(b))
		}
		if err := t.write(max(0, g.flow)%len(t.fds), vectors); err != nil {
			in.unwritten(t, g, err)
		}
	}
}

// unwritten counts what the interface did not take. One that is down takes
// nothing, and that is nothing to talk about.
func (in *inbound) unwritten(t *tunnel, g *group, err error) {
	in.e.counts.unwritten.Add(uint64(1 + len(g.pieces)))
	if len(g.pieces) > 0 && errors.Is(err, unix.EINVAL) { // a kernel whose offloads are broken
		t.tcp.Store(t.tcp.Load() && !g.tcp)
		t.udp.Store(t.udp.Load() && g.tcp)
	}
	if !errors.Is(err, unix.EIO) {
		in.e.complain("write to interface", err)
	}
}
