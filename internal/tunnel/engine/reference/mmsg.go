package reference

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"tunneld/internal/tunnel/engine/udp"
)

const (
	// batchSize is how many datagrams are handed over at once.
	batchSize = conn.IdealBatchSize
	// sendPatience bounds how long a send waits, in ms, while the socket's
	// buffer is full. What is full for one peer is full for all.
	sendPatience = 5
)

// A writer is the memory of one sendmmsg(2).
type writer struct {
	headers [batchSize]udp.Header
	vectors [batchSize]unix.Iovec
	control [batchSize][udp.ControlSize]byte
	counts  [batchSize]int // datagrams in each message
	used    int            // messages
	next    int            // first message not yet sent
	errno   error
	write   func(fd uintptr) // w.flush as a value, made once
}

func newWriter() *writer {
	w := new(writer)
	w.write = w.flush
	return w
}

// segments returns how many datagrams at the head of bufs can be sent as one:
// all of one length, but the last may be shorter.
func segments(bufs [][]byte, maxPayload int) int {
	size, total, n := len(bufs[0]), len(bufs[0]), 1
	for n < len(bufs) && n < udp.MaxSegments {
		l := len(bufs[n])
		total += l
		if l > size || total > maxPayload {
			break
		}
		n++
		if l < size {
			break
		}
	}
	return n
}

// load makes messages of at most batchSize bufs. The datagrams of a segmented
// message stay where they are: the kernel gathers them.
func (w *writer) load(bufs [][]byte, e *endpoint, path uint32, gso bool) {
	w.used, w.next = 0, 0
	maxPayload := udp.MaxPayload6
	if e.Is4() {
		maxPayload = udp.MaxPayload4
	}
	bufs = bufs[:min(len(bufs), batchSize)]
	for at := 0; at < len(bufs); {
		n := 1
		if gso {
			n = segments(bufs[at:], maxPayload)
		}
		for i, b := range bufs[at : at+n] {
			w.vectors[at+i].Base = unsafe.SliceData(b)
			w.vectors[at+i].SetLen(len(b))
		}
		h := &w.headers[w.used]
		h.Iov = &w.vectors[at]
		h.SetIovlen(n)
		control := e.AppendSource(w.control[w.used][:0], path)
		if n > 1 {
			control = udp.AppendSegmentSize(control, uint16(len(bufs[at])))
		}
		h.Address(e.Endpoint, control)
		w.counts[w.used] = n
		w.used++
		at += n
	}
}

// flush sends the messages from next on; errno is what stopped it.
func (w *writer) flush(fd uintptr) {
	patient := true
	for w.next < w.used {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&w.headers[w.next])), uintptr(w.used-w.next), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == 0:
			w.next += int(n)
		case errno == unix.EINTR:
		case errno == unix.EAGAIN && patient:
			patient = false
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, sendPatience)
		default:
			w.errno = errno
			return
		}
	}
	w.errno = nil
}

// release drops what the messages point to, so that a pooled writer keeps no
// packet alive.
func (w *writer) release() {
	clear(w.headers[:w.used])
	clear(w.vectors[:])
	w.used, w.next = 0, 0
}

// send sends bufs to e, in the given generation of paths. The error is why
// some of them were dropped; it needs no answer but a line in the log.
func (s *socket) send(bufs [][]byte, e *endpoint, path uint32) error {
	w := s.writers.Get().(*writer)
	defer s.writers.Put(w)
	defer w.release()
	for len(bufs) > 0 {
		sourced := e.HasSource(path)
		w.load(bufs, e, path, s.Segments(e.Endpoint))
		if err := s.raw.Control(w.write); err != nil {
			return err
		}
		for _, n := range w.counts[:w.next] {
			bufs = bufs[n:]
		}
		if w.errno != nil && s.Remedy(e.Endpoint, sourced, w.counts[w.next] > 1, w.errno) == udp.GiveUp {
			return w.errno
		}
	}
	return nil
}

