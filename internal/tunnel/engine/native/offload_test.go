package native

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine/udp"
)

// onesSum is the Internet checksum as RFC 1071, section 4.1 has it: slow and plain.
func onesSum(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for i := 0; i < len(b); i += 2 {
			w := uint32(b[i]) << 8
			if i+1 < len(b) {
				w |= uint32(b[i+1])
			}
			s += w
			s = s>>16 + s&0xffff
		}
	}
	return uint16(s)
}

// valid reports what is wrong with the lengths and checksums of a packet.
func valid(p []byte) string {
	var addrs, t []byte
	var protocol byte
	if p[0]>>4 == 4 {
		if int(binary.BigEndian.Uint16(p[2:])) != len(p) {
			return "IPv4 length"
		}
		if onesSum(p[:20]) != 0xffff {
			return "IPv4 checksum"
		}
		addrs, t, protocol = p[12:20], p[20:], p[9]
	} else {
		if int(binary.BigEndian.Uint16(p[4:])) != len(p)-40 {
			return "IPv6 length"
		}
		addrs, t, protocol = p[8:40], p[40:], p[6]
	}
	pseudo := binary.BigEndian.AppendUint32(nil, uint32(len(t)))
	if onesSum(addrs, append(pseudo, 0, 0, 0, protocol), t) != 0xffff {
		return "transport checksum"
	}
	if protocol == unix.IPPROTO_UDP && int(binary.BigEndian.Uint16(t[4:])) != len(t) {
		return "UDP length"
	}
	return ""
}

// A form is a packet to be built.
type form struct {
	v6, tcp bool
	options int    // octets of TCP options
	flags   byte   // of TCP
	seq     uint32 // of TCP
	port    uint16
	payload []byte

	from, to byte // the last octets of the addresses
}

// packet builds a whole packet, with all checksums.
func (f form) packet() []byte {
	var t []byte
	if f.tcp {
		t = make([]byte, 20+f.options)
		binary.BigEndian.PutUint16(t, f.port)
		binary.BigEndian.PutUint16(t[2:], 80)
		binary.BigEndian.PutUint32(t[4:], f.seq)
		binary.BigEndian.PutUint32(t[8:], 77)
		t[12], t[13] = byte((20+f.options)/4<<4), f.flags
		binary.BigEndian.PutUint16(t[14:], 500)
		for i := range f.options {
			t[20+i] = 1
		}
	} else {
		t = make([]byte, 8)
		binary.BigEndian.PutUint16(t, f.port)
		binary.BigEndian.PutUint16(t[2:], 53)
		binary.BigEndian.PutUint16(t[4:], uint16(8+len(f.payload)))
	}
	t = append(t, f.payload...)
	var p, addrs []byte
	protocol, check := byte(unix.IPPROTO_UDP), 6
	if f.tcp {
		protocol, check = unix.IPPROTO_TCP, 16
	}
	if f.v6 {
		p = make([]byte, 40)
		p[0], p[6], p[7], p[8], p[23], p[24], p[39] = 0x60, protocol, 64, 0xfd, f.from, 0xfd, f.to
		binary.BigEndian.PutUint16(p[4:], uint16(len(t)))
		addrs = p[8:40]
	} else {
		p = make([]byte, 20)
		p[0], p[6], p[8], p[9], p[12], p[15], p[16], p[19] = 0x45, 0x40, 64, protocol, 10, f.from, 10, f.to
		binary.BigEndian.PutUint16(p[2:], uint16(20+len(t)))
		binary.BigEndian.PutUint16(p[10:], ^onesSum(p))
		addrs = p[12:20]
	}
	pseudo := binary.BigEndian.AppendUint32(nil, uint32(len(t)))
	binary.BigEndian.PutUint16(t[check:], ^onesSum(addrs, append(pseudo, 0, 0, 0, protocol), t))
	return append(p, t...)
}

// large is what the kernel gives for f: with header, and its checksum partial.
func (f form) large(size int) []byte {
	p := f.packet()
	start := 20
	if f.v6 {
		start = 40
	}
	h := vnetHeader{flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, gsoType: unix.VIRTIO_NET_HDR_GSO_UDP_L4, gsoSize: uint16(size), csumStart: uint16(start), csumOffset: 6}
	if f.tcp {
		h.csumOffset, h.gsoType = 16, unix.VIRTIO_NET_HDR_GSO_TCPV4
		if f.v6 {
			h.gsoType = unix.VIRTIO_NET_HDR_GSO_TCPV6
		}
	}
	clear(p[start+int(h.csumOffset):][:2])
	b := make([]byte, vnetLen, vnetLen+len(p)+16)
	h.put(b)
	return append(b, p...)
}

func forms(r *rand.Rand) []form {
	var all []form
	for _, v6 := range []bool{false, true} {
		for _, tcp := range []bool{false, true} {
			payload := make([]byte, 3000+r.IntN(50000))
			for i := range payload {
				payload[i] = byte(r.Uint32())
			}
			all = append(all, form{v6: v6, tcp: tcp, options: 12, flags: flagACK | flagPSH, seq: 0xffffff00, port: 4000, payload: payload})
		}
	}
	return all
}

