package native

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// messages is how many are taken from the kernel at once. Each may be
	// maxSegments datagrams.
	messages = 32
	// messageSize is what the kernel puts into one.
	messageSize = 1 << 16
)

// A receiver is the memory of one recvmmsg(2), and of the endpoints it saw.
type receiver struct {
	e       *Engine
	s       *socket
	memory  []byte
	headers [messages]mmsghdr
	vectors [messages]unix.Iovec
	names   [messages]unix.RawSockaddrInet6
	control [messages][controlSize]byte

	endpoints [256]*endpoint // those seen lately, so that a stream of packets makes no garbage
}

// A message is datagrams of one size (the last may be shorter) from one place.
type message struct {
	data []byte
	size int
	ecn  byte
	name *unix.RawSockaddrInet6
	src  source
}

func newReceiver(e *Engine, s *socket) *receiver {
	r := &receiver{e: e, s: s, memory: make([]byte, messages*messageSize)}
	for i := range r.headers {
		r.vectors[i].Base = &r.memory[i*messageSize]
		r.vectors[i].SetLen(messageSize)
		h := &r.headers[i]
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&r.names[i])), unix.SizeofSockaddrInet6
		h.Iov = &r.vectors[i]
		h.SetIovlen(1)
		h.Control = &r.control[i][0]
		h.SetControllen(controlSize)
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
	m := message{data: r.memory[i*messageSize:][:min(int(h.n), messageSize)], name: &r.names[i]}
	m.parse(r.control[i][:min(int(h.Controllen), controlSize)])
	if m.size <= 0 {
		m.size = len(m.data)
	}
	// What the kernel changed is made ready for the next read.
	h.Namelen = unix.SizeofSockaddrInet6
	h.SetControllen(controlSize)
	h.Flags = 0
	return m
}

// parse reads the control messages: the length of the datagrams, the address
// they were sent to, and their ECN field.
func (m *message) parse(b []byte) {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		if h.Len < unix.SizeofCmsghdr || h.Len > uint64(len(b)) {
			return
		}
		data := b[unix.CmsgLen(0):h.Len]
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			m.size = int(*(*int32)(unsafe.Pointer(&data[0])))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			m.ecn = data[0] & ecnMask
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			m.ecn = byte(*(*int32)(unsafe.Pointer(&data[0]))) & ecnMask
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0]))
			m.src = source{netip.AddrFrom4(info.Spec_dst), uint32(info.Ifindex)}
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0]))
			m.src = source{netip.AddrFrom16(info.Addr), info.Ifindex}
		}
		b = b[min(len(b), unix.CmsgSpace(int(h.Len)-unix.CmsgLen(0))):]
	}
}

// endpoint is where m came from; the one of before, if nothing has changed.
func (r *receiver) endpoint(m *message) *endpoint {
	dst := addrPort(m.name)
	epoch := r.e.path.Load()
	slot := &r.endpoints[(dst.Port()^uint16(m.name.Flowinfo))%uint16(len(r.endpoints))]
	src := m.src
	if e := *slot; e != nil && e.dst == dst && e.src == src && e.path == epoch && !e.has(flagSourceCleared) {
		return e
	}
	e := newEndpoint(dst, src, epoch)
	*slot = e
	return e
}