// A reader is the memory of one recvmmsg(2) and of the endpoints it saw.
type reader struct {
	s       *socket
	headers [batchSize]udp.Header
	vectors [batchSize]unix.Iovec
	names   [batchSize]unix.RawSockaddrInet6
	control [batchSize][udp.ControlSize]byte
	window  int // messages asked for
	got     int // messages received
	errno   error
	recv    func(fd uintptr) bool // r.receive as a value, made once

	endpoints [64]*endpoint // those seen lately, so that a stream of packets makes no garbage
}

func newReader(s *socket) *reader {
	r := &reader{s: s}
	r.recv = r.receive
	return r
}

// receive is called by the runtime's poller until it returns true.
func (r *reader) receive(fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.headers[0])), uintptr(r.window), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			r.got, r.errno = int(n), nil
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			r.got, r.errno = 0, errno
			return true
		}
	}
}

// read waits for datagrams and lays them into bufs, one each; it returns how
// many of bufs are in use. Where the kernel coalesces, it reads into the last
// of bufs and deals out from there.
func (r *reader) read(bufs [][]byte, sizes []int, eps []conn.Endpoint, h *hub) (int, error) {
	first := 0
	if r.s.GRO {
		first = max(0, len(bufs)-batchSize/udp.MaxSegments)
	}
	r.prepare(bufs[first:])
	if err := r.s.raw.Read(r.recv); err != nil {
		return 0, err
	}
	if r.errno != nil {
		return 0, r.errno
	}
	n := 0
	for i := range r.got {
		n = r.deal(i, bufs[first+i], bufs[:first+i+1], sizes, eps, n, h)
	}
	return n, nil
}

// prepare points the messages at bufs.
func (r *reader) prepare(bufs [][]byte) {
	r.window = min(len(bufs), batchSize)
	for i, b := range bufs[:r.window] {
		r.vectors[i].Base = unsafe.SliceData(b)
		r.vectors[i].SetLen(len(b))
		h := &r.headers[i]
		h.Iov = &r.vectors[i]
		h.SetIovlen(1)
		h.Expect(&r.names[i], &r.control[i])
	}
}

// deal lays the datagrams of message i, which are in from, into bufs from
// number n on, and returns the next free number. The last of bufs is from
// itself: only the last datagram of from can be laid there, since every
// earlier message gave at most as many datagrams as there are bufs before it.
// What does not fit is dropped.
func (r *reader) deal(i int, from []byte, bufs [][]byte, sizes []int, eps []conn.Endpoint, n int, h *hub) int {
	m := &r.headers[i]
	from = from[:min(int(m.N), len(from))]
	arrival := udp.ParseControl(r.control[i][:min(int(m.Controllen), udp.ControlSize)])
	segment := arrival.Size
	if segment <= 0 {
		segment = len(from)
	}
	e := r.endpoint(udp.AddrPort(&r.names[i]), arrival.Src, h)
	for len(from) > 0 && n < len(bufs) {
		l := min(segment, len(from))
		if unsafe.SliceData(bufs[n]) != unsafe.SliceData(from) {
			copy(bufs[n], from[:l])
		}
		sizes[n], eps[n] = l, e
		from = from[l:]
		n++
	}
	return n
}

// endpoint returns the endpoint of a datagram, the one of before if nothing
// has changed.
func (r *reader) endpoint(dst netip.AddrPort, src udp.Source, h *hub) *endpoint {
	epoch, path := h.epoch.Load(), h.path.Load()
	slot := &r.endpoints[dst.Port()%uint16(len(r.endpoints))]
	if e := *slot; e != nil && e.epoch == epoch && e.Is(dst, src, path) {
		return e
	}
	e := &endpoint{epoch: epoch}
	if h.isDialled(dst) {
		e.Endpoint = udp.NewRouted(dst)
	} else {
		e.Endpoint = udp.NewEndpoint(dst, src, path)
	}
	*slot = e
	return e
}
