package udp

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// MaxSegments is the most datagrams that the kernel sends as one
	// (UDP_MAX_SEGMENTS of kernels before 6.9) or receives as one.
	MaxSegments = 64
	MaxPayload4 = 1<<16 - 1 - 20 - 8 // octets in one UDP datagram over IPv4
	MaxPayload6 = 1<<16 - 1 - 8      // and over IPv6
	// ControlSize holds an address, a traffic class and a segment size.
	ControlSize = 128

	ecnMask = 3 // of a traffic class: the congestion mark (RFC 3168, section 5)
)

// Header is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type Header struct {
	unix.Msghdr
	N uint32 // octets received or sent
}

// Address makes h a message to e with that control data.
func (h *Header) Address(e *Endpoint, control []byte) {
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(&e.name)), e.nameLen
	h.Control = nil
	if len(control) > 0 {
		h.Control = &control[0]
	}
	h.SetControllen(len(control))
}

// Expect makes h ready to receive: the kernel writes the sender's address into
// name and its control messages into control.
func (h *Header) Expect(name *unix.RawSockaddrInet6, control *[ControlSize]byte) {
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(name)), unix.SizeofSockaddrInet6
	h.Control = &control[0]
	h.SetControllen(ControlSize)
	h.Flags = 0
}

// AppendSource appends the control message that names the source of e, if it
// has one in this generation of paths. The capacity of control must suffice
// here and below.
func (e *Endpoint) AppendSource(control []byte, path uint32) []byte {
	switch {
	case !e.HasSource(path):
	case e.Src.Addr.Is4():
		var data unsafe.Pointer
		control, data = appendControl(control, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		*(*unix.Inet4Pktinfo)(data) = unix.Inet4Pktinfo{Ifindex: int32(e.Src.Ifindex), Spec_dst: e.Src.Addr.As4()}
	default:
		var data unsafe.Pointer
		control, data = appendControl(control, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
		*(*unix.Inet6Pktinfo)(data) = unix.Inet6Pktinfo{Ifindex: e.Src.Ifindex, Addr: e.Src.Addr.As16()}
	}
	return control
}

// AppendECN appends the control message that sets the outer ECN field; DSCP
// stays zero, so that nothing of the inside shows.
func (e *Endpoint) AppendECN(control []byte, ecn byte) []byte {
	level, kind := int32(unix.IPPROTO_IP), int32(unix.IP_TOS)
	if !e.Is4() {
		level, kind = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	control, data := appendControl(control, level, kind, 4)
	*(*int32)(data) = int32(ecn)
	return control
}

// AppendSegmentSize appends the control message that has the kernel cut one
// message into datagrams of size octets (udp(7)).
func AppendSegmentSize(control []byte, size uint16) []byte {
	control, data := appendControl(control, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
	*(*uint16)(data) = size
	return control
}

// appendControl appends a control message with room for n octets of data.
func appendControl(control []byte, level, kind int32, n int) ([]byte, unsafe.Pointer) {
	at := len(control)
	control = control[:at+unix.CmsgSpace(n)]
	h := (*unix.Cmsghdr)(unsafe.Pointer(&control[at]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(n))
	return control, unsafe.Pointer(&control[at+unix.CmsgLen(0)])
}

// Arrival is what the kernel said of a message it received.
type Arrival struct {
	Size int // of each datagram in it, the last may be shorter; 0: it is one
	ECN  byte
	Src  Source // the address it was sent to
}

// ParseControl reads the control messages of a received message.
func ParseControl(b []byte) (a Arrival) {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		if h.Len < unix.SizeofCmsghdr || h.Len > uint64(len(b)) {
			return a
		}
		data := b[unix.CmsgLen(0):h.Len]
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			a.Size = int(*(*int32)(unsafe.Pointer(&data[0])))
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 2: // as documented in udp(7)
			a.Size = int(*(*uint16)(unsafe.Pointer(&data[0])))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			a.ECN = data[0] & ecnMask
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			a.ECN = byte(*(*int32)(unsafe.Pointer(&data[0]))) & ecnMask
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0]))
			a.Src = Source{netip.AddrFrom4(info.Spec_dst), uint32(info.Ifindex)}
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0]))
			a.Src = Source{netip.AddrFrom16(info.Addr), info.Ifindex}
		}
		b = b[min(len(b), unix.CmsgSpace(int(h.Len)-unix.CmsgLen(0))):]
	}
	return a
}
