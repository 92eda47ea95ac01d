package wire

import (
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tunneld/internal/session"
)

// tshark runs Wireshark's dissector, as it is installed and without anybody's
// preferences, on a trace.
func tshark(t *testing.T, trace []byte, args ...string) string {
	t.Helper()
	program, err := exec.LookPath("tshark")
	if err != nil {
		if os.Geteuid() != 0 {
			t.Skipf("needs tshark: %v", err)
		}
		t.Fatalf("root must be able to run this: %v", err)
	}
	file := filepath.Join(t.TempDir(), "trace.pcapng")
	if err := os.WriteFile(file, trace, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, append([]string{"-n", "-r", file}, args...)...)
	cmd.Env = append(os.Environ(), "WIRESHARK_CONFIG_DIR="+t.TempDir(), "LC_ALL=C.UTF-8")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return string(out)
}

// pdml is what tshark makes of a trace (Packet Details Markup Language).
type pdml struct {
	Packets []struct {
		Protos []pdmlField `xml:"proto"`
	} `xml:"packet"`
}

type pdmlField struct {
	Name   string      `xml:"name,attr"`
	Show   string      `xml:"show,attr"`
	Value  string      `xml:"value,attr"`
	Fields []pdmlField `xml:"field"`
}

// get is what a field of that name, at any depth, shows.
func (f *pdmlField) get(name string) string {
	if f.Name == name {
		return f.Show
	}
	for i := range f.Fields {
		if s := f.Fields[i].get(name); s != "" {
			return s
		}
	}
	return ""
}

// texts are the fields that are compared by their octets, because tshark shows
// of UTF-8 what the terminal can.
var texts = []string{"host_name", "vendor_name", "remote_end_id", "error_message"}

// values writes the decoded fields of an AVP: "name=value" each, and undecoded
// octets in hexadecimal.
func (f *pdmlField) values() (all []string) {
	name := strings.TrimPrefix(strings.TrimPrefix(f.Name, "l2tp."), "avp.")
	switch {
	case f.Name == "" && len(f.Fields) > 0 && f.Fields[0].Name == "_ws.expert": // "Vendor-Specific AVP data"
		return append(all, f.Value)
	case f.Name == "":
		for _, sub := range f.Fields {
			all = append(all, sub.values()...)
		}
		return all
	case slices.Contains([]string{"mandatory", "hidden", "length", "vendor_id", "type"}, name):
		return nil
	case slices.Contains(texts, name):
		b, _ := hex.DecodeString(f.Value)
		return []string{name + "=" + string(b)}
	}
	return []string{name + "=" + f.Show}
}

// dissect writes a message as tshark sees it: the header, then each AVP.
func dissect(l2tp *pdmlField) (lines []string) {
	lines = []string{fmt.Sprintf("%s length=%s ccid=%s Ns=%s Nr=%s", l2tp.get("l2tp.flags"),
		l2tp.get("l2tp.length"), l2tp.get("l2tp.ccid"), l2tp.get("l2tp.Ns"), l2tp.get("l2tp.Nr"))}
	for _, f := range l2tp.Fields {
		if kind := f.get("l2tp.avp.type"); kind != "" {
			lines = append(lines, fmt.Sprintf("%s.%s M=%s H=%s length=%s %s", f.get("l2tp.avp.vendor_id"), kind, f.get("l2tp.avp.mandatory"),
				f.get("l2tp.avp.hidden"), f.get("l2tp.avp.length"), strings.Join(f.values(), " ")))
		}
	}
	return lines
}

// M bits as the tables below write them.
const (
	mandatory = 1
	optional  = 0
)

// std is an AVP of the IETF that tshark decodes; octets are those of its value.
func std(number, m, octets int, values ...any) string {
	words := make([]string, 0, len(values)/2)
	for i := 0; i < len(values); i += 2 {
		words = append(words, fmt.Sprintf("%v=%v", values[i], values[i+1]))
	}
	return fmt.Sprintf("0.%d M=%d H=0 length=%d %s", number, m, 6+octets, strings.Join(words, " "))
}

