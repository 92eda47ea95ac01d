// Package udp is what the engines have in common towards the network: how the
// port is bound and a socket prepared, where a peer is and from which of our
// addresses it is answered, and the control messages that carry segments,
// congestion marks and addresses. How an engine waits for a socket, and what
// memory it reads into, is its own.
package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine"
)

// socketBuffer is enough for 7 MiB in flight, which at 10 Gbit/s are 6 ms
// without anybody reading.
const socketBuffer = 7 << 20

// A Socket is what is known of a UDP socket, whatever holds its descriptor.
type Socket struct {
	Local netip.AddrPort
	GRO   bool        // the kernel hands over several datagrams as one
	GSO   atomic.Bool // the kernel takes several datagrams as one
}

// LocalAddr is the address that c is bound to.
func LocalAddr(c *net.UDPConn) netip.AddrPort {
	return unmapped(c.LocalAddr().(*net.UDPAddr).AddrPort())
}

// Is4 reports whether the socket is of IPv4.
func (s *Socket) Is4() bool { return s.Local.Addr().Is4() }

// Prepare sets the options of the socket's descriptor. mark, if not zero, is
// set on what leaves; offload asks for segmentation and coalescing. Only what
// an engine cannot work without is an error; the rest costs speed.
func (s *Socket) Prepare(fd int, mark uint32, offload bool) error {
	for _, o := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, socketBuffer) // FORCE needs CAP_NET_ADMIN
	}
	if mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
			return fmt.Errorf("mark %#x on UDP %v: %w", mark, s.Local, engine.Permission(err))
		}
	}
	level, info, class := unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, unix.IPV6_RECVTCLASS
	if s.Is4() {
		level, info, class = unix.IPPROTO_IP, unix.IP_PKTINFO, unix.IP_RECVTOS
	}
	if s.Local.Addr().IsUnspecified() { // so that the answer leaves from where we were spoken to
		if err := unix.SetsockoptInt(fd, level, info, 1); err != nil {
			return fmt.Errorf("local addresses of UDP %v: %w", s.Local, err)
		}
	}
	_ = unix.SetsockoptInt(fd, level, class, 1) // without it congestion marks are lost, no packets
	s.setOffloads(fd, offload)
	return nil
}

// setOffloads turns segmentation and coalescing on where the kernel has them.
// It must be able to say that coalescing is on (Linux 5.12), since a receiver
// that does not expect it takes several datagrams for one. A process before may
// have turned it on.
func (s *Socket) setOffloads(fd int, wanted bool) {
	if !wanted {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 0)
		return
	}
	_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	s.GSO.Store(err == nil)
	if _, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO); err != nil {
		return
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	on, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO)
	s.GRO = err == nil && on == 1
}

// A Remedy is what to do about a message that the kernel refused.
type Remedy int

const (
	GiveUp   Remedy = iota // it is lost
	Unsource               // send it again: the routing table now chooses the source
	Divide                 // send its datagrams again, each alone
)

// Remedy decides whether a message that the kernel refused with err is worth
// another try, and changes what may have been the cause. sourced says that it
// named our address, segmented that it was several datagrams.
func (s *Socket) Remedy(to *Endpoint, sourced, segmented bool, err error) Remedy {
	switch {
	case segmented && errors.Is(err, unix.EIO): // the device computes no checksums: udp(7)
		s.GSO.Store(false)
		return Divide
	case segmented && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE)): // larger than the path's MTU
		to.set(flagNoSegments)
		return Divide
	case sourced && IsPathError(err): // our address or its interface is gone
		to.set(flagSourceCleared)
		to.unset(flagNoSegments) // that may have been the wrong conclusion
		return Unsource
	}
	return GiveUp
}

// Segments reports whether several datagrams to an endpoint may be one message.
func (s *Socket) Segments(to *Endpoint) bool { return s.GSO.Load() && !to.has(flagNoSegments) }

// IsPathError reports whether err can come from a source address or interface
// that no longer leads to the peer.
func IsPathError(err error) bool {
	for _, e := range []error{unix.EINVAL, unix.ENODEV, unix.ENXIO, unix.ENETDOWN, unix.EADDRNOTAVAIL, unix.ENETUNREACH, unix.EHOSTUNREACH} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
