package native

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bits of endpoint.flags.
const (
	flagSourceCleared = 1 << iota // the source was wrong: let the routing table choose
	flagNoSegments                // this path refuses segmented datagrams
)

// An endpoint is where a peer is, and which of our addresses it spoke to. All
// but its flags is immutable: several threads send to it.
type endpoint struct {
	dst     netip.AddrPort
	name    unix.RawSockaddrInet6 // dst as the kernel reads it
	nameLen uint32                // octets of name in use
	src     source                // our address; zero: the routing table chooses
	path    uint32                // generation of the host's paths in which src was seen
	routed  bool                  // src is zero on purpose: we chose dst, so routes choose the source
	flags   atomic.Uint32
}

// source is the local end of a path: address and interface, as the kernel
// wrote them.
type source struct {
	addr    netip.Addr
	ifindex uint32
}

// newEndpoint makes the endpoint of dst; src may be zero.
func newEndpoint(dst netip.AddrPort, src source, path uint32) *endpoint {
	e := &endpoint{dst: dst, src: src, path: path}
	if dst.Addr().Is4() {
		name := (*unix.RawSockaddrInet4)(unsafe.Pointer(&e.name))
		name.Family, name.Port, name.Addr = unix.AF_INET, networkOrder(dst.Port()), dst.Addr().As4()
		e.nameLen = unix.SizeofSockaddrInet4
	} else {
		e.name.Family, e.name.Port, e.name.Addr = unix.AF_INET6, networkOrder(dst.Port()), dst.Addr().As16()
		e.name.Scope_id = scopeID(dst.Addr())
		e.nameLen = unix.SizeofSockaddrInet6
	}
	return e
}

// covers reports whether a datagram from f brings nothing new.
func (e *endpoint) covers(f *endpoint) bool {
	return e == f || e.dst == f.dst && (e.routed || e.src == f.src && e.path == f.path && !e.has(flagSourceCleared))
}

// is4 reports whether datagrams to e leave through the socket of IPv4.
func (e *endpoint) is4() bool { return e.nameLen == unix.SizeofSockaddrInet4 }

// hasSource reports whether a source is to be named in this generation of paths.
func (e *endpoint) hasSource(path uint32) bool {
	return e.src.addr.IsValid() && e.path == path && !e.has(flagSourceCleared)
}

func (e *endpoint) set(flag uint32)      { e.flags.Or(flag) }
func (e *endpoint) unset(flag uint32)    { e.flags.And(^flag) }
func (e *endpoint) has(flag uint32) bool { return e.flags.Load()&flag != 0 }

// appendSource appends the control message that names the source.
func (e *endpoint) appendSource(control []byte) []byte {
	if e.src.addr.Is4() {
		control, data := appendControl(control, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		*(*unix.Inet4Pktinfo)(data) = unix.Inet4Pktinfo{Ifindex: int32(e.src.ifindex), Spec_dst: e.src.addr.As4()}
		return control
	}
	control, data := appendControl(control, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
	*(*unix.Inet6Pktinfo)(data) = unix.Inet6Pktinfo{Ifindex: e.src.ifindex, Addr: e.src.addr.As16()}
	return control
}

// appendTrafficClass appends the control message that sets the outer ECN field;
// DSCP stays zero, so that nothing of the inside shows.
func (e *endpoint) appendTrafficClass(control []byte, ecn byte) []byte {
	level, kind := int32(unix.IPPROTO_IP), int32(unix.IP_TOS)
	if !e.is4() {
		level, kind = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	control, data := appendControl(control, level, kind, 4)
	*(*int32)(data) = int32(ecn)
	return control
}

// appendSegmentSize appends the control message that has the kernel cut one
// message into datagrams of size octets (udp(7)).
func appendSegmentSize(control []byte, size uint16) []byte {
	control, data := appendControl(control, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
	*(*uint16)(data) = size
	return control
}

// appendControl appends a control message with room for n octets of data. The
// capacity must suffice.
func appendControl(control []byte, level, kind int32, n int) ([]byte, unsafe.Pointer) {
	at := len(control)
	control = control[:at+unix.CmsgSpace(n)]
	h := (*unix.Cmsghdr)(unsafe.Pointer(&control[at]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(n))
	return control, unsafe.Pointer(&control[at+unix.CmsgLen(0)])
}

// addrPort reads a socket address that the kernel wrote.
func addrPort(name *unix.RawSockaddrInet6) netip.AddrPort {
	switch name.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), networkOrder(v4.Port))
	case unix.AF_INET6:
		addr := netip.AddrFrom16(name.Addr).Unmap()
		if addr.Is6() && name.Scope_id != 0 {
			addr = addr.WithZone(strconv.FormatUint(uint64(name.Scope_id), 10))
		}
		return netip.AddrPortFrom(addr, networkOrder(name.Port))
	}
	return netip.AddrPort{}
}

// networkOrder turns a port between the host's and the network's byte order.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

// scopeID is the interface index in the zone of a link-local address; zones
// are numbers here, because a name would cost a system call per packet.
func scopeID(addr netip.Addr) uint32 {
	id, err := strconv.ParseUint(addr.Zone(), 10, 32)
	if err != nil {
		return 0
	}
	return uint32(id)
}

// numericZone writes an address in the one form it has in the engine: IPv4 as
// such, zones as interface numbers.
func numericZone(addr netip.AddrPort) netip.AddrPort {
	addr = unmapped(addr)
	if addr.Addr().Zone() == "" {
		return addr
	}
	if i, err := net.InterfaceByName(addr.Addr().Zone()); err == nil {
		return netip.AddrPortFrom(addr.Addr().WithZone(strconv.Itoa(i.Index)), addr.Port())
	}
	return addr
}

// unmapped writes an IPv4 address inside an IPv6 one as the IPv4 address it is.
func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