// undecoded is an AVP whose octets tshark shows as they are.
func undecoded(vendor, number, m int, format string, values ...any) string {
	octets := fmt.Sprintf(format, values...)
	return fmt.Sprintf("%d.%d M=%d H=0 length=%d %s", vendor, number, m, 6+len(octets)/2, octets)
}

func own(number, m int, format string, values ...any) string {
	return undecoded(32473, number, m, format, values...)
}

// zeros are 32 octets that a trace does not show.
var zeros = strings.Repeat("00", 32)

func hexID(id session.ID) string { return hex.EncodeToString(id[:]) }

// hexAddr is family and octets of an address, with the length of a prefix
// between them if it is not negative.
func hexAddr(a netip.Addr, bits int) string {
	s := map[int]string{32: "04", 128: "06"}[a.BitLen()]
	if bits >= 0 {
		s += fmt.Sprintf("%02x", bits)
	}
	return s + hex.EncodeToString(a.AsSlice())
}

func wantPrefixes(number int, list []netip.Prefix) (all []string) {
	for _, p := range list {
		all = append(all, own(number, mandatory, "%s", hexAddr(p.Addr(), p.Bits())))
	}
	return all
}

func wantAddrs(number, m int, list []netip.Addr) (all []string) {
	for _, a := range list {
		all = append(all, own(number, m, "%s", hexAddr(a, -1)))
	}
	return all
}

func wantPairs(list []SessionPair) (all []string) {
	for _, p := range list {
		all = append(all, undecoded(0, 79, optional, "0000%08x%08x", p.LocalID, p.RemoteID))
	}
	return all
}

func wantParts(number int, value []byte) (all []string) {
	for part := range slices.Chunk(value, 1017) {
		all = append(all, own(number, mandatory, "%x", part))
	}
	return all
}

