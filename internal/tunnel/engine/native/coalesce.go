package native

import (
	"bytes"
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine/udp"
)

const (
	maxPacket = 1<<16 - 1 // octets of an IP packet
	maxPieces = 128       // packets in one group: with their headers' vector, far below UIO_MAXIOV
	flowSlots = 64        // flows that are remembered during a batch
)

// A group is what is written to the TUN device in one piece: one packet, or
// several of one flow that follow each other, which the kernel then takes as
// one. The pieces stay where they were opened; the kernel gathers them.
type group struct {
	first   []byte   // the first packet
	pieces  [][]byte // payloads of the others
	length  int      // of the packet they make together
	size    int      // payload of the first packet
	hdrLen  int      // octets of headers of the first packet; 0: no candidate
	start   int      // where the transport header starts
	nextSeq uint32   // TCP: of the packet that may follow
	tcp, v6 bool
	flow    int  // of flowSlots; -1: none
	closed  bool // nothing may follow
	checked bool // the checksum of the first packet holds
}

// A coalescer collects the packets of a batch and joins those of a flow, as
// the kernel's own GRO does (net/ipv4/tcp_offload.c, udp_offload.c). What
// cannot be joined keeps its place behind the packets of its flow.
type coalescer struct {
	groups []group // those in use are the first n
	n      int
	bytes  int // octets waiting
	flows  [flowSlots]struct {
		batch uint32 // in which group is true
		group int32
	}
	batch uint32
	join  bool // TCP is joined at all: the device has offloads
	udp   bool // UDP is, too
}

// add takes in an IP packet of which at least the header is there; the vnetLen
// octets before it in memory must be free (see group.vector).
func (c *coalescer) add(p []byte) {
	c.bytes += len(p)
	var g group
	g.first, g.length, g.closed = p, len(p), true
	g.flow = c.classify(p, &g)
	if g.flow < 0 {
		c.put(&g)
		return
	}
	flow := &c.flows[g.flow]
	if flow.batch == c.batch && g.start > 0 {
		before := &c.groups[flow.group]
		if sameFlow(before, &g) {
			if before.take(&g) {
				return
			}
			before.closed = true
		}
	}
	flow.batch, flow.group = c.batch, int32(c.n)
	c.put(&g)
}

func (c *coalescer) put(g *group) {
	if c.n == len(c.groups) {
		c.groups = append(c.groups, group{})
	}
	to := &c.groups[c.n]
	pieces := to.pieces[:0]
	*to = *g
	to.pieces = pieces
	c.n++
}

// reset begins a new batch.
func (c *coalescer) reset() {
	c.n, c.bytes = 0, 0
	c.batch++
	if c.batch == 0 { // a stale flow must not look like one of this batch
		clear(c.flows[:])
		c.batch = 1
	}
}

// classify finds the place of p's flow, -1 if it has none, and fills in what
// can be joined: start for any whole TCP and UDP packet, hdrLen and open for
// those that others may follow.
func (c *coalescer) classify(p []byte, g *group) int {
	var protocol byte
	var addrs []byte
	switch {
	case p[0] == 4<<4|5 && len(p) >= ip4Header+udpHeader:
		if int(binary.BigEndian.Uint16(p[2:])) != len(p) || p[6]&0x3f != 0 || p[7] != 0 { // a fragment
			return -1
		}
		protocol, addrs, g.start = p[9], p[ip4Addrs:ip4Header], ip4Header
	case p[0]>>4 == 6 && len(p) >= ip6Header+udpHeader:
		if int(binary.BigEndian.Uint16(p[4:])) != len(p)-ip6Header {
			return -1
		}
		protocol, addrs, g.start, g.v6 = p[6], p[ip6Addrs:ip6Header], ip6Header, true
	default:
		return -1
	}
	t := p[g.start:]
	switch {
	case protocol == unix.IPPROTO_TCP && len(t) >= tcpHeader:
		g.tcp = true
		if !c.join {
			break
		}
		n := int(t[tcpOffset]>>4) * 4
		if n < tcpHeader || n > len(t) {
			return -1
		}
		g.size = len(t) - n
		if flags := t[tcpFlags]; flags&^flagPSH == flagACK && g.size > 0 {
			g.hdrLen = g.start + n
			g.closed = flags&flagPSH != 0
			g.nextSeq = binary.BigEndian.Uint32(t[tcpSeq:]) + uint32(g.size)
		}
	case protocol == unix.IPPROTO_UDP:
		if !c.udp {
			break
		}
		g.size = len(t) - udpHeader
		if g.size > 0 && int(binary.BigEndian.Uint16(t[udpLength:])) == len(t) && t[udpChecksum]|t[udpChecksum+1] != 0 {
			g.hdrLen = g.start + udpHeader
			g.closed = false
		}
	default:
		return -1
	}
	h := binary.NativeEndian.Uint32(t) // ports
	for ; len(addrs) >= 4; addrs = addrs[4:] {
		h = (h ^ binary.NativeEndian.Uint32(addrs)) * 0x9e3779b1
	}
	return int(h >> 26) // of flowSlots
}

