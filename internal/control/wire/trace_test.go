package wire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

type buffer = bytes.Buffer

var somePath = Path{Local: netip.MustParseAddrPort("192.0.2.77:40000"), Remote: netip.MustParseAddrPort("203.0.113.1:443"), Dialled: true}

func newTrace(t testing.TB, w io.Writer) *Trace {
	t.Helper()
	trace, err := NewTrace(w)
	if err != nil {
		t.Fatal(err)
	}
	return trace
}

// A capture is a packet of a trace as an independent reader finds it.
type capture struct {
	at       time.Time
	packet   []byte
	original int
	flags    uint32
	comment  string
}

// options reads the options at the end of a block.
func options(t testing.TB, b []byte) map[uint16][]byte {
	found := map[uint16][]byte{}
	for len(b) >= 4 {
		code, n := binary.LittleEndian.Uint16(b), int(binary.LittleEndian.Uint16(b[2:]))
		if code == 0 {
			if len(b) != 4 || n != 0 {
				t.Fatalf("%d octets after the end of options", len(b)-4)
			}
			return found
		}
		found[code] = b[4 : 4+n]
		b = b[4+(n+3)/4*4:]
	}
	t.Fatalf("options without an end")
	return nil
}

// readTrace reads a capture file of one section, by the rules of the format.
func readTrace(t testing.TB, b []byte) (all []capture) {
	t.Helper()
	for i := 0; len(b) > 0; i++ {
		kind, n := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
		if n%4 != 0 || int(n) > len(b) || binary.LittleEndian.Uint32(b[n-4:]) != n {
			t.Fatalf("block %d of type %d has length %d, want a multiple of 4 that stands at its end too", i, kind, n)
		}
		body := b[8 : n-4]
		b = b[n:]
		switch {
		case i == 0:
			want := []byte{0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255}
			if kind != 0x0a0d0d0a || !bytes.HasPrefix(body, want) || string(options(t, body[16:])[4]) != "tunneld" {
				t.Fatalf("the file begins with block %#x, %x", kind, body)
			}
		case i == 1:
			o := options(t, body[8:])
			if kind != 1 || !bytes.Equal(body[:8], []byte{228, 0, 0, 0, 255, 255, 0, 0}) || string(o[2]) != "control" || !bytes.Equal(o[9], []byte{9}) {
				t.Fatalf("the second block is %#x, %x", kind, body)
			}
		default:
			if kind != 6 || binary.LittleEndian.Uint32(body) != 0 {
				t.Fatalf("block %d is %#x, %x", i, kind, body)
			}
			all = append(all, readCapture(t, body))
		}
	}
	return all
}

func readCapture(t testing.TB, body []byte) capture {
	ns := uint64(binary.LittleEndian.Uint32(body[4:]))<<32 | uint64(binary.LittleEndian.Uint32(body[8:]))
	n := int(binary.LittleEndian.Uint32(body[12:]))
	o := options(t, body[20+(n+3)/4*4:])
	return capture{
		at: time.Unix(0, int64(ns)), packet: body[20 : 20+n], original: int(binary.LittleEndian.Uint32(body[16:])),
		flags: binary.LittleEndian.Uint32(o[2]), comment: string(o[1]),
	}
}

// total is the ones' complement sum of b: 0xffff where a checksum in it is right.
func total(b []byte) uint32 {
	var s uint32
	for i, v := range b {
		s += uint32(v) << (8 * (1 - i%2))
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return s
}

// unwrap takes a message out of its datagram, and says from where to where.
func unwrap(t testing.TB, b []byte) (from, to netip.AddrPort, message []byte) {
	t.Helper()
	if b[0] != 0x45 || b[9] != 17 || int(binary.BigEndian.Uint16(b[2:])) != len(b) || total(b[:20]) != 0xffff {
		t.Fatalf("IPv4 header %x of a packet of %d octets", b[:20], len(b))
	}
	udp := b[20:]
	pseudo := slices.Concat(b[12:20], []byte{0, 17}, udp[4:6], udp)
	if int(binary.BigEndian.Uint16(udp[4:])) != len(udp) || udp[6] == 0 && udp[7] == 0 || total(pseudo) != 0xffff {
		t.Fatalf("UDP header %x of %d octets", udp[:8], len(udp))
	}
	from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:])), binary.BigEndian.Uint16(udp))
	to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:])), binary.BigEndian.Uint16(udp[2:]))
	return from, to, udp[8:]
}

