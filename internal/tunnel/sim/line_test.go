package sim

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
)

var errCut = errors.New("transport lost")

// line is one transport: two directions of octets, each with a delay of its own,
// that may break after any octet.
type line struct {
	w     *world
	id    control.TransportID
	since time.Duration
	ends  [2]*end // the node's, the gateway's
}

// swift is the longest delay of a line that is no accident: a session may live
// shorter than a slower one takes to set it up.
const swift = 100 * time.Millisecond

// slow reports whether the line is one.
func (l *line) slow() bool { return max(l.ends[0].delay, l.ends[1].delay) > swift }

// end is a host's half of a line: what it will read.
type end struct {
	l       *line
	side    int
	h       *host
	life    int   // of the host's daemon that holds it
	c       *conn // nil until the first message says which, and when it is gone
	accept  func(*wire.Packet)
	rx      []byte
	held    []byte        // arrived while the host was frozen
	flying  int           // octets under way to here
	last    time.Duration // arrival of what was sent last
	delay   time.Duration
	closed  bool // by its own host: it writes no more
	dead    bool // nothing arrives any more
	told    bool // its conn knows that it is gone
	eofSent bool
	severed bool // by a cut: of what is under way to here only rest octets arrive
	rest    int
	onLost  func()
}

// connect makes a line between two hosts. The gateway's end waits for a first
// message, which accept takes.
func (w *world) connect(n, g *host, accept func(*end, *wire.Packet)) *line {
	w.lastLine++
	l := &line{w: w, id: control.TransportID(w.lastLine), since: w.now}
	slowest := swift
	if w.chance(5) && !w.healed {
		slowest = 6 * time.Second // so that an older transport's octets come after a newer's
	}
	for i, h := range []*host{n, g} {
		l.ends[i] = &end{l: l, side: i, h: h, life: h.life, delay: w.between(time.Millisecond, slowest)}
	}
	e := l.ends[1]
	e.accept = func(p *wire.Packet) { accept(e, p) }
	w.lines = append(w.lines, l)
	return l
}

func (e *end) peer() *end { return e.l.ends[1-e.side] }

// gone reports whether the daemon that had this end is no more.
func (e *end) gone() bool { return !e.h.up || e.h.life != e.life }

// send gives octets to the other end, in one piece or in some.
func (e *end) send(b []byte) {
	if e.closed || e.dead || e.gone() {
		return
	}
	for len(b) > 0 {
		n := len(b)
		if n > 1 && e.l.w.chance(4) {
			n = 1 + e.l.w.rng.IntN(n-1)
		}
		e.peer().arrives(b[:n:n])
		b = b[n:]
	}
}

// arrives plans the arrival of octets, in their order.
func (e *end) arrives(b []byte) {
	w := e.l.w
	e.flying += len(b)
	e.last = max(e.last, w.now+e.delay+w.between(0, e.delay+1))
	w.after(e.last-w.now, func() {
		e.flying -= len(b)
		e.read(b)
	})
}

// read takes octets that arrived, if anybody is there.
func (e *end) read(b []byte) {
	if e.dead || e.gone() {
		return
	}
	b = append(e.held, b...)
	if e.held = nil; e.h.frozen > e.l.w.now {
		e.held = b
		e.h.after(0, func() { e.read(nil) })
		return
	}
	if e.severed {
		b = b[:min(len(b), e.rest)]
		if e.rest -= len(b); e.rest == 0 {
			defer e.silence(e.l.w.chance(3))
		}
	}
	e.rx = append(e.rx, b...)
	for whole(e.rx) && !e.dead && !e.gone() {
		r := bytes.NewReader(e.rx)
		raw, err := wire.ReadPacket(bufio.NewReaderSize(r, 16), wire.MaxMessage)
		if err != nil {
			broken("wire", "ReadPacket(%x) = %v", e.rx, err)
		}
		e.rx = e.rx[len(raw):]
		p, err := wire.Parse(raw)
		if err != nil {
			broken("wire", "Parse(%x) = %v", raw, err)
		}
		e.take(p)
	}
}

// whole reports whether a whole message is there.
func whole(b []byte) bool { return len(b) >= 4 && len(b) >= int(binary.BigEndian.Uint16(b[2:])) }

func (e *end) take(p *wire.Packet) {
	if e.accept != nil {
		accept := e.accept
		e.accept = nil
		accept(p)
		return
	}
	if e.c != nil {
		e.c.post(input{ev: control.Received{Transport: e.l.id, Packet: p}, end: e})
	}
}

