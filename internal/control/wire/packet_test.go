package wire

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func allAttrs() (all []*attr) {
	for _, s := range specs {
		for _, f := range s.fields {
			all = append(all, f.attr)
		}
	}
	return all
}

// encode is the octets of m under a header with three different numbers.
func encode(t testing.TB, m Message) []byte {
	t.Helper()
	b, err := (&Packet{ConnID: 0x01020304, Ns: 5, Nr: 6, Message: m}).Append(nil)
	if err != nil {
		t.Fatalf("Append(%v %+v) = %v, want the octets", m.Type(), m, err)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	for _, m := range slices.Concat(full(), least()) {
		b := encode(t, m)
		p, err := Parse(b)
		if err != nil {
			t.Errorf("Parse(Append(%v %+v)) = %v, want the message", m.Type(), m, err)
			continue
		}
		want := &Packet{ConnID: 0x01020304, Ns: 5, Nr: 6, Message: m}
		if !reflect.DeepEqual(p, want) {
			t.Errorf("Parse(Append(%v %+v)) = %+v, want it back", m.Type(), m, p.Message)
		}
	}
}

// A field that no table mentions would be lost on the wire. So full must set
// each field of each message, and TestRoundTrip brings each back.
func TestFixturesAreFull(t *testing.T) {
	seen := map[MessageType]bool{}
	for _, m := range full() {
		seen[m.Type()] = true
		v := reflect.ValueOf(m).Elem()
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			switch {
			case m.Type() == TypeICRQ && name == "RemoteID": // 0 on purpose
			case (m.Type() == TypeCertReply || m.Type() == TypeKeyReply || m.Type() == TypeChangeAnswer) && name == "Result": // never beside what is granted; least has it
			case hasZero(v.Field(i)):
				t.Errorf("fixture of %v leaves %s or a part of it zero", m.Type(), name)
			}
		}
	}
	for typ, s := range specs {
		if !seen[typ] {
			t.Errorf("no fixture for %v", typ)
		}
		if len(s.fields) > 64 {
			t.Errorf("%v has %d fields, the parser marks at most 64", typ, len(s.fields))
		}
	}
}

// hasZero reports whether v or a field of the struct it is or points to is zero.
func hasZero(v reflect.Value) bool {
	if v.IsZero() {
		return true
	}
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() == reflect.Struct {
		for i := range v.NumField() {
			if v.Type() == reflect.TypeFor[Result]() && v.Type().Field(i).Name == "Floor" {
				continue // not in every message that has a Result; that of CDN has it
			}
			if hasZero(v.Field(i)) {
				return true
			}
		}
	}
	return false
}