func TestTraceKeepsMessages(t *testing.T) {
	var file buffer
	trace := newTrace(t, &file)
	at := time.Unix(1800000000, 999999999)
	var want [][]byte
	for i, m := range slices.Concat(full(), least()) {
		b := encode(t, m)
		if err := trace.Write(somePath, i%2 == 0, at, b); err != nil {
			t.Fatal(err)
		}
		want = append(want, b)
	}
	for i, c := range readTrace(t, file.Bytes()) {
		from, to, message := unwrap(t, c.packet)
		shown, _ := blank(want[i])
		flags := uint32(2)
		if i%2 != 0 {
			flags, from, to = 1, to, from
		}
		if from.String() != "192.0.2.77:40000" || to.String() != "203.0.113.1:1701" || c.flags != flags {
			t.Errorf("message %d goes from %v to %v, flags %d; want this end's port and the responder's 1701, flags %d", i, from, to, c.flags, flags)
		}
		if !bytes.Equal(message, shown) || c.original != len(c.packet) || !c.at.Equal(at) {
			t.Errorf("message %d is %x at %v, want %x at %v", i, message, c.at, shown, at)
		}
	}
}

func TestTracePaths(t *testing.T) {
	tests := []struct {
		local, remote  string
		dialled        bool
		from, to, note string // of a message that is sent
	}{
		{"198.51.100.1:40000", "203.0.113.1:443", true, "198.51.100.1:40000", "203.0.113.1:1701", ""},
		{"203.0.113.1:443", "198.51.100.1:40000", false, "203.0.113.1:1701", "198.51.100.1:40000", ""},
		{"[::ffff:203.0.113.1]:443", "[::ffff:198.51.100.1]:40000", false, "203.0.113.1:1701", "198.51.100.1:40000", ""},
		{"203.0.113.1:443", "198.51.100.1:1645", false, "203.0.113.1:1701", "198.51.100.1:1701", ""}, // would pass for RADIUS
		{"[2001:db8::1]:40000", "[2001:db8::2]:443", true, "192.0.2.1:40000", "192.0.2.2:1701",
			"from [2001:db8::1]:40000 to [2001:db8::2]:443"},
	}
	for _, tt := range tests {
		var file buffer
		p := Path{netip.MustParseAddrPort(tt.local), netip.MustParseAddrPort(tt.remote), tt.dialled}
		trace := newTrace(t, &file)
		trace.Write(p, true, time.Unix(0, 0), encode(t, &Hello{}))
		trace.Write(p, false, time.Unix(0, 0), encode(t, &Hello{}))
		all := readTrace(t, file.Bytes())
		from, to, _ := unwrap(t, all[0].packet)
		back, forth, _ := unwrap(t, all[1].packet)
		if from.String() != tt.from || to.String() != tt.to || back != to || forth != from || all[0].comment != tt.note {
			t.Errorf("on %+v from %v to %v, back from %v to %v, comment %q; want %s, %s, %q", p, from, to, back, forth, all[0].comment, tt.from, tt.to, tt.note)
		}
	}
	var file buffer
	newTrace(t, &file).Write(Path{}, true, time.Unix(0, 0), encode(t, &Hello{})) // a transport without addresses
	if from, to, _ := unwrap(t, readTrace(t, file.Bytes())[0].packet); from.String() != "192.0.2.1:1701" || to.String() != "192.0.2.2:1701" {
		t.Errorf("without addresses: from %v to %v", from, to)
	}
}

// RFC 768 keeps the checksum 0 for "none": where it comes out as 0 the other
// zero of ones' complement stands. One of all numbers leads there.
func TestChecksumIsNeverNone(t *testing.T) {
	b := encode(t, &Hello{})
	ones := 0
	for n := range 1 << 16 {
		binary.BigEndian.PutUint16(b[8:], uint16(n))
		packet := wrap(somePath, true, b)
		unwrap(t, packet)
		if bytes.Equal(packet[26:28], []byte{255, 255}) {
			ones++
		}
	}
	if ones == 0 {
		t.Error("no checksum came out as 0, which one must")
	}
}

// The Length field allows messages that no IPv4 datagram holds.
func TestTraceCutsLongMessages(t *testing.T) {
	for _, n := range []int{65507, 65508, MaxMessage} {
		message := slices.Concat([]byte{0xc8, 3, byte(n >> 8), byte(n), 0, 0, 0, 0, 0, 0, 0, 0}, appendMessageType(nil, ietf, 9, false))
		for len(message) < n {
			size := min(1000, n-len(message))
			if left := n - len(message) - size; left > 0 && left < 6 {
				size -= 6
			}
			message = append(message, byte(size>>8), byte(size), 0, 0, 0, 200)
			message = append(message, make([]byte, size-6)...)
		}
		var file buffer
		trace := newTrace(t, &file)
		if err := trace.Write(somePath, false, time.Unix(0, 0), message); err != nil {
			t.Fatal(err)
		}
		c := readTrace(t, file.Bytes())[0]
		_, _, got := unwrap(t, c.packet)
		if keep := min(n, 65507); !bytes.Equal(got, message[:keep]) || c.original != 28+n {
			t.Errorf("of %d octets %d are kept, original length %d; want %d and %d", n, len(got), c.original, keep, 28+n)
		}
		if want := fmt.Sprintf("cut after 65507 of %d octets", n); strings.Contains(c.comment, want) != (n > 65507) {
			t.Errorf("comment on a message of %d octets: %q", n, c.comment)
		}
	}
}

