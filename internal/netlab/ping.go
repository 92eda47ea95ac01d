package netlab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
)

const pingRetry = 200 * time.Millisecond

// Ping sends ICMP echo requests from the host until one is answered, and
// returns how long that one took.
func (h *Host) Ping(ctx context.Context, to netip.Addr) (time.Duration, error) {
	network, request, reply := "ip4:icmp", byte(8), byte(0) // RFC 792
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129 // RFC 4443, section 4
	}
	var conn net.PacketConn
	err := h.Do(func() (err error) {
		conn, err = net.ListenPacket(network, "")
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("host %s: ping: %w", h.name, err)
	}
	defer conn.Close()
	buf := make([]byte, 1500)
	for n := uint16(1); ; n++ {
		if ctx.Err() != nil {
			return 0, fmt.Errorf("host %s: no answer to a ping from %v: %w", h.name, to, context.Cause(ctx))
		}
		start := time.Now()
		conn.WriteTo(echoRequest(request, n, to.Is6()), &net.IPAddr{IP: to.AsSlice()}) // no route yet: the next one may have
		conn.SetReadDeadline(start.Add(pingRetry))
		for {
			got, from, err := conn.ReadFrom(buf)
			if err != nil {
				break
			}
			if isEchoReply(buf[:got], reply, n) && from.(*net.IPAddr).IP.Equal(to.AsSlice()) {
				return time.Since(start), nil
			}
		}
	}
}

// echoRequest makes an ICMP echo request; the kernel adds the checksum for
// IPv6.
func echoRequest(kind byte, n uint16, is6 bool) []byte {
	msg := make([]byte, 16)
	msg[0] = kind
	binary.BigEndian.PutUint16(msg[4:], pingID)
	binary.BigEndian.PutUint16(msg[6:], n)
	if !is6 {
		binary.BigEndian.PutUint16(msg[2:], checksum(msg))
	}
	return msg
}

// pingID tells our replies from those to other programs on a host, which in a
// laboratory are none.
const pingID = 0x6e6c

func isEchoReply(msg []byte, kind byte, n uint16) bool {
	return len(msg) >= 8 && msg[0] == kind &&
		binary.BigEndian.Uint16(msg[4:]) == pingID && binary.BigEndian.Uint16(msg[6:]) == n
}
