package native

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxSegments is the most datagrams that the kernel sends as one
	// (UDP_MAX_SEGMENTS of kernels before 6.9) or receives as one.
	maxSegments = 64
	// maxPayload4 and maxPayload6 are the most octets in one UDP datagram.
	maxPayload4 = 1<<16 - 1 - 20 - 8
	maxPayload6 = 1<<16 - 1 - 8
	// maxRuns is how many messages are handed to the kernel at once.
	maxRuns = 128
	// controlSize holds a source, a traffic class and a segment size.
	controlSize = 128
	// arenaSize holds the datagrams of a batch: what is flushed at, and what
	// one read from a TUN device can become.
	arenaSize = flushAt + 2*maxPacket
	// controlArena holds the largest datagram.
	controlArena = 1 << 17
	// flushAt is how many octets make a batch that is sent without waiting for
	// more: what the kernel sends at once.
	flushAt = 1 << 16
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	n uint32 // octets received or sent
}

// A run is datagrams to one endpoint that follow each other in the arena: all
// of one size, but the last may be shorter.
type run struct {
	to         *endpoint
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
	headers [maxRuns]mmsghdr
	vectors [maxRuns]unix.Iovec
	control [maxRuns][controlSize]byte
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

// commit says that the first n octets of room are a datagram for to.
func (s *sender) commit(to *endpoint, n int, ecn byte) {
	start := s.used
	s.used += n
	if s.n > 0 {
		r := &s.runs[s.n-1]
		if !r.full && r.to == to && r.ecn == ecn && n <= r.size && r.end-r.start+n <= maxPayload4 {
			r.end = s.used
			r.count++
			r.full = n < r.size || r.count == maxSegments
			return
		}
	}
	s.runs[s.n] = run{to: to, start: start, end: s.used, size: n, count: 1, ecn: ecn, full: !s.e.segments(to)}
	s.n++
}

// segments reports whether the kernel takes several datagrams to an endpoint
// as one message.
func (e *Engine) segments(to *endpoint) bool {
	socket := e.socketFor(to)
	return socket != nil && socket.gso.Load() && !to.has(flagNoSegments)
}

// waiting is how many octets have not been sent.
func (s *sender) waiting() int { return s.used }

// flush sends what is waiting. It never waits: what the kernel has no room for
// is lost, and counted.
func (s *sender) flush() {
	for first := 0; first < s.n; {
		r := &s.runs[first]
		socket := s.e.socketFor(r.to)
		last := first + 1
		for last < s.n && s.runs[last].to.is4() == r.to.is4() {
			last++
		}
		if socket == nil {
			s.e.counts.noSocket.Add(uint64(last - first))
		} else {
			s.send(socket, first, last)
		}
		first = last
	}
	clear(s.runs[:s.n]) // keep no endpoint alive
	s.used, s.n = 0, 0
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
	control := s.control[i][:0]
	if r.to.hasSource(path) {
		control = r.to.appendSource(control)
	}
	if r.ecn != 0 {
		control = r.to.appendTrafficClass(control, r.ecn)
	}
	if end-start > r.size {
		control = appendSegmentSize(control, uint16(r.size))
	}
	h := &s.headers[i]
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(&r.to.name)), r.to.nameLen
	h.Iov = &s.vectors[i]
	h.SetIovlen(1)
	h.Control = nil
	if len(control) > 0 {
		h.Control = &control[0]
	}
	h.SetControllen(len(control))
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
			r := &s.runs[first]
			switch s.refused(socket, r, errno) {
			case tryAgain:
				s.load(first, r, r.start, r.end, s.e.path.Load())
			case trySingly:
				s.sendSingly(socket, r, s.e.path.Load())
				first++
			default:
				s.e.counts.unsent.Add(uint64(r.count))
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

// What to do about a message that the kernel refused.
const (
	giveUp = iota
	tryAgain
	trySingly
)

// refused decides whether a message that the kernel refused is worth another
// try, and changes what may have been the cause.
func (s *sender) refused(socket *socket, r *run, err error) int {
	switch {
	case r.count > 1 && errors.Is(err, unix.EIO): // the device computes no checksums: udp(7)
		socket.gso.Store(false)
		return trySingly
	case r.count > 1 && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE)): // larger than the path's MTU
		r.to.set(flagNoSegments)
		return trySingly
	case r.to.hasSource(s.e.path.Load()) && isPathError(err): // our address or its interface is gone
		r.to.set(flagSourceCleared)
		r.to.unset(flagNoSegments) // that may have been the wrong conclusion
		return tryAgain
	}
	return giveUp
}

// isPathError reports whether err can come from a source address or interface
// that no longer leads to the peer.
func isPathError(err error) bool {
	for _, e := range []error{unix.EINVAL, unix.ENODEV, unix.ENXIO, unix.ENETDOWN, unix.EADDRNOTAVAIL, unix.ENETUNREACH, unix.EHOSTUNREACH} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