type failing struct{ after int }

var errFull = errors.New("no space left")

func (f *failing) Write(b []byte) (int, error) {
	if f.after--; f.after < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestTraceStaysBroken(t *testing.T) {
	for after := range 2 {
		if _, err := NewTrace(&failing{after}); !errors.Is(err, errFull) {
			t.Errorf("NewTrace = %v, want %v", err, errFull)
		}
	}
	w := &failing{3}
	trace := newTrace(t, w)
	for i, want := range []error{nil, errFull, errFull, errFull} {
		if err := trace.Write(somePath, true, time.Unix(0, 0), encode(t, &Hello{})); err != want {
			t.Errorf("Write %d = %v, want %v", i, err, want)
		}
	}
	if w.after != -1 {
		t.Errorf("%d writes after the one that failed, want none", -1-w.after)
	}
}

// TestTraceHidesSecrets looks for octets of proofs in the whole file.
func TestTraceHidesSecrets(t *testing.T) {
	secrets := map[string][32]byte{"Key Proof": octetsFrom(101), "MAC": octetsFrom(151), "Ticket": octetsFrom(201)}
	ticket := secrets["Ticket"]
	proof := &Proof{Generation: 8, Attempt: 9, MAC: secrets["MAC"]}
	var file buffer
	trace := newTrace(t, &file)
	for _, m := range full() {
		switch m := m.(type) {
		case *SCCRQ:
			m.Proof = proof
		case *SCCRP:
			m.Proof = proof
		case *ICRQ:
			m.KeyProof, m.Ticket = secrets["Key Proof"], ticket[:]
		case *Ticket:
			m.Ticket = ticket[:]
		case *ICRP:
			m.KeyProof = secrets["Key Proof"]
		}
		b := encode(t, m)
		before := slices.Clone(b)
		if err := trace.Write(somePath, true, time.Unix(0, 0), b); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, before) {
			t.Errorf("%v was changed by being traced", m.Type())
		}
	}
	for name, secret := range secrets {
		for part := range slices.Chunk(secret[:], 4) {
			if bytes.Contains(file.Bytes(), part) {
				t.Errorf("octets %x of %s are in the trace", part, name)
			}
		}
	}
	notes := map[string]int{}
	for _, c := range readTrace(t, file.Bytes()) {
		notes[c.comment]++
	}
	if notes["zeroed: Resume Proof"] != 2 || notes["zeroed: Key Proof"] != 1 ||
		notes["zeroed: Key Proof; zeroed: Ticket"] != 1 || notes["zeroed: Ticket"] != 1 || len(notes) != 5 {
		t.Errorf("comments are %v, want two of each proof, two of tickets and no others", notes)
	}
}

// Whoever makes a new AVP has to say here whether it may be seen.
func TestTraceKnowsEveryAVP(t *testing.T) {
	hidden := []*attr{avpKeyProof.attr, avpTicket.attr}
	for _, a := range allAttrs() {
		octets, seen := shown[avpKey{a.vendor, a.number}]
		if seen == slices.Contains(hidden, a) {
			t.Errorf("%s (%s): shown is %v; an AVP is either there or in this test, as a secret", a.name, docNumber(a.vendor, a.number), seen)
		}
		if partly := a == avpProof.attr; seen && (octets < a.max) != partly {
			t.Errorf("%s: a trace shows %d octets of %d", a.name, octets, a.max)
		}
	}
}

// rawOf is an AVP as it lies in a message, right or wrong.
func rawOf(flags, vendor, number uint16, value string) string {
	b := binary.BigEndian.AppendUint16(nil, flags|uint16(6+len(value)))
	b = binary.BigEndian.AppendUint16(b, vendor)
	return string(binary.BigEndian.AppendUint16(b, number)) + value
}

