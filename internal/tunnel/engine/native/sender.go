package native

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/meter"
	"tunneld/internal/tunnel/engine/udp"
)

const (
	// maxRuns is how many messages are handed to the kernel at once.
	maxRuns = 128
	// arenaSize holds the datagrams of a batch: what is flushed at, and what
	// one read from a TUN device can become.
	arenaSize = flushAt + 2*maxPacket
	// controlArena holds the largest datagram.
	controlArena = 1 << 17
	// flushAt is how many octets make a batch that is sent without waiting for
	// more: what the kernel sends at once.
	flushAt = 1 << 16
)

// A run is datagrams to one endpoint that follow each other in the arena: all
// of one size, but the last may be shorter.
type run struct {
	to         *udp.Endpoint
	of         *meter.Meter // of the session that counts what is lost; nil: none does
	start, end int
	size       int // of the first
	count      int
	ecn        byte
	full       bool // the last is shorter, or there is room for no more
}

// A sender is the memory in which one thread seals datagrams, and from which
// they are sent, runs as one message each.
type sender struct {
	e       *Engine
	arena   []byte
	used    int // octets
	runs    [maxRuns]run
	n       int // runs in use
	headers [maxRuns]udp.Header
	vectors [maxRuns]unix.Iovec
	control [maxRuns][udp.ControlSize]byte
}

func newSender(e *Engine, size int) *sender { return &sender{e: e, arena: make([]byte, size)} }

// room is where the next datagram, of at most n octets, is to be written. What
// was there before may be sent for it.
func (s *sender) room(n int) []byte {
	if s.used+n > len(s.arena) || s.n == maxRuns {
		s.flush()
	}
	return s.arena[s.used : s.used+n : s.used+n]
}

// commit says that the first n octets of room are a datagram for to, of the
// session of a meter, if it carries a packet of one.
func (s *sender) commit(to *udp.Endpoint, n int, ecn byte, of *meter.Meter) {
	start := s.used
	s.used += n
	if s.n > 0 {
		r := &s.runs[s.n-1]
		if !r.full && r.to == to && r.of == of && r.ecn == ecn && n <= r.size && r.end-r.start+n <= udp.MaxPayload4 {
			r.end = s.used
			r.count++
			r.full = n < r.size || r.count == udp.MaxSegments
			return
		}
	}
	s.runs[s.n] = run{to: to, of: of, start: start, end: s.used, size: n, count: 1, ecn: ecn, full: !s.e.segments(to)}
	s.n++
}

// segments reports whether several datagrams to an endpoint go together: the
// kernel takes them as one message, or a carrier takes them one after the other.
func (e *Engine) segments(to *udp.Endpoint) bool {
	if to.Carrier != nil {
		return true
	}
	socket := e.socketFor(to)
	return socket != nil && socket.Segments(to)
}

// waiting is how many octets have not been sent.
func (s *sender) waiting() int { return s.used }

// flush sends what is waiting. It never waits: what the kernel has no room for
// is lost, and counted.
func (s *sender) flush() {
	for first := 0; first < s.n; {
		r := &s.runs[first]
		if r.to.Carrier != nil {
			s.carry(r)
			first++
			continue
		}
		socket := s.e.socketFor(r.to)
		last := first + 1
		for last < s.n && s.runs[last].to.Carrier == nil && s.runs[last].to.Is4() == r.to.Is4() {
			last++
		}
		if socket == nil {
			for i := first; i < last; i++ {
				s.lost(&s.runs[i], s.runs[i].count)
			}
		} else {
			s.send(socket, first, last)
		}
		first = last
	}
	clear(s.runs[:s.n]) // keep no endpoint alive
	s.used, s.n = 0, 0
}

// lost counts datagrams of a run that nobody took.
func (s *sender) lost(r *run, n int) {
	s.e.counts.unsent.Add(uint64(n))
	if r.of != nil {
		r.of.Drop(meter.Tx, engine.CauseUnsent, uint64(n))
	}
}

// send sends runs first to last through one socket.
func (s *sender) send(socket *socket, first, last int) {
	path := s.e.path.Load()
	for i := first; i < last; i++ {
		r := &s.runs[i]
		s.load(i, r, r.start, r.end, path)
	}
	s.sendBatch(socket, first, last)
}

// load makes message i of the octets from start to end, which are datagrams of r.
func (s *sender) load(i int, r *run, start, end int, path uint32) {
	s.vectors[i].Base = &s.arena[start]
	s.vectors[i].SetLen(end - start)
	control := r.to.AppendSource(s.control[i][:0], path)
	if r.ecn != 0 {
		control = r.to.AppendECN(control, r.ecn)
	}
	if end-start > r.size {
		control = udp.AppendSegmentSize(control, uint16(r.size))
	}
	h := &s.headers[i]
	h.Iov = &s.vectors[i]
	h.SetIovlen(1)
	h.Address(r.to, control)
}

// sendBatch sends the messages first to last. One that the kernel refuses is
// tried again if something can be changed about it, else dropped; the others
// are sent in any case.
func (s *sender) sendBatch(socket *socket, first, last int) {
	for first < last {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(socket.fd), uintptr(unsafe.Pointer(&s.headers[first])), uintptr(last-first), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == 0:
			first += int(n)
		case errno == unix.EINTR:
		default:
			r, path := &s.runs[first], s.e.path.Load()
			switch socket.Remedy(r.to, r.to.HasSource(path), r.count > 1, errno) {
			case udp.Unsource:
				s.load(first, r, r.start, r.end, path)
			case udp.Divide:
				s.sendSingly(socket, r, path)
				first++
			default:
				s.lost(r, r.count)
				first++
			}
		}
	}
}

// sendSingly sends each datagram of a run as a message of its own. That happens
// once, then commit makes no runs for the endpoint any more; so it is no loss
// that it needs memory for it.
func (s *sender) sendSingly(socket *socket, r *run, path uint32) {
	one := &sender{e: s.e, arena: s.arena}
	one.runs[0] = *r
	one.runs[0].count = 1
	for at := r.start; at < r.end; at += r.size {
		one.runs[0].start, one.runs[0].end = at, min(at+r.size, r.end)
		one.load(0, &one.runs[0], at, one.runs[0].end, path)
		one.sendBatch(socket, 0, 1)
	}
}
