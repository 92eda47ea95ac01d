package reference

import (
	"errors"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	// batchSize is how many datagrams are handed over at once.
	batchSize = conn.IdealBatchSize
	// maxSegments is the most datagrams that the kernel sends as one
	// (UDP_MAX_SEGMENTS of kernels before 6.9) or receives as one.
	maxSegments = 64
	// maxPayload4 and maxPayload6 are the most octets in one UDP datagram.
	maxPayload4 = 1<<16 - 1 - 20 - 8
	maxPayload6 = 1<<16 - 1 - 8
	// controlSize holds a source or destination and a segment size.
	controlSize = 128
	// sendPatience bounds how long a send waits, in ms, while the socket's
	// buffer is full. What is full for one peer is full for all.
	sendPatience = 5
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	n uint32 // octets received or sent
}

// A writer is the memory of one sendmmsg(2).
type writer struct {
	headers [batchSize]mmsghdr
	vectors [batchSize]unix.Iovec
	control [batchSize][controlSize]byte
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
	for n < len(bufs) && n < maxSegments {
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
func (w *writer) load(bufs [][]byte, e *endpoint, source []byte, gso bool) {
	w.used, w.next = 0, 0
	maxPayload := maxPayload4
	if e.dst.Addr().Is6() {
		maxPayload = maxPayload6
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
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&e.name)), e.nameLen
		h.Iov = &w.vectors[at]
		h.SetIovlen(n)
		control := append(w.control[w.used][:0], source...)
		if n > 1 {
			control = appendSegmentSize(control, uint16(len(bufs[at])))
		}
		h.Control = nil
		if len(control) > 0 {
			h.Control = &control[0]
		}
		h.SetControllen(len(control))
		w.counts[w.used] = n
		w.used++
		at += n
	}
}

// appendSegmentSize appends a UDP_SEGMENT control message.
func appendSegmentSize(control []byte, size uint16) []byte {
	at := len(control)
	control = control[:at+unix.CmsgSpace(2)]
	h := (*unix.Cmsghdr)(unsafe.Pointer(&control[at]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Pointer(&control[at+unix.CmsgLen(0)])) = size
	return control
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
		source := e.sourceControl(path)
		w.load(bufs, e, source, s.gso.Load() && !e.has(flagNoSegments))
		if err := s.raw.Control(w.write); err != nil {
			return err
		}
		for _, n := range w.counts[:w.next] {
			bufs = bufs[n:]
		}
		if w.errno != nil && !s.retry(e, len(source) > 0, w.counts[w.next] > 1, w.errno) {
			return w.errno
		}
	}
	return nil
}

// retry decides whether a message that the kernel refused is worth another
// try, and changes what may have been the cause.
func (s *socket) retry(e *endpoint, sourced, segmented bool, err error) bool {
	switch {
	case segmented && errors.Is(err, unix.EIO): // the device computes no checksums: udp(7)
		s.gso.Store(false)
	case segmented && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE)): // larger than the path's MTU
		e.set(flagNoSegments)
	case sourced && isPathError(err): // our address or its interface is gone
		e.set(flagSourceCleared)
		e.unset(flagNoSegments) // that may have been the wrong conclusion
	default:
		return false
	}
	return true
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

// A reader is the memory of one recvmmsg(2) and of the endpoints it saw.
type reader struct {
	s       *socket
	headers [batchSize]mmsghdr
	vectors [batchSize]unix.Iovec
	names   [batchSize]unix.RawSockaddrInet6
	control [batchSize][controlSize]byte
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
	if r.s.gro {
		first = max(0, len(bufs)-batchSize/maxSegments)
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
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&r.names[i])), unix.SizeofSockaddrInet6
		h.Iov = &r.vectors[i]
		h.SetIovlen(1)
		h.Control = &r.control[i][0]
		h.SetControllen(controlSize)
		h.Flags = 0
	}
}

// deal lays the datagrams of message i, which are in from, into bufs from
// number n on, and returns the next free number. The last of bufs is from
// itself: only the last datagram of from can be laid there, since every
// earlier message gave at most as many datagrams as there are bufs before it.
// What does not fit is dropped.
func (r *reader) deal(i int, from []byte, bufs [][]byte, sizes []int, eps []conn.Endpoint, n int, h *hub) int {
	m := &r.headers[i]
	from = from[:min(int(m.n), len(from))]
	segment, src := parseControl(r.control[i][:min(int(m.Controllen), controlSize)])
	if segment <= 0 {
		segment = len(from)
	}
	e := r.endpoint(addrPort(&r.names[i]), src, h)
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
func (r *reader) endpoint(dst netip.AddrPort, src source, h *hub) *endpoint {
	epoch := h.epoch.Load()
	slot := &r.endpoints[dst.Port()%uint16(len(r.endpoints))]
	if e := *slot; e != nil && e.dst == dst && e.epoch == epoch && (e.routed || e.src == src && !e.has(flagSourceCleared)) {
		return e
	}
	routed := h.isDialled(dst)
	if routed {
		src = source{}
	}
	e := newEndpoint(dst, src, h.path.Load())
	e.epoch, e.routed = epoch, routed
	*slot = e
	return e
}

// parseControl reads the control messages of one message: the length of its
// datagrams (0: it is one) and the address they were sent to.
func parseControl(b []byte) (segment int, src source) {
	for len(b) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			return segment, src
		}
		b = rest
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			segment = int(*(*int32)(unsafe.Pointer(&data[0])))
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 2: // as documented in udp(7)
			segment = int(*(*uint16)(unsafe.Pointer(&data[0])))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0]))
			src = source{netip.AddrFrom4(info.Spec_dst), uint32(info.Ifindex)}
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0]))
			src = source{netip.AddrFrom16(info.Addr), info.Ifindex}
		}
	}
	return segment, src
}
