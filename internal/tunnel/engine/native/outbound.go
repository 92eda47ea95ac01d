package native

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/memfile"
	"tunneld/internal/tunnel/engine/meter"
	"tunneld/internal/tunnel/engine/noise"
	"tunneld/internal/tunnel/engine/udp"
)

// batchReads is how many packets are read at most before the batch ends, so
// that a change of gates or keys is seen soon.
const batchReads = 256

// An outbound is the thread that takes packets from one queue of a TUN device
// and sends them sealed.
type outbound struct {
	d      *Device
	queue  int
	memory []byte
	cutter cutter
	sender *sender
	hand   *memfile.Hand
	held   int // packets that were read and not yet sent
	now    noise.Instant
	routes *bart.Table[*peer] // of this batch

	// The packets of a batch mostly belong together: what was found for the
	// last one is kept.
	dst             [16]byte
	is6             bool
	found           *peer
	at              *peer        // whom the counts below belong to
	open            bool         // packets may pass; else
	why             engine.Cause // they may not
	pair            *noise.Keypair
	to              *udp.Endpoint
	packets, bytes  uint64
	dropped, sealed uint64 // dropped for why
}

func newOutbound(d *Device, queue int) *outbound {
	// Behind the largest packet there is room for padding.
	return &outbound{d: d, queue: queue, memory: make([]byte, vnetLen+maxPacket+noise.PaddingMultiple), sender: newSender(d.engine, arenaSize), hand: d.engine.legacy.hand()}
}

// run reads until the device is closed.
func (o *outbound) run() {
	w := newWaiter(o.d.tun.fds[o.queue], o.d.bell)
	defer o.d.engine.legacy.putBack(o.hand)
	for {
		err := o.batch()
		switch {
		case err == nil || errors.Is(err, unix.EINTR): // there may be more
			if w.rung() {
				return
			}
		case errors.Is(err, unix.EAGAIN):
			if !w.wait() {
				return
			}
		case errors.Is(err, unix.EBADFD): // somebody removed the interface
			o.d.lost(err)
			return
		default:
			o.d.engine.complain("read from interface", err)
			if !w.pause() {
				return
			}
		}
	}
}

// batch moves what is there, to a limit. The error is that of the last read.
func (o *outbound) batch() error {
	o.now, o.routes = now(), o.d.routes.Load()
	o.found, o.dst = nil, [16]byte{}
	defer o.finish()
	for range batchReads {
		n, err := o.d.tun.read(o.queue, o.memory)
		if err != nil {
			return err
		}
		o.holds(o.held + 1)
		if err := o.cutter.load(o.memory[:n]); err != nil {
			o.d.engine.counts.badPacket.Add(1)
			continue
		}
		for p, ok := o.cutter.next(); ok; p, ok = o.cutter.next() {
			o.packet(p)
		}
		if o.sender.waiting() >= flushAt {
			o.sender.flush()
			o.holds(0)
		}
	}
	return nil
}

// holds says how many packets this thread has in hand, as the host gave them.
func (o *outbound) holds(n int) {
	o.held = n
	o.hand.Holds(n)
}

// finish ends a batch.
func (o *outbound) finish() {
	o.settle(nil)
	o.sender.flush()
	o.holds(0)
}

// packet sends one packet to whom it belongs.
func (o *outbound) packet(p []byte) {
	to := o.find(p)
	if to == nil {
		o.d.engine.counts.noSession.Add(1)
		return
	}
	if to != o.at {
		o.settle(to)
	}
	switch {
	case !o.open:
		o.dropped++
		return
	case !to.meter.Take(meter.Tx, len(p), int64(o.now)):
		return
	}
	o.packets++
	o.bytes += uint64(len(p))
	pair, endpoint := o.pair, o.to
	if pair == nil {
		if pair, endpoint = to.stage(p, o.now); pair == nil {
			return
		}
		o.pair, o.to = pair, endpoint
	}
	size := noise.SealedSize(len(p), o.d.mtu)
	if !to.afford(size, o.now) {
		to.stageUnproved(p, o.now)
		return
	}
	counter, ok := pair.NextCounters(1)
	if !ok {
		to.meter.Drop(meter.Tx, engine.CauseNoKey, 1)
		return
	}
	ecn := innerECN(p)
	o.sender.commit(endpoint, len(pair.Seal(o.sender.room(size)[:0], counter, p, o.d.mtu)), ecn, &to.meter)
	o.sealed++
}

// find is whose packet p is.
func (o *outbound) find(p []byte) *peer {
	var addr netip.Addr
	switch {
	case len(p) >= ip4Header && p[0]>>4 == 4:
		if !o.is6 && o.found != nil && binary.NativeEndian.Uint32(p[16:]) == binary.NativeEndian.Uint32(o.dst[:]) {
			return o.found
		}
		o.is6 = false
		copy(o.dst[:], p[16:20])
		addr = netip.AddrFrom4([4]byte(p[16:]))
	case len(p) >= ip6Header && p[0]>>4 == 6:
		if o.is6 && o.found != nil && [16]byte(p[24:]) == o.dst {
			return o.found
		}
		o.is6 = true
		o.dst = [16]byte(p[24:])
		addr = netip.AddrFrom16(o.dst)
	default:
		return nil
	}
	o.found, _ = o.routes.Lookup(addr)
	return o.found
}

// settle adds what was counted to its session, and turns to the next.
func (o *outbound) settle(next *peer) {
	if p := o.at; p != nil {
		p.meter.Count(meter.Tx, o.packets, o.bytes)
		p.meter.Drop(meter.Tx, o.why, o.dropped)
		if o.sealed > 0 {
			o.d.engine.agenda.at(p, p.timers.DataSent(o.now))
			if o.pair.RekeyOnSend(o.now) {
				p.want(o.now)
			}
		}
		if o.pair != nil {
			o.pair.Release()
		}
	}
	o.at, o.pair, o.to = next, nil, nil
	o.packets, o.bytes, o.dropped, o.sealed = 0, 0, 0, 0
	if next == nil {
		return
	}
	o.why, o.open = next.meter.Passes(meter.Tx, int64(o.now))
	pair, to := next.current.Load(), next.endpoint.Load()
	if o.open && to != nil && pair != nil && pair.MaySend(o.now) && pair.Hold() {
		o.pair, o.to = pair, to
	}
}