// when is the AVP, if it is there.
func when(there bool, line func() string) []string {
	if !there {
		return nil
	}
	return []string{line()}
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

func wantCircuit(s CircuitStatus) string {
	return std(71, mandatory, 2, "circuit_status", bit(s.Active), "circuit_type", bit(s.New))
}

func wantResult(r Result) []string {
	values, octets := []any{"result_code", uint16(r.Code)}, 2
	if r.Error != 0 || r.Text != "" {
		values, octets = append(values, "error_code", uint16(r.Error)), 4
	}
	if r.Text != "" {
		values, octets = append(values, "error_message", r.Text), 4+len(r.Text)
	}
	return append([]string{std(1, mandatory, octets, values...)},
		when(r.Cause != 0, func() string { return own(20, optional, "%04x", uint16(r.Cause)) })...)
}

func wantStatistics(s *Statistics) []string {
	return when(s != nil, func() string {
		return own(19, optional, "%016x%016x%016x%016x", s.RxPackets, s.TxPackets, s.RxBytes, s.TxBytes)
	})
}

func wantKept(list []Keypair) (all []string) {
	for _, k := range list {
		all = append(all, own(51, optional, "%08x%08x", k.Session, k.Index))
	}
	return all
}

func wantIDs(local, remote uint32) []string {
	return []string{std(63, mandatory, 4, "local_session_id", local), std(64, mandatory, 4, "remote_session_id", remote)}
}

// wantStart is what SCCRQ and SCCRP have in common at their beginning.
func wantStart(host string, router, id uint32, pseudowires []uint16, window uint16) []string {
	var types []any
	for _, p := range pseudowires {
		types = append(types, "pw_type", p)
	}
	return slices.Concat([]string{
		std(7, mandatory, len(host), "host_name", host),
		std(60, mandatory, 4, "router_id", router),
		std(61, mandatory, 4, "assigned_control_conn_id", id),
		std(62, mandatory, 2*len(pseudowires), types...),
	}, when(window != 0, func() string { return std(10, mandatory, 2, "receive_window_size", window) }))
}

func wantProfile(p Profile) []string {
	return slices.Concat([]string{own(1, mandatory, "%04x", p.Version)},
		when(p.Capabilities != 0, func() string { return own(2, optional, "%08x", p.Capabilities) }),
		[]string{own(3, mandatory, "%s", hexID(p.BootID)), own(4, mandatory, "%x", p.KeyShare[:])})
}

func wantVendor(name string) []string {
	return when(name != "", func() string { return std(8, optional, len(name), "vendor_name", name) })
}

func wantFailover(f *Failover) []string {
	return when(f != nil, func() string {
		return undecoded(0, 76, optional, "%04x%08x", bit(f.Control)|bit(f.Data)<<1, f.RecoveryTime.Milliseconds())
	})
}

func wantProof(p *Proof, c *Cursor) []string {
	return slices.Concat(
		when(p != nil, func() string { return own(5, mandatory, "%016x%016x%s", p.Generation, p.Attempt, zeros) }),
		when(c != nil, func() string { return own(6, mandatory, "%04x%04x", c.Ns, c.Nr) }))
}

// wantAVPs says, from the fields of a message and from the documents, without
// our encoder, which AVPs a trace of it has.
func wantAVPs(t *testing.T, m Message) []string {
	switch m := m.(type) {
	case *SCCRQ:
		return slices.Concat(wantStart(m.HostName, m.RouterID, m.AssignedID, m.Pseudowires, m.ReceiveWindow),
			when(m.TieBreaker != 0, func() string { return std(5, mandatory, 8, "tie_breaker", fmt.Sprintf("0x%016x", m.TieBreaker)) }),
			wantVendor(m.VendorName), wantProfile(m.Profile), wantFailover(m.Failover),
			when(m.Recovery != nil, func() string {
				return undecoded(0, 77, mandatory, "0000%08x%08x", m.Recovery.LocalID, m.Recovery.RemoteID)
			}), wantProof(m.Proof, m.Cursor),
			when(!m.RecoveryBootID.IsZero(), func() string { return own(7, mandatory, "%s", hexID(m.RecoveryBootID)) }))
	case *SCCRP:
		return slices.Concat(wantStart(m.HostName, m.RouterID, m.AssignedID, m.Pseudowires, m.ReceiveWindow),
			wantVendor(m.VendorName), wantProfile(m.Profile), wantFailover(m.Failover), wantProof(m.Proof, m.Cursor),
			when(m.Spread != 0, func() string { return own(29, optional, "%08x", m.Spread.Milliseconds()) }), wantKept(m.Kept))
	case *StopCCN:
		return slices.Concat(when(m.AssignedID != 0, func() string { return std(61, mandatory, 4, "assigned_control_conn_id", m.AssignedID) }),
			wantResult(m.Result), wantRequest(m.RequestID), wantGateways(m.Gateways))
	case *SCCCN, *Hello, *ACK:
		return nil
	case *ICRQ:
		return wantICRQ(m)
	case *ICRP:
		return wantICRP(m)
	case *ICCN:
		return append(wantIDs(m.LocalID, m.RemoteID), wantCircuit(m.CircuitStatus))
	case *CDN:
		return slices.Concat(wantIDs(m.LocalID, m.RemoteID), wantResult(m.Result), wantFloor(&m.Result), wantStatistics(m.Statistics), wantRequest(m.RequestID))
	case *WEN:
		e := m.CircuitErrors
		return slices.Concat(wantIDs(m.LocalID, m.RemoteID), []string{std(34, optional, 26, "crc_errors", 0, "framing_errors", 0,
			"hardware_overruns", e.HardwareOverruns, "buffer_overruns", e.BufferOverruns, "time_out_errors", e.Timeouts,
			"alignment_errors", e.Alignment)}, wantStatistics(m.Statistics))
	case *SLI:
		return slices.Concat(wantIDs(m.LocalID, m.RemoteID),
			when(m.CircuitStatus != nil, func() string { return wantCircuit(*m.CircuitStatus) }),
			when(m.HasRoutes, func() string { return own(16, mandatory, "") }), wantPrefixes(15, m.Routes),
			when(m.Lifetime != nil, func() string { return wantLifetime(*m.Lifetime) }),
			when(m.Stamp != Stamp{}, func() string { return own(50, optional, "%x", m.Stamp) }), wantRequest(m.RequestID))
	case *FSQ:
		return append(wantPairs(m.Sessions), wantCheckpoint(m.Checkpoint)...)
	case *FSR:
		return append(wantPairs(m.Sessions), wantCheckpoint(m.Checkpoint)...)
	case *CertRequest:
		return append(wantRequest(m.RequestID), wantParts(22, m.CSR)...)
	case *Ticket:
		return append(wantIDs(m.LocalID, m.RemoteID), wantParts(26, make([]byte, len(m.Ticket)))...) // blanked
	case *Drain:
		lines := append([]string{own(28, mandatory, "%02x", octetOf[m.Leaving])}, wantGateways(m.Gateways)...)
		return append(lines, when(m.Delay != 0, func() string { return own(29, optional, "%08x", m.Delay.Milliseconds()) })...)
	case *KeyRequest:
		return slices.Concat(wantIDs(m.LocalID, m.RemoteID),
			[]string{own(10, mandatory, "%08x", m.KeyEpoch), own(4, mandatory, "%x", m.KeyShare[:])}, wantParts(24, m.EncapsulationKey))
	case *KeyReply:
		return slices.Concat(wantIDs(m.LocalID, m.RemoteID), []string{own(10, mandatory, "%08x", m.KeyEpoch)},
			when(m.Result == nil, func() string { return own(4, mandatory, "%x", m.KeyShare[:]) }), wantParts(25, m.Ciphertext), wantMaybe(m.Result))
	case *KeyChanged:
		return slices.Concat(wantIDs(m.LocalID, m.RemoteID), []string{own(10, mandatory, "%08x", m.KeyEpoch)}, wantMaybe(m.Result))
	case *ChangeOffer:
		return slices.Concat(wantChange(wantIDs(m.LocalID, m.RemoteID), m.RequestID, m.Lifetime, wantAddrs(13, mandatory, m.Addresses), wantAddrs(14, optional, m.Peers),
			when(m.MTU != 0, func() string { return own(17, mandatory, "%04x", m.MTU) }), wantTimers(m.Timers)),
			when(m.HasRoutes, func() string { return own(16, mandatory, "") }), wantPrefixes(15, m.Routes), wantExpires(m.Expires))
	case *ChangeAnswer:
		return slices.Concat(wantChange(wantIDs(m.LocalID, m.RemoteID), m.RequestID, m.Lifetime), wantMaybe(m.Result), wantFloor(m.Result), wantExpires(m.Expires))
	case *CertReply:
		lines := append(wantRequest(m.RequestID), wantParts(23, m.Certificate)...)
		if m.Result != nil {
			lines = append(lines, wantResult(*m.Result)...)
		}
		return lines
	}
	t.Fatalf("%T is a message that this test does not know: say here what a dissector must see of it", m)
	return nil
}

func wantExpires(e *Expires) []string {
	return when(e != nil, func() string { return own(41, optional, "%08x%02x", uint32(e.After.Seconds()), uint8(e.Refresher)) })
}

func wantFloor(r *Result) []string {
	return when(r != nil && r.Floor != 0, func() string { return own(42, optional, "%08x", uint32(r.Floor.Seconds())) })
}

func wantCheckpoint(serial uint64) []string {
	return when(serial != 0, func() string { return own(30, optional, "%016x", serial) })
}

func wantRequest(id session.ID) []string {
	return when(!id.IsZero(), func() string { return own(21, optional, "%s", hexID(id)) })
}

// wantMaybe is wantResult of a result that may be absent.
func wantMaybe(r *Result) []string {
	if r == nil {
		return nil
	}
	return wantResult(*r)
}

func wantICRQ(m *ICRQ) []string {
	return slices.Concat(wantIDs(m.LocalID, m.RemoteID), []string{
		std(15, optional, 4, "call_serial_number", m.Serial),
		std(68, mandatory, 2, "pseudowire_type", m.PWType),
		std(66, mandatory, len(m.RemoteEnd), "remote_end_id", m.RemoteEnd),
		wantCircuit(m.CircuitStatus),
	}, when(m.TieBreaker != 0, func() string { return std(5, mandatory, 8, "tie_breaker", fmt.Sprintf("0x%016x", m.TieBreaker)) }),
		[]string{own(8, mandatory, "%x", m.PublicKey[:]), own(9, mandatory, "%s", zeros)}, wantPrefixes(12, m.Advertise), wantRequest(m.RequestID),
		wantParts(26, make([]byte, len(m.Ticket))), // blanked
		when(m.KeyEpoch != 0, func() string { return own(10, mandatory, "%08x", m.KeyEpoch) }), wantExpires(m.Expires))
}

func wantGateways(list []string) (all []string) {
	for _, g := range list {
		all = append(all, own(27, optional, "%x", g))
	}
	return all
}

func wantICRP(m *ICRP) []string {
	return slices.Concat(wantIDs(m.LocalID, m.RemoteID), []string{
		wantCircuit(m.CircuitStatus),
		own(11, mandatory, "%s", hexID(m.Session)), own(8, mandatory, "%x", m.PublicKey[:]), own(9, mandatory, "%s", zeros),
		own(10, mandatory, "%08x", m.KeyEpoch),
	}, wantAddrs(13, mandatory, m.Addresses), wantAddrs(14, optional, m.Peers), wantPrefixes(15, m.Routes),
		when(m.MTU != 0, func() string { return own(17, mandatory, "%04x", m.MTU) }),
		wantTimers(m.Timers),
		when(m.Lifetime != Lifetime{}, func() string { return wantLifetime(m.Lifetime) }), wantRequest(m.RequestID), wantExpires(m.Expires))
}

func wantTimers(t Timers) []string {
	return when(t != Timers{}, func() string {
		return own(18, mandatory, "%08x%04x%08x", t.Hello.Milliseconds(), t.Misses, t.Grace.Milliseconds())
	})
}

func wantChange(ids []string, request session.ID, l *Lifetime, terms ...[]string) []string {
	return slices.Concat(ids, wantRequest(request), slices.Concat(terms...), when(l != nil, func() string { return wantLifetime(*l) }))
}

func wantLifetime(l Lifetime) string {
	return own(40, optional, "%08x%08x%08x", uint32(l.Idle.Seconds()), uint32(l.Absolute.Seconds()), uint32(l.Reauth.Seconds()))
}

// wantLines says what a dissector must see of a packet.
func wantLines(t *testing.T, p *Packet) []string {
	typ := p.Message.Type()
	first := std(0, mandatory, 2, "message_type", uint16(typ))
	if typ&0x8000 != 0 {
		first = own(0, optional, "%04x", uint16(typ&0x7fff))
	}
	avps := append([]string{first}, wantAVPs(t, p.Message)...)
	length := 12
	for _, a := range avps {
		_, n, _ := strings.Cut(a, "length=")
		octets, _ := strconv.Atoi(strings.Fields(n)[0])
		length += octets
	}
	return append([]string{fmt.Sprintf("0xc803 length=%d ccid=0x%08x Ns=%d Nr=%d", length, p.ConnID, p.Ns, p.Nr)}, avps...)
}

// known are messages of every kind, whole and bare.
func known() (all []Message) {
	all = slices.Concat(full(), least(), []Message{
		&ICCN{LocalID: 1, RemoteID: 2, CircuitStatus: CircuitStatus{Active: true}},
		&ICCN{LocalID: 1, RemoteID: 2, CircuitStatus: CircuitStatus{New: true}},
		&SCCRP{HostName: "n", AssignedID: 1, Pseudowires: []uint16{0}, Profile: profileFrom(1), Failover: &Failover{Control: true}},
		&SCCRP{HostName: "n", AssignedID: 1, Pseudowires: []uint16{0}, Profile: profileFrom(1), Failover: &Failover{Data: true}},
	})
	return slices.DeleteFunc(all, func(m Message) bool { _, unknown := m.(*UnknownMessage); return unknown })
}

// TestTraceInTshark has a program that others wrote read what we send: header,
// AVPs and values of every message must be what was asked for.
func TestTraceInTshark(t *testing.T) {
	var file buffer
	trace := newTrace(t, &file)
	path := Path{Local: netip.MustParseAddrPort("203.0.113.1:443"), Remote: netip.MustParseAddrPort("198.51.100.2:40000")}
	at := time.Unix(1800000000, 123456789)
	var sent []*Packet
	for i, m := range known() {
		p := &Packet{ConnID: 0xfedc0000 + uint32(i), Ns: uint16(65500 + i), Nr: uint16(i), Message: m}
		b, err := p.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := trace.Write(path, i%2 == 0, at.Add(time.Duration(i)), b); err != nil {
			t.Fatal(err)
		}
		sent = append(sent, p)
	}
	var seen pdml
	out := tshark(t, file.Bytes(), "-T", "pdml", "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE")
	if err := xml.Unmarshal([]byte(out), &seen); err != nil {
		t.Fatal(err)
	}
	if len(seen.Packets) != len(sent) {
		t.Fatalf("tshark sees %d messages, want %d", len(seen.Packets), len(sent))
	}
	for i, p := range sent {
		all := pdmlField{Fields: seen.Packets[i].Protos}
		name := fmt.Sprintf("message %d, %v", i, p.Message.Type())
		checkFrame(t, name, &all, i%2 == 0, at.Add(time.Duration(i)))
		l2tp := all.Fields[len(all.Fields)-1]
		if l2tp.Name != "l2tp" {
			t.Errorf("%s: tshark takes it for %s", name, l2tp.Name)
			continue
		}
		if got, want := dissect(&l2tp), wantLines(t, p); !slices.Equal(got, want) {
			t.Errorf("%s: tshark sees\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// checkFrame looks at what carries a message.
func checkFrame(t *testing.T, name string, all *pdmlField, sent bool, at time.Time) {
	t.Helper()
	want := map[string]string{
		"ip.checksum.status": "1", "udp.checksum.status": "1", // good
		"frame.time_epoch":             fmt.Sprintf("%d.%09d", at.Unix(), at.Nanosecond()),
		"frame.packet_flags_direction": "0x00000002", "ip.src": "203.0.113.1", "ip.dst": "198.51.100.2",
		"udp.srcport": "1701", "udp.dstport": "40000",
	}
	if !sent {
		want["frame.packet_flags_direction"] = "0x00000001"
		want["ip.src"], want["ip.dst"] = want["ip.dst"], want["ip.src"]
		want["udp.srcport"], want["udp.dstport"] = want["udp.dstport"], want["udp.srcport"]
	}
	for field, want := range want {
		if got := all.get(field); got != want {
			t.Errorf("%s: %s = %q, want %q", name, field, got, want)
		}
	}
}

// The names that Wireshark has for the numbers of our standard messages.
func TestTsharkNamesOurMessages(t *testing.T) {
	want := map[MessageType]string{
		1: "SCCRQ", 2: "SCCRP", 3: "SCCCN", 4: "StopCCN", 6: "Hello", 10: "ICRQ", 11: "ICRP", 12: "ICCN",
		14: "CDN", 15: "WEN", 16: "SLI", 20: "ACK", 21: "FSQ", 22: "FSR",
	}
	var file buffer
	trace := newTrace(t, &file)
	var types []MessageType
	for _, m := range full() {
		if m.Type()&vendorType != 0 {
			continue
		}
		if err := trace.Write(somePath, true, time.Unix(0, 0), encode(t, m)); err != nil {
			t.Fatal(err)
		}
		types = append(types, m.Type())
	}
	if len(types) != len(want) {
		t.Errorf("%d standard messages, want %d", len(types), len(want))
	}
	infos := strings.Split(strings.TrimSpace(tshark(t, file.Bytes(), "-T", "fields", "-e", "_ws.col.Info")), "\n")
	if len(infos) != len(types) {
		t.Fatalf("tshark says %q, want a line for each of %v", infos, types)
	}
	for i, typ := range types {
		if begin := "Control Message - " + want[typ] + " ("; want[typ] == "" || !strings.HasPrefix(infos[i], begin) {
			t.Errorf("tshark calls message %d %q, want %q", uint16(typ), infos[i], begin)
		}
	}
}
