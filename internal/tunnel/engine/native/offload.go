package native

import (
	"encoding/binary"
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A vnetHeader stands before each packet that is read from or written to a TUN
// device with offloads: struct virtio_net_hdr of linux/virtio_net.h, in the
// host's byte order.
type vnetHeader struct {
	flags      uint8
	gsoType    uint8
	hdrLen     uint16 // octets of headers; the kernel's value cannot be relied upon
	gsoSize    uint16 // octets of payload in each segment
	csumStart  uint16 // where the checksum begins to be computed
	csumOffset uint16 // where it is put, from csumStart on
}

const vnetLen = int(unsafe.Sizeof(vnetHeader{}))

// vnet reads the header in front of b.
func vnet(b []byte) vnetHeader {
	var h vnetHeader
	copy((*[vnetLen]byte)(unsafe.Pointer(&h))[:], b[:vnetLen])
	return h
}

// put writes the header to the front of b.
func (h *vnetHeader) put(b []byte) {
	copy(b[:vnetLen], (*[vnetLen]byte)(unsafe.Pointer(h))[:])
}

// Offsets and sizes in IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293) and UDP
// (RFC 768) headers.
const (
	ip4Header, ip6Header = 20, 40
	ip4Addrs, ip6Addrs   = 12, 8
	udpHeader            = 8
	tcpHeader            = 20
	tcpMaxHeader         = 60
	tcpSeq, tcpAck       = 4, 8
	tcpOffset, tcpFlags  = 12, 13
	tcpChecksum          = 16
	udpLength            = 4
	udpChecksum          = 6

	flagFIN = 0x01
	flagPSH = 0x08
	flagACK = 0x10
	flagCWR = 0x80
)

// maxHeaders are the most octets of headers that a packet to be cut can have.
const maxHeaders = 60 + tcpMaxHeader

var errBadPacket = errors.New("native: the interface gave a packet that makes no sense")

// A cutter takes a packet as the TUN device gives it, which may be many times
// the MTU, and gives the packets it stands for. They lie where they were: the
// headers of each are written over the end of the one before it, so a packet
// must be done with when the next is taken.
type cutter struct {
	in      []byte // the packet; what follows it may be overwritten, see take
	headers [maxHeaders]byte
	hdrLen  int // octets of headers
	start   int // where the transport header starts
	check   int // where its checksum is
	size    int // of the payload of a segment
	at      int // where the payload of the next segment starts
	n       int // segments taken
	v6, tcp bool
}

// load takes in a packet with its header. It computes checksums that the
// kernel left to us.
func (c *cutter) load(b []byte) error {
	if len(b) < vnetLen+ip4Header {
		return errBadPacket
	}
	h := vnet(b)
	c.in, c.at, c.n = b[vnetLen:], 0, 0
	c.start, c.check = int(h.csumStart), int(h.csumStart)+int(h.csumOffset)
	if h.gsoType&^unix.VIRTIO_NET_HDR_GSO_ECN == unix.VIRTIO_NET_HDR_GSO_NONE {
		c.hdrLen, c.size = 0, len(c.in)
		if h.flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
			return nil
		}
		if c.check+2 > len(c.in) || c.start > c.check {
			return errBadPacket
		}
		// The field holds the sum of the pseudo header already.
		putChecksum(c.in[c.check:], sum(c.in[c.start:], 0))
		c.noZero()
		return nil
	}
	return c.loadLarge(h)
}

// noZero writes a UDP checksum of zero as its other form: zero means none
// (RFC 768).
func (c *cutter) noZero() {
	if c.check-c.start == udpChecksum && binary.NativeEndian.Uint16(c.in[c.check:]) == 0 {
		binary.NativeEndian.PutUint16(c.in[c.check:], 0xffff)
	}
}

// loadLarge prepares the cutting of a packet that is larger than the MTU.
func (c *cutter) loadLarge(h vnetHeader) error {
	c.v6 = c.in[0]>>4 == 6
	switch h.gsoType &^ unix.VIRTIO_NET_HDR_GSO_ECN {
	case unix.VIRTIO_NET_HDR_GSO_TCPV4, unix.VIRTIO_NET_HDR_GSO_TCPV6:
		if len(c.in) < c.start+tcpHeader {
			return errBadPacket
		}
		c.tcp, c.hdrLen, c.check = true, c.start+int(c.in[c.start+tcpOffset]>>4)*4, c.start+tcpChecksum
	case unix.VIRTIO_NET_HDR_GSO_UDP_L4:
		c.tcp, c.hdrLen, c.check = false, c.start+udpHeader, c.start+udpChecksum
	default:
		return errBadPacket
	}
	least := c.start + udpHeader
	if c.tcp {
		least = c.start + tcpHeader
	}
	ipHeader := ip4Header
	if c.v6 {
		ipHeader = ip6Header
	}
	c.size, c.at = int(h.gsoSize), c.hdrLen
	if c.start < ipHeader || c.hdrLen < least || c.hdrLen > min(maxHeaders, len(c.in)) || c.size == 0 {
		return errBadPacket
	}
	copy(c.headers[:], c.in[:c.hdrLen])
	return nil
}

// next gives the next packet, and false after the last one.
func (c *cutter) next() ([]byte, bool) {
	if c.hdrLen == 0 {
		if c.at != 0 || len(c.in) == 0 {
			return nil, false
		}
		c.at = len(c.in)
		return c.in, true
	}
	if c.at >= len(c.in) {
		return nil, false
	}
	end := min(c.at+c.size, len(c.in))
	p := c.in[c.at-c.hdrLen : end]
	copy(p, c.headers[:c.hdrLen])
	c.fix(p, end == len(c.in))
	c.at = end
	c.n++
	return p, true
}

// fix makes the copied headers of p those of the segment it is.
func (c *cutter) fix(p []byte, last bool) {
	addrs := p[ip6Addrs:ip6Header]
	if c.v6 {
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-ip6Header))
	} else {
		addrs = p[ip4Addrs:ip4Header]
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[4:], binary.BigEndian.Uint16(p[4:])+uint16(c.n))
		p[10], p[11] = 0, 0
		putChecksum(p[10:], sum(p[:c.start], 0))
	}
	t := p[c.start:]
	protocol := byte(unix.IPPROTO_UDP)
	if c.tcp {
		protocol = unix.IPPROTO_TCP
		binary.BigEndian.PutUint32(t[tcpSeq:], binary.BigEndian.Uint32(t[tcpSeq:])+uint32(c.n*c.size))
		if !last {
			t[tcpFlags] &^= flagFIN | flagPSH
		}
		if c.n > 0 {
			t[tcpFlags] &^= flagCWR // RFC 3168, section 6.1.2: once
		}
	} else {
		binary.BigEndian.PutUint16(t[udpLength:], uint16(len(t)))
	}
	check := p[c.check:]
	check[0], check[1] = 0, 0
	putChecksum(check, sum(t, pseudoSum(protocol, addrs, len(t))))
	if !c.tcp && check[0]|check[1] == 0 {
		check[0], check[1] = 0xff, 0xff
	}
}