// TestCutAndJoin cuts large packets and joins the pieces again: what comes out
// must be what went in.
func TestCutAndJoin(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		for _, f := range forms(r) {
			size := 500 + r.IntN(900)
			var c cutter
			if err := c.load(f.large(size)); err != nil {
				t.Fatalf("load of %d octets, v6 %v, tcp %v: %v", len(f.payload), f.v6, f.tcp, err)
			}
			join := coalescer{join: true, udp: true}
			join.reset()
			var got []byte
			n := 0
			for p, ok := c.next(); ok; p, ok = c.next() {
				if wrong := valid(p); wrong != "" {
					t.Fatalf("segment %d, v6 %v, tcp %v: wrong %s", n, f.v6, f.tcp, wrong)
				}
				room := make([]byte, vnetLen+len(p)) // as in the memory of a receiver
				copy(room[vnetLen:], p)
				got = append(got, room[vnetLen+c.hdrLen:]...)
				join.add(room[vnetLen:])
				n++
			}
			if want := (len(f.payload) + size - 1) / size; n != want {
				t.Errorf("%d octets in segments of %d: %d, want %d", len(f.payload), size, n, want)
			}
			if !bytes.Equal(got, f.payload) {
				t.Errorf("v6 %v, tcp %v: the segments carry something else than the packet", f.v6, f.tcp)
			}
			checkJoined(t, &join, f, n)
		}
	}
}

// checkJoined checks that groups hold f again, in as few packets as allowed.
func checkJoined(t *testing.T, join *coalescer, f form, segments int) {
	t.Helper()
	most := maxPieces + 1
	if !f.tcp {
		most = udp.MaxSegments
	}
	if want := (segments + most - 1) / most; join.n != want {
		t.Fatalf("%d segments, v6 %v, tcp %v: joined to %d packets, want %d", segments, f.v6, f.tcp, join.n, want)
	}
	var got []byte
	for i := range join.groups[:join.n] {
		g := &join.groups[i]
		b := append([]byte(nil), g.withHeader()...)
		for _, piece := range g.pieces {
			b = append(b, piece...)
		}
		var c cutter // as the kernel would
		if err := c.load(append(b, make([]byte, 16)...)[:len(b)]); err != nil {
			t.Fatalf("what was joined cannot be cut: %v", err)
		}
		for p, ok := c.next(); ok; p, ok = c.next() {
			if wrong := valid(p); wrong != "" {
				t.Fatalf("cut again: wrong %s", wrong)
			}
			header := c.hdrLen
			if header == 0 { // it stayed alone
				header = len(f.packet()) - len(f.payload)
			}
			got = append(got, p[header:]...)
		}
	}
	if !bytes.Equal(got, f.payload) {
		t.Error("what was joined carries something else")
	}
}

// TestPartialChecksum has the kernel leave a checksum to us.
func TestPartialChecksum(t *testing.T) {
	for _, f := range forms(rand.New(rand.NewPCG(3, 4))) {
		f.payload = f.payload[:101]
		want := f.packet()
		b := f.large(0)
		h := vnet(b)
		h.gsoType = unix.VIRTIO_NET_HDR_GSO_NONE
		h.put(b)
		p := b[vnetLen:]
		addrs := p[12:20]
		protocol := byte(unix.IPPROTO_UDP)
		if f.v6 {
			addrs = p[8:40]
		}
		if f.tcp {
			protocol = unix.IPPROTO_TCP
		}
		at := p[h.csumStart:]
		putPartial(at[h.csumOffset:], pseudoSum(protocol, addrs, len(at)))
		var c cutter
		if err := c.load(b); err != nil {
			t.Fatal(err)
		}
		got, ok := c.next()
		if !ok || !bytes.Equal(got, want) {
			t.Errorf("v6 %v, tcp %v: packet = %x, want %x", f.v6, f.tcp, got[:60], want[:60])
		}
		if _, more := c.next(); more {
			t.Error("one packet came out twice")
		}
	}
}

