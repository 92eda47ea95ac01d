package native

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine"
)

const (
	// socketBuffer is enough for 7 MiB in flight, which at 10 Gbit/s are 6 ms
	// without anybody reading.
	socketBuffer = 7 << 20
	// portTries bounds the search for an ephemeral port that is free in both
	// families.
	portTries = 100
)

// A socket is one UDP socket of the engine: a descriptor of its own, which no
// poller of the runtime knows. Any thread may send, one receives.
type socket struct {
	fd    int
	local netip.AddrPort
	gro   bool        // the kernel hands over several datagrams as one
	gso   atomic.Bool // the kernel takes several datagrams as one
}

// newSocket takes over a bound UDP socket, also when it fails.
func newSocket(c *net.UDPConn, mark uint32, offload bool) (*socket, error) {
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{fd: -1, local: unmapped(c.LocalAddr().(*net.UDPAddr).AddrPort())}
	var failed error
	err = raw.Control(func(fd uintptr) {
		// Not File: that would make the descriptor blocking for all who share it.
		s.fd, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("UDP %v: %w", s.local, err)
	}
	if err := s.setOptions(mark, offload); err != nil {
		unix.Close(s.fd)
		return nil, err
	}
	return s, nil
}

// is4 reports whether the socket is of IPv4.
func (s *socket) is4() bool { return s.local.Addr().Is4() }

// setOptions prepares the descriptor. Only what the engine cannot work without
// is an error; the rest costs speed.
func (s *socket) setOptions(mark uint32, offload bool) error {
	for _, o := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, o, socketBuffer) // FORCE needs CAP_NET_ADMIN
	}
	if mark != 0 {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
			return fmt.Errorf("mark %#x on UDP %v: %w", mark, s.local, permission(err))
		}
	}
	level, info, class := unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, unix.IPV6_RECVTCLASS
	if s.is4() {
		level, info, class = unix.IPPROTO_IP, unix.IP_PKTINFO, unix.IP_RECVTOS
	}
	if s.local.Addr().IsUnspecified() { // so that the answer leaves from where we were spoken to
		if err := unix.SetsockoptInt(s.fd, level, info, 1); err != nil {
			return fmt.Errorf("local addresses of UDP %v: %w", s.local, err)
		}
	}
	_ = unix.SetsockoptInt(s.fd, level, class, 1) // without it congestion marks are lost, no packets
	if offload {
		s.setOffloads()
	}
	return nil
}

// setOffloads turns segmentation and coalescing on where the kernel has them.
// It must be able to say that coalescing is on (Linux 5.12), since a receiver
// that does not expect it takes several datagrams for one.
func (s *socket) setOffloads() {
	_, err := unix.GetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	s.gso.Store(err == nil)
	if _, err := unix.GetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_GRO); err != nil {
		return
	}
	_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	on, err := unix.GetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_GRO)
	s.gro = err == nil && on == 1
}

// close frees the descriptor. Nobody may use the socket any more.
func (s *socket) close() error { return unix.Close(s.fd) }

// listen binds addr: the zero address and :: mean both families, on one port.
func listen(addr netip.AddrPort) ([]*net.UDPConn, error) {
	ip := addr.Addr().Unmap()
	if ip.IsValid() && ip != netip.IPv6Unspecified() {
		network := "udp4"
		if ip.Is6() {
			network = "udp6"
		}
		c, err := bindUDP(network, netip.AddrPortFrom(ip, addr.Port()))
		if err != nil {
			return nil, err
		}
		return []*net.UDPConn{c}, nil
	}
	for try := 1; ; try++ {
		conns, err := listenBoth(addr.Port())
		if addr.Port() == 0 && errors.Is(err, engine.ErrPortTaken) && try < portTries {
			continue // the port was free in IPv4 only
		}
		return conns, err
	}
}

// listenBoth binds port in both families, or in the only one the host has.
func listenBoth(port uint16) ([]*net.UDPConn, error) {
	v4, err4 := bindUDP("udp4", netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	if err4 != nil && !errors.Is(err4, unix.EAFNOSUPPORT) {
		return nil, err4
	}
	if v4 != nil {
		port = uint16(v4.LocalAddr().(*net.UDPAddr).Port)
	}
	v6, err6 := bindUDP("udp6", netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	switch {
	case v4 != nil && v6 != nil:
		return []*net.UDPConn{v4, v6}, nil
	case v4 != nil && errors.Is(err6, unix.EAFNOSUPPORT):
		return []*net.UDPConn{v4}, nil
	case v4 != nil:
		v4.Close()
		return nil, err6
	case v6 != nil:
		return []*net.UDPConn{v6}, nil
	}
	return nil, err6
}

// bindUDP binds one socket; a taken port is [engine.ErrPortTaken].
func bindUDP(network string, addr netip.AddrPort) (*net.UDPConn, error) {
	c, err := new(net.ListenConfig).ListenPacket(context.Background(), network, net.JoinHostPort(addr.Addr().String(), strconv.Itoa(int(addr.Port()))))
	switch {
	case err == nil:
		return c.(*net.UDPConn), nil
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("%w: %v: choose another listen address, or end the program that holds it (ss -lunp)", engine.ErrPortTaken, addr)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("bind UDP %v: no interface of this host has that address (yet): %w", addr, err)
	}
	return nil, fmt.Errorf("bind UDP %v: %w", addr, permission(err))
}

// permission adds [engine.ErrNotPermitted] to an error of the kernel that
// means it.
func permission(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: %w", engine.ErrNotPermitted, err)
	}
	return err
}