func TestBlank(t *testing.T) {
	head := string(encode(t, &Hello{}))
	tests := []struct{ name, in, want, notes string }{
		{"public", rawOf(0x8000, 0, 7, "branch"), rawOf(0x8000, 0, 7, "branch"), ""},
		{"unknown of the IETF", rawOf(0, 0, 65, "cookie"), rawOf(0, 0, 65, "\x00\x00\x00\x00\x00\x00"), "zeroed: AVP 65 of vendor 0"},
		{"unknown of ours", rawOf(0, VendorID, 999, "ticket"), rawOf(0, VendorID, 999, "\x00\x00\x00\x00\x00\x00"), "zeroed: AVP 999 of vendor 32473"},
		{"unknown twice", rawOf(0, 9, 1, "a") + rawOf(0, 9, 1, "b"), rawOf(0, 9, 1, "\x00") + rawOf(0, 9, 1, "\x00"), "zeroed: AVP 1 of vendor 9"},
		{"hidden", rawOf(0xc000, 0, 7, "branch"), rawOf(0xc000, 0, 7, "\x00\x00\x00\x00\x00\x00"), "zeroed: AVP 7 of vendor 0"},
		{"empty and unknown", rawOf(0, 9, 1, ""), rawOf(0, 9, 1, ""), ""},
		{"short proof", rawOf(0x8000, VendorID, 5, "abc"), rawOf(0x8000, VendorID, 5, "abc"), ""},
		{"long proof", rawOf(0x8000, VendorID, 5, "0123456789abcdefMAC"), rawOf(0x8000, VendorID, 5, "0123456789abcdef\x00\x00\x00"), "zeroed: Resume Proof"},
		{"another's message", rawOf(0, 9, 0, "\x00\x07x"), rawOf(0, 9, 0, "\x00\x07\x00"), "zeroed: AVP 0 of vendor 9"},
		{"no AVP", rawOf(0, 0, 7, "a") + "\x00\x05secret", rawOf(0, 0, 7, "a") + strings.Repeat("\x00", 8), "zeroed: octets that are no AVP"},
		{"cut AVP", "\x80\x26\x7e\xd9\x00\x09half", strings.Repeat("\x00", 10), "zeroed: octets that are no AVP"},
	}
	for _, tt := range tests {
		out, notes := blank([]byte(head + tt.in))
		if string(out) != head+tt.want || strings.Join(notes, "; ") != tt.notes {
			t.Errorf("%s: blank(%q) = %q, %q; want %q, %q", tt.name, tt.in, strings.TrimPrefix(string(out), head), notes, tt.want, tt.notes)
		}
	}
	var many strings.Builder
	for i := range uint16(1000) {
		many.WriteString(rawOf(0, 4711, i+1, "x"))
	}
	if _, notes := blank([]byte(head + many.String())); len(notes) > 10 {
		t.Errorf("%d notes on one message, want a few", len(notes))
	}
	for n := range headerLen {
		if out, _ := blank([]byte(head[:n])); string(out) != head[:n] {
			t.Errorf("blank(%q) = %q", head[:n], out)
		}
	}
}

// The attacker is a peer with a certificate: its octets reach the splitter and
// the trace before anything is known of them. However they are cut, the messages
// are those that ReadPacket finds, and only zeros replace what they hold.
func FuzzTrace(f *testing.F) {
	var all []byte
	for _, m := range full() {
		b := encode(f, m)
		all = append(all, b...)
		f.Add(b, uint16(7))
	}
	for _, v := range readVectors(f) {
		f.Add(v.octets, uint16(1))
	}
	f.Add(all, uint16(1000))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, piece uint16) {
		var got, want [][]byte
		var s Splitter
		for part := range slices.Chunk(b, int(piece)+1) {
			s.Feed(part, func(message []byte) { got = append(got, bytes.Clone(message)) })
		}
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			p, err := ReadPacket(r, MaxMessage)
			if err != nil {
				break
			}
			want = append(want, p)
		}
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Fatalf("in pieces of %d octets %x holds %x, want %x", int(piece)+1, b, got, want)
		}
		var file buffer
		trace := newTrace(t, &file)
		for _, m := range got {
			if err := trace.Write(somePath, false, time.Unix(0, 0), m); err != nil {
				t.Fatal(err)
			}
		}
		for i, c := range readTrace(t, file.Bytes()) {
			_, _, m := unwrap(t, c.packet)
			for j, octet := range m {
				if octet != 0 && octet != got[i][j] {
					t.Fatalf("octet %d of %x is %#x in the trace", j, got[i], octet)
				}
			}
			if parsed, err := Parse(got[i]); err == nil {
				if seen, err := Parse(m); err == nil && seen.Message.Type() != parsed.Message.Type() {
					t.Fatalf("%v is traced as %v", parsed.Message.Type(), seen.Message.Type())
				}
			}
		}
	})
}

// After something that is no control message there is nothing to be found, also
// if it looks like one again.
func TestSplitterGivesUp(t *testing.T) {
	hello := encode(t, &Hello{})
	for _, wrong := range []string{"\x00\x03\x00\x0c", "\xc8\x02\x00\x0c", "\xc8\x03\x00\x0b"} {
		var s Splitter
		n := 0
		for _, b := range [][]byte{hello, []byte(wrong), hello, hello} {
			s.Feed(b, func([]byte) { n++ })
		}
		if n != 1 || s.pending != nil {
			t.Errorf("after %x: %d messages, %d octets kept; want one and none", wrong, n, len(s.pending))
		}
	}
}
