package udp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine"
)

// Bits of Endpoint.flags.
const (
	flagSourceCleared = 1 << iota // the source was wrong: let the routing table choose
	flagNoSegments                // this path refuses segmented datagrams
)

// An Endpoint is where a peer is, and which of our addresses it spoke to. All
// but its flags is immutable: several threads send to it.
type Endpoint struct {
	Dst    netip.AddrPort // invalid: nowhere
	Src    Source         // our address; zero: the routing table chooses
	Path   uint32         // generation of the host's paths in which Src was seen
	Routed bool           // Src is zero on purpose: we chose Dst, so routes choose the source

	// Carrier, if not nil, is what datagrams travel by instead of UDP.
	Carrier engine.Carrier

	name    unix.RawSockaddrInet6 // Dst as the kernel reads it
	nameLen uint32                // octets of name in use
	flags   atomic.Uint32
}

// Source is the local end of a path: address and interface, as the kernel
// wrote them.
type Source struct {
	Addr    netip.Addr
	Ifindex uint32
}

// NewEndpoint makes the endpoint of dst, as it was heard of: from src, which
// may be zero, in a generation of paths.
func NewEndpoint(dst netip.AddrPort, src Source, path uint32) *Endpoint {
	e := &Endpoint{Dst: dst, Src: src, Path: path}
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
	return e
}

// NewRouted makes the endpoint of an address that we chose ourselves: the
// routing table chooses the source towards it, for each packet anew.
func NewRouted(dst netip.AddrPort) *Endpoint {
	e := NewEndpoint(dst, Source{}, 0)
	e.Routed = true
	return e
}

// NewCarried makes the endpoint of the peer behind a carrier.
func NewCarried(c engine.Carrier) *Endpoint {
	return &Endpoint{Dst: c.Remote(), Carrier: c}
}

// Covers reports whether a datagram from f brings nothing new.
func (e *Endpoint) Covers(f *Endpoint) bool { return e == f || e.Is(f.Dst, f.Src, f.Path) }

// Is reports whether e is what NewEndpoint would make.
func (e *Endpoint) Is(dst netip.AddrPort, src Source, path uint32) bool {
	return e.Dst == dst && (e.Routed || e.Src == src && e.Path == path && !e.has(flagSourceCleared))
}

// Is4 reports whether datagrams to e leave through the socket of IPv4.
func (e *Endpoint) Is4() bool { return e.nameLen == unix.SizeofSockaddrInet4 }

// HasSource reports whether a source is to be named in this generation of paths.
func (e *Endpoint) HasSource(path uint32) bool {
	return e.Src.Addr.IsValid() && e.Path == path && !e.has(flagSourceCleared)
}

// ClearSource makes the routing table choose the source from now on.
func (e *Endpoint) ClearSource() { e.set(flagSourceCleared) }

// SourceCleared reports whether ClearSource was called, or had to be.
func (e *Endpoint) SourceCleared() bool { return e.has(flagSourceCleared) }

func (e *Endpoint) set(flag uint32)      { e.flags.Or(flag) }
func (e *Endpoint) unset(flag uint32)    { e.flags.And(^flag) }
func (e *Endpoint) has(flag uint32) bool { return e.flags.Load()&flag != 0 }

// AddrPort reads a socket address that the kernel wrote.
func AddrPort(name *unix.RawSockaddrInet6) netip.AddrPort {
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

// Canonical writes an address in the one form it has in the engines: IPv4 as
// such, zones as interface numbers.
func Canonical(addr netip.AddrPort) netip.AddrPort {
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
