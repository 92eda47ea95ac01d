package native

import (
	"net"
	"net/netip"
	"os"

	"tunneld/internal/event"
	"tunneld/internal/tunnel/engine/udp"
)

// sockets hands out the UDP sockets of the process before, if they are bound
// where addr says; else they are closed, and the keeper forgets them.
func (l *legacy) sockets(addr netip.AddrPort) (conns []*net.UDPConn, kept bool) {
	fits := true
	for _, fd := range l.take(socketName) {
		f := os.NewFile(uintptr(fd), socketName)
		c, err := net.FilePacketConn(f) // a duplicate
		f.Close()
		if err != nil {
			l.log.Warn("socket not taken over", event.KeyErr, err)
			fits = false
			continue
		}
		u, ok := c.(*net.UDPConn)
		if !ok {
			c.Close()
			fits = false
			continue
		}
		conns = append(conns, u)
		fits = fits && isBoundTo(udp.LocalAddr(u), addr)
	}
	if fits {
		return conns, len(conns) > 0
	}
	udp.CloseAll(conns)
	l.forget(socketName)
	return nil, false
}

// isBoundTo reports whether a socket bound to local is one of those that
// listen makes for addr.
func isBoundTo(local, addr netip.AddrPort) bool {
	if addr.Port() != 0 && local.Port() != addr.Port() {
		return false
	}
	want := addr.Addr().Unmap()
	if !want.IsValid() || want == netip.IPv6Unspecified() {
		return local.Addr().Unmap().IsUnspecified()
	}
	return local.Addr().Unmap() == want
}