// sameFlow reports whether addresses, ports and protocol are the same.
func sameFlow(a, b *group) bool {
	if a.v6 != b.v6 || a.tcp != b.tcp || a.start != b.start {
		return false
	}
	addrs := ip4Addrs
	if a.v6 {
		addrs = ip6Addrs
	}
	return bytes.Equal(a.first[addrs:a.start+4], b.first[addrs:b.start+4])
}

// take joins the packet of b to g if it can be the next of its flow.
func (g *group) take(b *group) bool {
	if g.closed || b.hdrLen == 0 || b.hdrLen != g.hdrLen || b.size > g.size || len(g.pieces) >= g.maxPieces() || g.length+b.size > maxPacket || !sameHeaders(g, b) {
		return false
	}
	if g.tcp && binary.BigEndian.Uint32(b.first[b.start+tcpSeq:]) != g.nextSeq {
		return false
	}
	if !g.checked && !g.check() {
		return false
	}
	if !b.check() {
		return false
	}
	g.pieces = append(g.pieces, b.first[b.hdrLen:])
	g.length += b.size
	g.nextSeq += uint32(b.size)
	if g.tcp && b.closed { // PSH
		g.first[g.start+tcpFlags] |= flagPSH
	}
	g.closed = b.size < g.size || g.tcp && b.closed
	return true
}

// maxPieces is how many packets may be joined to the first. The kernel refuses
// more than udp.MaxSegments of UDP in one.
func (g *group) maxPieces() int {
	if g.tcp {
		return maxPieces
	}
	return udp.MaxSegments - 1
}

// sameHeaders reports whether the headers allow b in one packet with g: the
// traffic class, DF and hop limit, and of TCP the acknowledgement and the options.
func sameHeaders(g, b *group) bool {
	x, y := g.first, b.first
	if g.v6 {
		if binary.NativeEndian.Uint32(x) != binary.NativeEndian.Uint32(y) || x[7] != y[7] {
			return false
		}
	} else if x[1] != y[1] || x[6] != y[6] || x[8] != y[8] {
		return false
	}
	if !g.tcp {
		return true
	}
	x, y = x[g.start:g.hdrLen], y[g.start:g.hdrLen]
	return binary.NativeEndian.Uint32(x[tcpAck:]) == binary.NativeEndian.Uint32(y[tcpAck:]) && bytes.Equal(x[tcpHeader:], y[tcpHeader:]) &&
		binary.NativeEndian.Uint16(x[14:]) == binary.NativeEndian.Uint16(y[14:]) // window
}

// check verifies the checksum, because the kernel takes ours for a whole group
// on trust.
func (g *group) check() bool {
	g.checked = true
	t := g.first[g.start:]
	if fold(sum(t, g.pseudo(len(t)))) == 0xffff {
		return true
	}
	g.closed = true
	return false
}

func (g *group) pseudo(length int) uint64 {
	if g.v6 {
		return pseudoSum(g.protocol(), g.first[ip6Addrs:ip6Header], length)
	}
	return pseudoSum(g.protocol(), g.first[ip4Addrs:ip4Header], length)
}

func (g *group) protocol() byte {
	if g.tcp {
		return unix.IPPROTO_TCP
	}
	return unix.IPPROTO_UDP
}

// withHeader is the first packet with the header for the device in front, where
// the datagram had its own. Its headers become those of the packet that the
// group has become.
func (g *group) withHeader() []byte {
	v := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(&g.first[0]), -vnetLen)), vnetLen+len(g.first))
	if len(g.pieces) == 0 {
		clear(v[:vnetLen])
		return v
	}
	h := vnetHeader{
		flags:   unix.VIRTIO_NET_HDR_F_NEEDS_CSUM,
		gsoType: unix.VIRTIO_NET_HDR_GSO_UDP_L4,
		hdrLen:  uint16(g.hdrLen), gsoSize: uint16(g.size), csumStart: uint16(g.start), csumOffset: udpChecksum,
	}
	p := g.first
	if g.v6 {
		binary.BigEndian.PutUint16(p[4:], uint16(g.length-ip6Header))
	} else {
		binary.BigEndian.PutUint16(p[2:], uint16(g.length))
		p[10], p[11] = 0, 0
		putChecksum(p[10:], sum(p[:ip4Header], 0))
	}
	if g.tcp {
		h.csumOffset = tcpChecksum
		h.gsoType = unix.VIRTIO_NET_HDR_GSO_TCPV4
		if g.v6 {
			h.gsoType = unix.VIRTIO_NET_HDR_GSO_TCPV6
		}
	} else {
		binary.BigEndian.PutUint16(p[g.start+udpLength:], uint16(g.length-g.start))
	}
	putPartial(p[g.start+int(h.csumOffset):], g.pseudo(g.length-g.start))
	h.put(v)
	return v
}
