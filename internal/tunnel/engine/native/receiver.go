package native

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine/udp"
)

const (
	// messages is how many are taken from the kernel at once. Each may be
	// udp.MaxSegments datagrams.
	messages = 32
	// messageSize is what the kernel puts into one.
	messageSize = 1 << 16
)

// A receiver is the memory of one recvmmsg(2), and of the endpoints it saw.
type receiver struct {
	e       *Engine
	s       *socket
	memory  []byte
	headers [messages]udp.Header
	vectors [messages]unix.Iovec
	names   [messages]unix.RawSockaddrInet6
	control [messages][udp.ControlSize]byte

	endpoints [256]*udp.Endpoint // those seen lately, so that a stream of packets makes no garbage
}

// A message is datagrams of one size (the last may be shorter) from one place.
type message struct {
	udp.Arrival
	data []byte
	name *unix.RawSockaddrInet6
}

func newReceiver(e *Engine, s *socket) *receiver {
	r := &receiver{e: e, s: s, memory: make([]byte, messages*messageSize)}
	for i := range r.headers {
		r.vectors[i].Base = &r.memory[i*messageSize]
		r.vectors[i].SetLen(messageSize)
		h := &r.headers[i]
		h.Iov = &r.vectors[i]
		h.SetIovlen(1)
		h.Expect(&r.names[i], &r.control[i])
	}
	return r
}

// read takes what is there, without waiting, and returns how many messages.
func (r *receiver) read() (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(r.s.fd), uintptr(unsafe.Pointer(&r.headers)), messages, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// message gives message i of those read last.
func (r *receiver) message(i int) message {
	h := &r.headers[i]
	m := message{
		Arrival: udp.ParseControl(r.control[i][:min(int(h.Controllen), udp.ControlSize)]),
		data:    r.memory[i*messageSize:][:min(int(h.N), messageSize)], name: &r.names[i],
	}
	if m.Size <= 0 {
		m.Size = len(m.data)
	}
	h.Expect(&r.names[i], &r.control[i]) // the kernel has changed it
	return m
}

// endpoint is where m came from; the one of before, if nothing has changed.
func (r *receiver) endpoint(m *message) *udp.Endpoint {
	dst, path := udp.AddrPort(m.name), r.e.path.Load()
	slot := &r.endpoints[(dst.Port()^uint16(m.name.Flowinfo))%uint16(len(r.endpoints))]
	if e := *slot; e != nil && e.Is(dst, m.Src, path) {
		return e
	}
	e := udp.NewEndpoint(dst, m.Src, path)
	*slot = e
	return e
}