// What Parse would refuse must not be sent.
func TestAppendRefuses(t *testing.T) {
	change := func(n int, f func(Message)) Message {
		m := full()[n]
		f(m)
		return m
	}
	sccrq := func(f func(*SCCRQ)) Message { return change(0, func(m Message) { f(m.(*SCCRQ)) }) }
	icrq := func(f func(*ICRQ)) Message { return change(6, func(m Message) { f(m.(*ICRQ)) }) }
	icrp := func(f func(*ICRP)) Message { return change(7, func(m Message) { f(m.(*ICRP)) }) }
	tests := []struct {
		name string
		m    Message
		want error
	}{
		{"host name empty", sccrq(func(m *SCCRQ) { m.HostName = "" }), ErrRange},
		{"host name long", sccrq(func(m *SCCRQ) { m.HostName = strings.Repeat("a", 256) }), ErrRange},
		{"host name not ascii", sccrq(func(m *SCCRQ) { m.HostName = "büro" }), ErrRange},
		{"assigned id 0", sccrq(func(m *SCCRQ) { m.AssignedID = 0 }), ErrRange},
		{"no pseudowires", sccrq(func(m *SCCRQ) { m.Pseudowires = nil }), ErrRange},
		{"509 pseudowires", sccrq(func(m *SCCRQ) { m.Pseudowires = make([]uint16, 509) }), ErrRange},
		{"version 0", sccrq(func(m *SCCRQ) { m.Profile.Version = 0 }), ErrRange},
		{"boot id 0", sccrq(func(m *SCCRQ) { m.Profile.BootID = idFrom(0); clear(m.Profile.BootID[:]) }), ErrRange},
		{"recovery without proof", sccrq(func(m *SCCRQ) { m.Proof = nil }), ErrMissing},
		{"recovery without cursor", sccrq(func(m *SCCRQ) { m.Cursor = nil }), ErrMissing},
		{"recovery without boot id", sccrq(func(m *SCCRQ) { clear(m.RecoveryBootID[:]) }), ErrMissing},
		{"proof without recovery", sccrq(func(m *SCCRQ) { m.Recovery = nil }), ErrMissing},
		{"recovery of id 0", sccrq(func(m *SCCRQ) { m.Recovery.RemoteID = 0 }), ErrRange},
		{"recovery time negative", sccrq(func(m *SCCRQ) { m.Failover.RecoveryTime = -1 }), ErrRange},
		{"recovery time of 50 days", sccrq(func(m *SCCRQ) { m.Failover.RecoveryTime = 50 * 24 * time.Hour }), ErrRange},
		{"failover of nothing", sccrq(func(m *SCCRQ) { *m.Failover = Failover{} }), ErrRange},
		{"remote id in ICRQ", icrq(func(m *ICRQ) { m.RemoteID = 1 }), ErrRange},
		{"local id 0", icrq(func(m *ICRQ) { m.LocalID = 0 }), ErrRange},
		{"remote end with escape", icrq(func(m *ICRQ) { m.RemoteEnd = "a\x1b[2J" }), ErrRange},
		{"remote end right to left", icrq(func(m *ICRQ) { m.RemoteEnd = "a\u202eb" }), ErrRange},
		{"prefix with host bits", icrq(func(m *ICRQ) { m.Advertise = prefixes("10.0.0.1/8") }), ErrRange},
		{"no prefix", icrq(func(m *ICRQ) { m.Advertise = []netip.Prefix{{}} }), ErrRange},
		{"mapped prefix", icrq(func(m *ICRQ) { m.Advertise = prefixes("::ffff:10.0.0.0/104") }), ErrRange},
		{"1025 prefixes", icrq(func(m *ICRQ) { m.Advertise = slices.Repeat(prefixes("10.0.0.0/8"), 1025) }), ErrRepeated},
		{"session 0", icrp(func(m *ICRP) { clear(m.Session[:]) }), ErrRange},
		{"no address", icrp(func(m *ICRP) { m.Addresses = []netip.Addr{{}} }), ErrRange},
		{"address with zone", icrp(func(m *ICRP) { m.Addresses = addrs("fe80::1%eth0") }), ErrRange},
		{"mtu 575", icrp(func(m *ICRP) { m.MTU = 575 }), ErrRange},
		{"hello 0", icrp(func(m *ICRP) { m.Timers.Hello = 0 }), ErrRange},
		{"hello of microseconds", icrp(func(m *ICRP) { m.Timers.Hello = 999 * time.Microsecond }), ErrRange},
		{"misses 0", icrp(func(m *ICRP) { m.Timers.Misses = 0 }), ErrRange},
		{"grace negative", icrp(func(m *ICRP) { m.Timers.Grace = -time.Second }), ErrRange},
		{"result 0", &StopCCN{}, ErrRange},
		{"no session named", &CDN{Result: Result{Code: 1}}, ErrRange},
		{"routes without replace", &SLI{LocalID: 1, RemoteID: 2, Routes: prefixes("10.0.0.0/8")}, ErrMissing},
		{"asked for half a pair", &FSQ{Sessions: []SessionPair{{LocalID: 1}}}, ErrRange},
		{"pair of zeroes in an answer", &FSR{Sessions: []SessionPair{{}}}, ErrRange},
		{"pair of zeroes", &FSQ{Sessions: []SessionPair{{}}}, ErrRange},
		{"no csr", &CertRequest{RequestID: idFrom(1)}, ErrLength},
		{"csr long", &CertRequest{RequestID: idFrom(1), CSR: make([]byte, MaxChunked+1)}, ErrLength},
		{"request id 0", &CertRequest{CSR: []byte{1}}, ErrRange},
		{"neither certificate nor result", &CertReply{RequestID: idFrom(1)}, ErrMissing},
		{"encapsulation key short", &KeyRequest{LocalID: 1, RemoteID: 2, EncapsulationKey: make([]byte, 1183)}, ErrRange},
		{"share without ciphertext", &KeyReply{LocalID: 1, RemoteID: 2, KeyShare: octetsFrom(1)}, ErrRange},
		{"neither share nor result", &KeyReply{LocalID: 1, RemoteID: 2}, ErrMissing},
		{"share and result", &KeyReply{LocalID: 1, RemoteID: 2, KeyShare: octetsFrom(1), Result: &Result{Code: 1}}, ErrMissing},
		{"ciphertext and result", &KeyReply{LocalID: 1, RemoteID: 2, Ciphertext: []byte{1}, Result: &Result{Code: 1}}, ErrMissing},
		{"offer of nothing", &ChangeOffer{LocalID: 1, RemoteID: 2, RequestID: idFrom(1)}, ErrMissing},
		{"answer with both", &ChangeAnswer{LocalID: 1, RemoteID: 2, RequestID: idFrom(1), Lifetime: &Lifetime{}, Result: &Result{Code: CDNError}}, ErrMissing},
		{"change without code", &KeyChanged{LocalID: 1, RemoteID: 2, Result: &Result{Cause: CauseUnconfirmed}}, ErrMissing},
		{"ticket without key epoch", &ICRQ{LocalID: 1, RemoteEnd: "n", Ticket: []byte{1}}, ErrMissing},
		{"ticket too long", &Ticket{LocalID: 1, RemoteID: 2, Ticket: make([]byte, MaxChunked+1)}, ErrLength},
		{"no ticket", &Ticket{LocalID: 1, RemoteID: 2}, ErrLength},
		{"gateways without code 9", &StopCCN{Result: Result{Code: StopGeneral}, Gateways: []string{"a:1"}}, ErrMissing},
		{"too many gateways", &Drain{Leaving: true, Gateways: slices.Repeat([]string{"a:1"}, maxGateways+1)}, ErrRepeated},
		{"delay of nothing", &Drain{Delay: time.Second}, ErrMissing},
		{"certificate and result", &CertReply{RequestID: idFrom(1), Certificate: []byte{1}, Result: &Result{Code: 1}}, ErrMissing},
	}
	for _, tt := range tests {
		before := []byte("before")
		b, err := (&Packet{Message: tt.m}).Append(before)
		if !errors.Is(err, tt.want) || string(b) != "before" {
			t.Errorf("%s: Append(%+v) = %q, %v, want %q, %v", tt.name, tt.m, b, err, before, tt.want)
		}
		if e, ok := errors.AsType[*Error](err); ok && e.Type != tt.m.Type() {
			t.Errorf("%s: error %q is of type %v, want %v", tt.name, err, e.Type, tt.m.Type())
		}
	}
	for _, m := range []Message{nil, &UnknownMessage{Number: 1}} {
		if b, err := (&Packet{Message: m}).Append(nil); err == nil {
			t.Errorf("Append(%#v) = %x, want an error", m, b)
		}
	}
}

