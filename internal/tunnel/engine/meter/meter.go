// Package meter is what a data path asks about one session, and counts for it:
// gate, direction, deadline, rates, packets and drops. Engines embed a Meter in
// what they know of a session; any thread may ask at any time, and nobody
// waits.
package meter

import (
	"sync/atomic"
	"time"

	"tunneld/internal/tunnel/engine"
)

// A Way is a direction, seen from here.
type Way int

const (
	Rx Way = iota // from the peer to the host
	Tx            // from the host to the peer
)

// A Meter of its own is closed, and lets both directions through once open.
// Times are those of Now.
type Meter struct {
	gate      atomic.Uint32 // an engine.Gate
	direction atomic.Uint32 // an engine.Direction
	ends      atomic.Int64  // deadline; 0: none
	ways      [2]counts
}

type counts struct {
	packets, bytes atomic.Uint64
	dropped        [engine.Causes]atomic.Uint64
	limit          atomic.Pointer[limit] // nil: no bound
}

// SetGate opens or closes the session.
func (m *Meter) SetGate(g engine.Gate) { m.gate.Store(uint32(g)) }

// SetDirection says which packets may pass an open gate.
func (m *Meter) SetDirection(d engine.Direction) { m.direction.Store(uint32(d)) }

// SetDeadline closes the session at a moment; the zero Time: never. What is left
// of the time now counts on the clock of Now.
func (m *Meter) SetDeadline(at time.Time) {
	left := time.Until(at)
	ends := Now() + int64(left)
	switch {
	case at.IsZero():
		ends = 0
	case left <= 0 || ends <= 0:
		ends = 1 // long over
	}
	m.ends.Store(ends)
}

// SetRate bounds what passes in one direction.
func (m *Meter) SetRate(w Way, r engine.Rate) {
	l := &m.ways[w].limit
	switch old := l.Load(); {
	case r.BytesPerSecond == 0:
		l.Store(nil)
	case old == nil || old.rate != r:
		l.Store(newLimit(r))
	}
}

// Shut reports whether the session is over or closed, so that it has no
// handshakes, either.
func (m *Meter) Shut(now int64) bool {
	return engine.Gate(m.gate.Load()) == engine.Closed || m.over(now)
}

func (m *Meter) over(now int64) bool {
	ends := m.ends.Load()
	return ends != 0 && now >= ends
}

// Passes reports whether packets may pass one way now, and why not. A data path
// asks once a batch.
func (m *Meter) Passes(w Way, now int64) (engine.Cause, bool) {
	switch d := engine.Direction(m.direction.Load()); {
	case engine.Gate(m.gate.Load()) != engine.Open:
		return engine.CauseGate, false
	case m.over(now):
		return engine.CauseDeadline, false
	case d == engine.SendOnly && w == Rx, d == engine.ReceiveOnly && w == Tx:
		return engine.CauseDirection, false
	}
	return 0, true
}

// Take asks for n octets of the rate. A packet that gets none is to be dropped
// and is counted here.
func (m *Meter) Take(w Way, n int, now int64) bool {
	l := m.ways[w].limit.Load()
	if l == nil || l.take(n, now) {
		return true
	}
	m.Drop(w, engine.CauseRate, 1)
	return false
}

// Count counts packets that passed.
func (m *Meter) Count(w Way, packets, bytes uint64) {
	if packets > 0 {
		m.ways[w].packets.Add(packets)
		m.ways[w].bytes.Add(bytes)
	}
}

// Drop counts packets that were dropped.
func (m *Meter) Drop(w Way, c engine.Cause, packets uint64) {
	if packets > 0 {
		m.ways[w].dropped[c].Add(packets)
	}
}

// Read writes what was counted into s.
func (m *Meter) Read(s *engine.Stats) {
	rx, tx := &m.ways[Rx], &m.ways[Tx]
	s.RxPackets, s.RxBytes, s.TxPackets, s.TxBytes = rx.packets.Load(), rx.bytes.Load(), tx.packets.Load(), tx.bytes.Load()
	for c := range s.RxDropped {
		s.RxDropped[c], s.TxDropped[c] = rx.dropped[c].Load(), tx.dropped[c].Load()
	}
}

// Configure makes the meter what a session says. A gate that is to open is
// only quarantined: the engine opens it when all else is ready, but handshakes
// may begin before.
func (m *Meter) Configure(s engine.Session) {
	if gate := engine.Gate(m.gate.Load()); s.Gate != engine.Open {
		m.SetGate(s.Gate)
	} else if gate != engine.Open {
		m.SetGate(engine.Quarantined)
	}
	m.SetDeadline(s.Deadline)
	m.SetDirection(s.Direction)
	m.SetRate(Rx, s.RxRate)
	m.SetRate(Tx, s.TxRate)
}

// Inherit takes over what another one counted.
func (m *Meter) Inherit(old *Meter) {
	for w := range m.ways {
		to, from := &m.ways[w], &old.ways[w]
		to.packets.Store(from.packets.Load())
		to.bytes.Store(from.bytes.Load())
		for c := range to.dropped {
			to.dropped[c].Store(from.dropped[c].Load())
		}
	}
}