// eof is the end of the octets: what came before is read, a message cut short is none.
func (e *end) eof() {
	if e.dead || e.gone() {
		return
	}
	if e.h.frozen > e.l.w.now {
		e.h.after(0, e.eof)
		return
	}
	if e.read(nil); e.dead || e.gone() {
		return // killed over what it read
	}
	if _, err := wire.ReadPacket(bufio.NewReader(bytes.NewReader(e.rx)), wire.MaxMessage); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		broken("wire", "ReadPacket of a message cut short (%x) = %v", e.rx, err)
	}
	e.lost(errCut)
}

// lost tells the machine that its transport is gone, once.
func (e *end) lost(err error) {
	if e.told {
		return
	}
	e.told, e.dead, e.accept = true, true, nil
	e.l.forget()
	if e.c != nil {
		e.c.post(input{ev: control.Detached{Transport: e.l.id, At: e.h.wall(), Err: err}})
	}
	if e.onLost != nil {
		e.onLost()
	}
	if !e.peer().eofSent && !e.closed {
		e.finish()
	}
}

// finish tells the other end, after what was written before.
func (e *end) finish() {
	e.closed = true
	p := e.peer()
	if p.eofSent {
		return
	}
	p.eofSent = true
	p.last = max(p.last, e.l.w.now+p.delay)
	e.l.w.after(p.last-e.l.w.now, p.eof)
}

// drop is the driver's: what was sent leaves, then the transport is closed.
func (e *end) drop() {
	if !e.closed {
		e.finish()
	}
	e.h.after(e.l.w.between(0, 50*time.Millisecond), func() { e.lost(errCut) })
}

// cut breaks the line: of what is under way to each end some octets arrive yet.
// An end that is not told has to find out by itself.
func (l *line) cut() {
	if l.ends[0].severed {
		return
	}
	l.w.stats.cuts++
	l.w.logf("line %d is cut", l.id)
	for _, e := range l.ends {
		e.closed, e.peer().eofSent = true, true
	}
	for _, e := range l.ends {
		if e.severed, e.rest = true, l.w.rng.IntN(e.flying+1); e.rest == 0 {
			e.silence(l.w.chance(3))
		}
	}
}

// silence lets nothing arrive any more, from the middle of a message if need be.
func (e *end) silence(quietly bool) {
	if e.dead || e.gone() {
		return
	}
	if quietly {
		e.dead = true
		// TCP gives up at last.
		e.h.after(e.l.w.between(time.Minute, 15*time.Minute), func() { e.lost(errCut) })
		return
	}
	e.h.after(e.l.w.between(0, time.Second), func() { e.lost(errCut) })
}

// hostGone takes a killed daemon's end away.
func (l *line) hostGone(h *host, loud bool) {
	for _, e := range l.ends {
		if e.h != h || e.dead && e.told {
			continue
		}
		e.dead, e.told = true, true
		if loud {
			e.finish()
		} else {
			e.closed, e.peer().eofSent = true, true
			p := e.peer()
			l.w.after(l.w.between(time.Minute, 15*time.Minute), func() {
				if !p.gone() {
					p.lost(errCut)
				}
			})
		}
	}
	l.forget()
}

// forget drops a line that nobody holds from the list of those to be cut.
func (l *line) forget() {
	if l.ends[0].told && l.ends[1].told {
		if i := slices.Index(l.w.lines, l); i >= 0 {
			l.w.lines = slices.Delete(slices.Clone(l.w.lines), i, i+1)
		}
	}
}

// empty reports whether nothing is under way.
func (l *line) empty() bool {
	return l.ends[0].flying == 0 && l.ends[1].flying == 0 && len(l.ends[0].rx)+len(l.ends[1].rx)+len(l.ends[0].held)+len(l.ends[1].held) == 0
}

// binding is how TLS ties an exchange to this line.
func (e *end) binding() control.Binding {
	p := e.peer()
	id := e.l.id
	return control.Binding{
		Export: func(label string, context []byte, n int) ([]byte, error) {
			sum := sha256.Sum256(fmt.Appendf(nil, "line %d %s %x", id, label, context))
			return sum[:n], nil
		},
		OwnID: e.h.id, PeerID: p.h.id, PeerName: p.h.name, OwnKey: e.h.key, PeerKey: p.h.key,
	}
}