// A thousand prefixes must fit, whatever else is said; a message that does not
// fit is refused.
func TestLargest(t *testing.T) {
	long := slices.Repeat(prefixes("fd00::/128"), MaxList)
	m := full()[7].(*ICRP)
	m.Routes = long
	p, err := Parse(encode(t, m))
	if err != nil {
		t.Fatalf("Parse(ICRP with %d routes) = %v, want it", len(long), err)
	}
	if got := p.Message.(*ICRP).Routes; !slices.Equal(got, long) {
		t.Errorf("%d routes came back, want %d", len(got), len(long))
	}
	m.Addresses, m.Peers = slices.Repeat(addrs("fd00::1"), MaxList), slices.Repeat(addrs("fd00::1"), MaxList)
	if b, err := (&Packet{Message: m}).Append(nil); !errors.Is(err, ErrLength) || b != nil {
		t.Errorf("Append(ICRP of %d AVPs) = %d octets, %v, want %v", 3*MaxList, len(b), err, ErrLength)
	}
}

// What a message may make us keep is bounded, also by AVPs without M.
func TestListsAreBounded(t *testing.T) {
	icrq := encode(t, &ICRQ{LocalID: 1, RemoteEnd: "n"})
	crq := encode(t, &CertRequest{RequestID: idFrom(1), CSR: []byte{1}})
	tests := []struct {
		name string
		head []byte
		avp  []byte
		n    int
	}{
		{"1025 prefixes", icrq, []byte{0x00, 12, 0x7e, 0xd9, 0, 12, 4, 8, 10, 0, 0, 0}, MaxList + 1},
		{"17 parts of a CSR", crq, append([]byte{0x03, 0xff, 0x7e, 0xd9, 0, 22}, make([]byte, avpMaxValue)...), 17},
	}
	for _, tt := range tests {
		for _, m := range []byte{0, 0x80} {
			b := slices.Concat(tt.head, slices.Repeat(tt.avp, tt.n))
			for at := len(tt.head); at < len(b); at += len(tt.avp) {
				b[at] |= m
			}
			b[2], b[3] = byte(len(b)>>8), byte(len(b))
			if p, err := Parse(b); !errors.Is(err, ErrRepeated) {
				t.Errorf("Parse(%s) = %+v, %v, want %v", tt.name, p, err, ErrRepeated)
			}
		}
	}
}

