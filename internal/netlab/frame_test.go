package netlab

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// testEth is an Ethernet header with the type of a's family.
func testEth(a netip.AddrPort) []byte {
	eth := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00}
	if a.Addr().Is6() {
		binary.BigEndian.PutUint16(eth[12:], etherIPv6)
	}
	return eth
}

func TestResetFrame(t *testing.T) {
	for _, tc := range []struct{ src, dst netip.AddrPort }{
		{ap("10.0.0.1:443"), ap("10.0.0.2:50000")},
		{ap("[fd00::1]:443"), ap("[fd00::2]:50000")},
	} {
		frame := resetFrame(testEth(tc.src), tc.src, tc.dst, 0xfffffff0, 77)
		p, ok := parse(append(frame, 0, 0, 0)) // Ethernet padding is not payload
		if !ok || p.src != tc.src || p.dst != tc.dst || len(p.payload) != 20 {
			t.Fatalf("parse(resetFrame(%v, %v)) = %+v, %v", tc.src, tc.dst, p, ok)
		}
		s, ok := p.tcp()
		want := tcpSegment{seq: 0xfffffff0, ack: 77, flags: tcpRST | tcpACK, end: 0xfffffff0}
		if !ok || s != want {
			t.Errorf("tcp() = %+v, %v, want %+v", s, ok, want)
		}
	}
}

func TestChecksum(t *testing.T) {
	// The example of RFC 1071, section 3: the sum is ddf2.
	if got := checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != 0x220d {
		t.Errorf("checksum = %#04x, want 0x220d", got)
	}
	if got := checksum([]byte{0x01}); got != 0xfeff {
		t.Errorf("checksum of an odd octet = %#04x, want 0xfeff", got)
	}
}

func TestParseRefuses(t *testing.T) {
	good4 := resetFrame(testEth(ap("10.0.0.1:1")), ap("10.0.0.1:1"), ap("10.0.0.2:2"), 1, 1)
	good6 := resetFrame(testEth(ap("[fd00::1]:1")), ap("[fd00::1]:1"), ap("[fd00::2]:2"), 1, 1)
	edit := func(frame []byte, at int, b byte) []byte {
		frame = append([]byte(nil), frame...)
		frame[at] = b
		return frame
	}
	for name, frame := range map[string][]byte{
		"empty":                   nil,
		"no IP header":            good4[:ethHeaderLen],
		"cut IPv4":                good4[:len(good4)-1],
		"cut IPv6":                good6[:len(good6)-1],
		"short IPv6 header":       good6[:ethHeaderLen+39],
		"IPv4 header of 4 octets": edit(good4, ethHeaderLen, 0x41),
		"IPv4 total below header": edit(good4, ethHeaderLen+3, 8),
		"ARP":                     edit(good4, 13, 0x06),
	} {
		if p, ok := parse(frame); ok {
			t.Errorf("%s: parse = %+v, want refused", name, p)
		}
	}
	p, ok := parse(edit(good4, ethHeaderLen+7, 5)) // fragment offset
	if _, isTCP := p.tcp(); !ok || isTCP || p.src.Port() != 0 {
		t.Errorf("a later fragment: parse = %+v, %v, want a packet without ports", p, ok)
	}
}

// FuzzParse stands for a host on a wire that sends any octets it likes.
func FuzzParse(f *testing.F) {
	f.Add(resetFrame(testEth(ap("10.0.0.1:1")), ap("10.0.0.1:1"), ap("10.0.0.2:2"), 1, 1))
	f.Add(resetFrame(testEth(ap("[fd00::1]:1")), ap("[fd00::1]:1"), ap("[fd00::2]:2"), 1, 1))
	f.Fuzz(func(t *testing.T, frame []byte) {
		p, ok := parse(frame)
		if !ok {
			return
		}
		p.neighbourly()
		if s, ok := p.tcp(); ok && s.end-s.seq > uint32(len(frame)) {
			t.Errorf("segment of %d octets in a frame of %d", s.end-s.seq, len(frame))
		}
	})
}

func TestParseConns(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue
   0: 0100007F:1F90 0200000A:01BB 01 00000000:00000000 00:00000000 00000000
   1: 00000000:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000
`
	got, err := parseConns(table)
	if err != nil || len(got) != 1 || got[0] != (Conn{ap("127.0.0.1:8080"), ap("10.0.0.2:443")}) {
		t.Errorf("parseConns = %v, %v, want one from 127.0.0.1:8080 to 10.0.0.2:443", got, err)
	}
	a, err := parseProcAddr("B80D01200000000067452301EFCDAB89:0050")
	if want := ap("[2001:db8::123:4567:89ab:cdef]:80"); err != nil || a != want {
		t.Errorf("parseProcAddr = %v, %v, want %v", a, err, want)
	}
	for _, bad := range []string{"", "0100007F", "0100007F:", "010000:01BB", "xyzzyxyz:01BB"} {
		if a, err := parseProcAddr(bad); err == nil {
			t.Errorf("parseProcAddr(%q) = %v, want an error", bad, a)
		}
	}
}

func TestLongestGap(t *testing.T) {
	answers := []int{10, 20, 90, 100, 110}
	for _, tc := range []struct {
		name           string
		from, to, want int
	}{
		{"quiet ends", 15, 105, 70},
		{"gap that begins before", 50, 105, 70},
		{"gap that ends after", 15, 50, 70},
		{"span inside a gap", 40, 50, 70},
		{"silence to the end", 95, 200, 90},
		{"nothing before", 0, 15, 10},
		{"after all", 150, 200, 90},
	} {
		list := durations(answers)
		if got := longestGap(list, ms(tc.from), ms(tc.to)); got != ms(tc.want) {
			t.Errorf("%s: longestGap(%v, %d, %d) = %v, want %d ms", tc.name, answers, tc.from, tc.to, got, tc.want)
		}
	}
	if got := longestGap(nil, ms(10), ms(30)); got != ms(20) {
		t.Errorf("no answer at all: longestGap = %v, want the whole span", got)
	}
}