// TestNotJoined has packets that must stay alone.
func TestNotJoined(t *testing.T) {
	payload := bytes.Repeat([]byte("x"), 100)
	base := form{tcp: true, flags: flagACK, seq: 1000, port: 1, payload: payload}
	next := base
	next.seq += 100
	change := func(f form, c func(p []byte)) []byte {
		p := f.packet()
		c(p)
		return p
	}
	other, gap, fin, longer := next, next, next, next
	other.port = 2
	gap.seq++
	fin.flags |= flagFIN
	longer.payload = append(payload, 'x')
	pushed := base
	pushed.flags |= flagPSH
	for name, pair := range map[string][2][]byte{
		"another flow":   {base.packet(), other.packet()},
		"a gap":          {base.packet(), gap.packet()},
		"FIN":            {base.packet(), fin.packet()},
		"a longer one":   {base.packet(), longer.packet()},
		"after PSH":      {pushed.packet(), next.packet()},
		"hop limit":      {base.packet(), change(next, func(p []byte) { p[8]-- })},
		"traffic class":  {base.packet(), change(next, func(p []byte) { p[1] = 4 })},
		"fragment":       {base.packet(), change(next, func(p []byte) { p[6] |= 0x20 })},
		"window":         {base.packet(), change(next, func(p []byte) { p[35]++ })},
		"acknowledgment": {base.packet(), change(next, func(p []byte) { p[31]++ })},
		"bad second":     {base.packet(), change(next, func(p []byte) { p[60]++ })},
		"bad first":      {change(base, func(p []byte) { p[60]++ }), next.packet()},
	} {
		c := coalescer{join: true, udp: true}
		c.reset()
		for _, p := range pair {
			c.add(append(make([]byte, vnetLen), p...)[vnetLen:])
		}
		if c.n != 2 {
			t.Errorf("%s: %d packets, want 2", name, c.n)
			continue
		}
		for i, want := range pair {
			if g := &c.groups[i]; !bytes.Equal(g.withHeader()[vnetLen:], want) || vnet(g.withHeader()) != (vnetHeader{}) {
				t.Errorf("%s: packet %d was changed", name, i)
			}
		}
	}
	c := coalescer{join: true}
	c.reset()
	for _, f := range []form{base, next} {
		c.add(append(make([]byte, vnetLen), f.packet()...)[vnetLen:])
	}
	if c.n != 1 || c.groups[0].length != 240 {
		t.Errorf("two that belong together: %d packets of %d octets, want 1 of 240", c.n, c.groups[0].length)
	}
}

// TestBadLarge has headers of the kernel that make no sense.
func TestBadLarge(t *testing.T) {
	f := form{tcp: true, flags: flagACK, payload: make([]byte, 100)}
	for name, change := range map[string]func(h *vnetHeader, p []byte){
		"kind":             func(h *vnetHeader, p []byte) { h.gsoType = 99 },
		"no size":          func(h *vnetHeader, p []byte) { h.gsoSize = 0 },
		"start":            func(h *vnetHeader, p []byte) { h.csumStart = 4 },
		"start behind end": func(h *vnetHeader, p []byte) { h.csumStart = 60000 },
		"TCP header":       func(h *vnetHeader, p []byte) { p[32] = 0 },
		"TCP header long":  func(h *vnetHeader, p []byte) { p[32], h.csumStart = 0xf0, 90 },
		"checksum behind":  func(h *vnetHeader, p []byte) { h.gsoType, h.csumOffset = 0, 60000 },
	} {
		b := f.large(50)
		h := vnet(b)
		change(&h, b[vnetLen:])
		h.put(b)
		var c cutter
		if err := c.load(b); err == nil {
			t.Errorf("%s: load = nil, want an error", name)
		}
	}
}

// FuzzJoin: a peer with keys of its own chooses the packets of a batch. Nothing
// may be lost, changed or read outside of them.
func FuzzJoin(f *testing.F) {
	for _, x := range forms(rand.New(rand.NewPCG(5, 6))) {
		x.payload = x.payload[:40]
		f.Add(x.packet(), x.packet(), uint8(0))
		y := x
		y.seq += 40
		f.Add(x.packet(), y.packet(), uint8(3))
	}
	f.Fuzz(func(t *testing.T, a, b []byte, swap uint8) {
		c := coalescer{join: true, udp: true}
		c.reset()
		total := 0
		for i := range 4 {
			raw := a
			if swap>>i&1 == 1 {
				raw = b
			}
			p, _, ok := parseIP(raw)
			if !ok {
				continue
			}
			if combineECN(append([]byte(nil), p...), swap&3); len(p) == 0 {
				t.Fatal("an empty packet passed")
			}
			c.add(append(make([]byte, vnetLen), p...)[vnetLen:])
			total += len(p)
		}
		got := 0
		for i := range c.groups[:c.n] {
			g := &c.groups[i]
			got += len(g.withHeader()) - vnetLen
			for _, piece := range g.pieces {
				got += len(piece) + g.hdrLen
			}
		}
		if got != total {
			t.Errorf("%d octets came out, want %d", got, total)
		}
	})
}

// FuzzCut: a program on the host, or behind it, chooses what the interface
// gives us.
func FuzzCut(f *testing.F) {
	for _, x := range forms(rand.New(rand.NewPCG(7, 8))) {
		x.payload = x.payload[:300]
		f.Add(x.large(100))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxPacket {
			return
		}
		memory := append(append([]byte(nil), b...), make([]byte, 16)...)
		var c cutter
		if c.load(memory[:len(b)]) != nil {
			return
		}
		for p, ok := c.next(); ok; p, ok = c.next() {
			if len(p) == 0 || len(p) > len(b)-vnetLen {
				t.Fatalf("a packet of %d octets came out of %d", len(p), len(b))
			}
		}
	})
}