func TestParseKeepsNothing(t *testing.T) {
	for _, m := range full() {
		b := encode(t, m)
		p, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		for i := range b {
			b[i] = 0xee
		}
		if !reflect.DeepEqual(p.Message, m) {
			t.Errorf("%v changed with the buffer it was parsed from: %+v", m.Type(), p.Message)
		}
	}
}

// Every message cut short anywhere is refused, and its header says so.
func TestEveryCutIsRefused(t *testing.T) {
	for _, m := range full() {
		b := encode(t, m)
		for n := range min(len(b), 2000) {
			cut := bytes.Clone(b[:n])
			if p, err := Parse(cut); err == nil {
				t.Fatalf("Parse(%d of %d octets of %v) = %+v, want an error", n, len(b), m.Type(), p)
			}
		}
	}
}

func TestUnknownMessageType(t *testing.T) {
	tests := []struct {
		m    UnknownMessage
		want MessageType
	}{
		{UnknownMessage{0, 99}, 99},
		{UnknownMessage{VendorID, 99}, vendorType | 99},
		{UnknownMessage{9, 1}, 0},
		{UnknownMessage{0, 0x8001}, 0},
		{UnknownMessage{VendorID, 0x8001}, 0},
	}
	for _, tt := range tests {
		if got := tt.m.Type(); got != tt.want {
			t.Errorf("%+v.Type() = %v, want %v", tt.m, got, tt.want)
		}
	}
}

func TestResultFor(t *testing.T) {
	tests := []struct {
		err  error
		t    MessageType
		want Result
	}{
		{&Error{Kind: ErrHeader}, 0, Result{Code: StopError, Error: ErrorLength, Text: "not a control message"}},
		{lengthError("3 octets"), TypeSCCRQ, Result{Code: StopError, Error: ErrorLength, Text: "length is wrong: 3 octets"}},
		{&Error{Kind: ErrMissing, AVP: "Key Proof", Type: TypeICRQ}, TypeICRQ, Result{Code: CDNError, Error: ErrorRange, Text: "mandatory AVP is missing (Key Proof in ICRQ)"}},
		{&Error{Kind: ErrHidden}, TypeStopCCN, Result{Code: StopError, Error: ErrorRange, Text: "AVP hiding and message authentication are not used here"}},
		{&UnknownAVPError{TypeICRQ, 0, 65}, TypeICRQ, Result{Code: CDNError, Error: ErrorUnknownAVP, Text: "unknown AVP 65 of vendor 0 with the M bit set (ICRQ)"}},
		{&UnknownAVPError{TypeHello, 9, 1}, TypeHello, Result{Code: StopError, Error: ErrorUnknownAVP, Text: "unknown AVP 1 of vendor 9 with the M bit set (HELLO)"}},
		{&UnknownAVPError{TypeSLI, 9, 1}, 0, Result{Code: CDNError, Error: ErrorUnknownAVP, Text: "unknown AVP 1 of vendor 9 with the M bit set (SLI)"}},
		{fmt.Errorf("on transport 3: %w", &Error{Kind: ErrRange}), 0, Result{Code: StopError, Error: ErrorRange, Text: "value out of range"}},
		{errors.New("open /secret/path: no"), TypeHello, Result{Code: StopError, Error: ErrorVendor}},
	}
	for _, tt := range tests {
		if got := ResultFor(tt.err, tt.t); got != tt.want {
			t.Errorf("ResultFor(%v, %v) = %+v, want %+v", tt.err, tt.t, got, tt.want)
		}
	}
}
