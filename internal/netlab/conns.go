package netlab

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Conn is an established TCP connection of a host, as the host's end sees it.
type Conn struct{ Local, Remote netip.AddrPort }

// Conns returns the host's established TCP connections with a remote port.
func (h *Host) Conns(port uint16) ([]Conn, error) {
	var found []Conn
	err := h.Do(func() error {
		for _, file := range []string{"tcp", "tcp6"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + file)
			if errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
				continue
			}
			if err != nil {
				return err
			}
			conns, err := parseConns(string(b))
			if err != nil {
				return fmt.Errorf("host %s: /proc/net/%s: %w", h.name, file, err)
			}
			for _, c := range conns {
				if c.Remote.Port() == port {
					found = append(found, c)
				}
			}
		}
		return nil
	})
	return found, err
}

// parseConns reads the established connections of /proc/net/tcp or tcp6, see
// proc(5).
func parseConns(table string) ([]Conn, error) {
	const established = "01"
	var found []Conn
	for i, line := range strings.Split(table, "\n") {
		f := strings.Fields(line)
		if i == 0 || len(f) < 4 || f[3] != established {
			continue
		}
		local, err := parseProcAddr(f[1])
		if err != nil {
			return nil, err
		}
		remote, err := parseProcAddr(f[2])
		if err != nil {
			return nil, err
		}
		found = append(found, Conn{local, remote})
	}
	return found, nil
}

// parseProcAddr reads ADDR:PORT in hexadecimal, where an address is a row of
// 32-bit words, each in the byte order of the machine.
func parseProcAddr(s string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", s)
	}
	for ; len(host) > 0; host = host[8:] {
		word := b[len(b)-len(host)/2:]
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q has no port", s)
	}
	addr, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}
