package udp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine"
)

// portTries bounds the search for an ephemeral port that is free in both
// families.
const portTries = 100

// Listen binds addr: the zero address and :: mean both families, on one port. Of
// each family there are n sockets, among which the kernel deals out what comes by
// where it comes from: what comes from one place keeps its order.
func Listen(addr netip.AddrPort, n int) ([]*net.UDPConn, error) {
	conns, err := listen(addr)
	if err != nil {
		return nil, err
	}
	for _, c := range conns {
		more, err := siblings(c, n-1)
		conns = append(conns, more...)
		if err != nil {
			CloseAll(conns)
			return nil, err
		}
	}
	return conns, nil
}

// siblings binds n sockets beside c, also when it fails. That c was bound alone
// shows that nobody else has the port; whoever would join later has to be the
// same user and to ask for it.
func siblings(c *net.UDPConn, n int) (conns []*net.UDPConn, err error) {
	if n <= 0 {
		return nil, nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	if err := reusePort("", "", raw); err != nil {
		return nil, fmt.Errorf("share UDP %v: %w", c.LocalAddr(), err)
	}
	local := LocalAddr(c)
	for range n {
		sibling, err := bind(networkOf(local.Addr()), local, reusePort)
		if err != nil {
			return conns, err
		}
		conns = append(conns, sibling)
	}
	return conns, nil
}

// reusePort has a socket share its port.
func reusePort(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	return errors.Join(err, failed)
}

// networkOf is the name of the family, as package net has it.
func networkOf(ip netip.Addr) string {
	if ip.Is6() {
		return "udp6"
	}
	return "udp4"
}

// listen is Listen with one socket of each family.
func listen(addr netip.AddrPort) ([]*net.UDPConn, error) {
	ip := addr.Addr().Unmap()
	if ip.IsValid() && ip != netip.IPv6Unspecified() {
		c, err := bind(networkOf(ip), netip.AddrPortFrom(ip, addr.Port()), nil)
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

// CloseAll closes what Listen bound.
func CloseAll(conns []*net.UDPConn) {
	for _, c := range conns {
		c.Close()
	}
}

// listenBoth binds port in both families, or in the only one the host has.
func listenBoth(port uint16) ([]*net.UDPConn, error) {
	v4, err4 := bind("udp4", netip.AddrPortFrom(netip.IPv4Unspecified(), port), nil)
	if err4 != nil && !errors.Is(err4, unix.EAFNOSUPPORT) {
		return nil, err4
	}
	if v4 != nil {
		port = uint16(v4.LocalAddr().(*net.UDPAddr).Port)
	}
	v6, err6 := bind("udp6", netip.AddrPortFrom(netip.IPv6Unspecified(), port), nil)
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

// bind binds one socket, prepared by control if there is one; a taken port is
// [engine.ErrPortTaken].
func bind(network string, addr netip.AddrPort, control func(network, address string, raw syscall.RawConn) error) (*net.UDPConn, error) {
	c, err := (&net.ListenConfig{Control: control}).ListenPacket(context.Background(), network, net.JoinHostPort(addr.Addr().String(), strconv.Itoa(int(addr.Port()))))
	switch {
	case err == nil:
		return c.(*net.UDPConn), nil
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("%w: %v: choose another listen address, or end the program that holds it (ss -lunp)", engine.ErrPortTaken, addr)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("bind UDP %v: no interface of this host has that address (yet): %w", addr, err)
	}
	return nil, fmt.Errorf("bind UDP %v: %w", addr, engine.Permission(err))
}
