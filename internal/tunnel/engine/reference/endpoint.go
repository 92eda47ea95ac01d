package reference

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// Bits of endpoint.flags.
const (
	flagSourceCleared = 1 << iota // the source was wrong: let the routing table choose
	flagNoSegments                // this path refuses segmented datagrams
)

// An endpoint is where a peer is, and which of our addresses it spoke to. All
// but its flags is immutable, because wireguard-go sends to one endpoint from
// several goroutines.
type endpoint struct {
	dst     netip.AddrPort          // invalid: nowhere, what is sent there is dropped
	name    unix.RawSockaddrInet6   // dst as the kernel reads it
	nameLen uint32                  // octets of name in use
	src     source                  // our address; zero: the routing table chooses
	control [controlSourceSize]byte // the control message that names src
	ctlLen  int                     // octets of control in use
	path    uint32                  // generation of the host's paths in which src was seen
	epoch   uint32                  // of the hub, in which it was made
	routed  bool                    // src is zero on purpose
	flags   atomic.Uint32
}

// source is the local end of a path: address and interface.
type source struct {
	addr    netip.Addr
	ifindex uint32
}

var _ conn.Endpoint = (*endpoint)(nil)

var controlSourceSpace4, controlSourceSpace6 = unix.CmsgSpace(unix.SizeofInet4Pktinfo), unix.CmsgSpace(unix.SizeofInet6Pktinfo)

// controlSourceSize has room for the larger of the two.
const controlSourceSize = 64

// newEndpoint makes the endpoint of dst; src may be zero.
func newEndpoint(dst netip.AddrPort, src source, path uint32) *endpoint {
	e := &endpoint{dst: dst, src: src, path: path}
	switch {
	case dst.Addr().Is4():
		name := (*unix.RawSockaddrInet4)(unsafe.Pointer(&e.name))
		name.Family, name.Port, name.Addr = unix.AF_INET, networkOrder(dst.Port()), dst.Addr().As4()
		e.nameLen = unix.SizeofSockaddrInet4
	case dst.Addr().Is6():
		e.name.Family, e.name.Port, e.name.Addr = unix.AF_INET6, networkOrder(dst.Port()), dst.Addr().As16()
		e.name.Scope_id = scopeID(dst.Addr())
		e.nameLen = unix.SizeofSockaddrInet6
	}
	e.setControl()
	return e
}

// setControl writes the IP_PKTINFO or IPV6_PKTINFO message for src.
func (e *endpoint) setControl() {
	header := (*unix.Cmsghdr)(unsafe.Pointer(&e.control))
	data := unsafe.Pointer(&e.control[unix.CmsgLen(0)])
	switch {
	case e.src.addr.Is4():
		header.Level, header.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
		header.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		*(*unix.Inet4Pktinfo)(data) = unix.Inet4Pktinfo{Ifindex: int32(e.src.ifindex), Spec_dst: e.src.addr.As4()}
		e.ctlLen = controlSourceSpace4
	case e.src.addr.Is6():
		header.Level, header.Type = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO
		header.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
		*(*unix.Inet6Pktinfo)(data) = unix.Inet6Pktinfo{Ifindex: e.src.ifindex, Addr: e.src.addr.As16()}
		e.ctlLen = controlSourceSpace6
	}
}

// sourceControl is the control message to send with in the given generation of
// paths; empty if the routing table is to choose.
func (e *endpoint) sourceControl(path uint32) []byte {
	if e.path != path || e.flags.Load()&flagSourceCleared != 0 {
		return nil
	}
	return e.control[:e.ctlLen]
}

func (e *endpoint) set(flag uint32)      { e.flags.Or(flag) }
func (e *endpoint) unset(flag uint32)    { e.flags.And(^flag) }
func (e *endpoint) has(flag uint32) bool { return e.flags.Load()&flag != 0 }

// ClearSrc makes the routing table choose the source from now on.
func (e *endpoint) ClearSrc() { e.set(flagSourceCleared) }

// SrcIP is our address on this path; the zero Addr if the routing table chooses.
func (e *endpoint) SrcIP() netip.Addr {
	if e.has(flagSourceCleared) {
		return netip.Addr{}
	}
	return e.src.addr
}

// SrcToString is SrcIP as text.
func (e *endpoint) SrcToString() string { return e.SrcIP().String() }

// DstIP is the peer's address.
func (e *endpoint) DstIP() netip.Addr { return e.dst.Addr() }

// DstToString is the peer's address and port; empty for nowhere.
func (e *endpoint) DstToString() string {
	if !e.dst.IsValid() {
		return ""
	}
	return e.dst.String()
}

// DstToBytes is what cookies are bound to.
func (e *endpoint) DstToBytes() []byte {
	b, _ := e.dst.MarshalBinary() // never fails
	return b
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
