package udp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine"
)

// portTries bounds the search for an ephemeral port that is free in both
// families.
const portTries = 100

// Listen binds addr: the zero address and :: mean both families, on one port.
func Listen(addr netip.AddrPort) ([]*net.UDPConn, error) {
	ip := addr.Addr().Unmap()
	if ip.IsValid() && ip != netip.IPv6Unspecified() {
		network := "udp4"
		if ip.Is6() {
			network = "udp6"
		}
		c, err := bind(network, netip.AddrPortFrom(ip, addr.Port()))
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
	v4, err4 := bind("udp4", netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	if err4 != nil && !errors.Is(err4, unix.EAFNOSUPPORT) {
		return nil, err4
	}
	if v4 != nil {
		port = uint16(v4.LocalAddr().(*net.UDPAddr).Port)
	}
	v6, err6 := bind("udp6", netip.AddrPortFrom(netip.IPv6Unspecified(), port))
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

// bind binds one socket; a taken port is [engine.ErrPortTaken].
func bind(network string, addr netip.AddrPort) (*net.UDPConn, error) {
	c, err := new(net.ListenConfig).ListenPacket(context.Background(), network, net.JoinHostPort(addr.Addr().String(), strconv.Itoa(int(addr.Port()))))
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
