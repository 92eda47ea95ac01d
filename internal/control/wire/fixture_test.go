package wire

import (
	"bytes"
	"crypto/mlkem"
	"net/netip"
	"slices"
	"time"

	"tunneld/internal/session"
)

// octetsFrom makes 32 octets that differ from those of other seeds.
func octetsFrom(seed byte) (b [32]byte) {
	for i := range b {
		b[i] = seed + byte(i)
	}
	return b
}

func idFrom(seed byte) session.ID {
	id, err := session.ReadID(bytes.NewReader(slices.Repeat([]byte{seed}, 16)))
	if err != nil {
		panic(err)
	}
	return id
}

func prefixes(list ...string) (p []netip.Prefix) {
	for _, s := range list {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

func addrs(list ...string) (a []netip.Addr) {
	for _, s := range list {
		a = append(a, netip.MustParseAddr(s))
	}
	return a
}

func profileFrom(seed byte) Profile {
	return Profile{Version: ProtocolVersion, Capabilities: uint32(seed), BootID: idFrom(seed), KeyShare: octetsFrom(seed)}
}

// full gives every message with every field set; no two fields of one type
// have the same value, or a mix-up would pass.
func full() []Message {
	failover := &Failover{Control: true, Data: true, RecoveryTime: 24 * time.Hour}
	statistics := &Statistics{RxPackets: 1, TxPackets: 2, RxBytes: 1 << 40, TxBytes: 1<<64 - 1}
	result := Result{Code: CDNAdministrative, Error: ErrorVendor, Cause: CausePrefixRight, Text: "10.20.0.0/16 – not granted"}
	short := result
	short.Floor = 90 * time.Second
	return []Message{
		&SCCRQ{
			HostName: "branch-1", RouterID: 1, AssignedID: 2, Pseudowires: []uint16{PWTypeWireGuard, 5}, ReceiveWindow: 3,
			TieBreaker: 4, VendorName: "tunneld", Profile: profileFrom(5), Failover: failover,
			Recovery: &Recovery{LocalID: 6, RemoteID: 7}, Proof: &Proof{Generation: 8, Attempt: 9, MAC: octetsFrom(10)},
			Cursor: &Cursor{Ns: 65535, Nr: 11}, RecoveryBootID: idFrom(12),
		},
		&SCCRP{
			HostName: "gw", RouterID: 1, AssignedID: 2, Pseudowires: []uint16{PWTypeWireGuard}, ReceiveWindow: 3,
			VendorName: "tunneld", Profile: profileFrom(5), Failover: failover,
			Proof: &Proof{Generation: 8, Attempt: 9, MAC: octetsFrom(10)}, Cursor: &Cursor{Ns: 12, Nr: 11},
			Spread: 7500 * time.Millisecond, Kept: []Keypair{{13, 14}, {13, 15}, {16, 17}},
		},
		&SCCCN{},
		&StopCCN{AssignedID: 1, RequestID: idFrom(2), Result: Result{Code: StopError, Error: ErrorTryNamed, Cause: CauseDraining, Text: "until noon"}, Gateways: []string{"gw-2.example:443", "[2001:db8::3]:8443"}},
		&Hello{},
		&ACK{},
		&ICRQ{
			LocalID: 1, Serial: 2, PWType: PWTypeWireGuard, RemoteEnd: "büro", TieBreaker: 3,
			CircuitStatus: CircuitStatus{Active: true, New: true}, PublicKey: octetsFrom(4), KeyProof: octetsFrom(5),
			Advertise: prefixes("10.20.0.0/16", "fd20::/48", "0.0.0.0/0", "10.1.2.3/32", "::/0"), RequestID: idFrom(6),
			Ticket: bytes.Repeat([]byte("ticket"), 300), KeyEpoch: 6, Expires: &Expires{After: 7 * time.Second, Refresher: RefresherNode},
		},
		&ICRP{
			LocalID: 1, RemoteID: 2, CircuitStatus: CircuitStatus{Active: true, New: true}, Session: idFrom(3),
			PublicKey: octetsFrom(4), KeyProof: octetsFrom(5), KeyEpoch: 6, Addresses: addrs("10.77.0.2", "fd77::2"),
			Peers: addrs("10.77.0.1", "fd77::1"), Routes: prefixes("10.77.0.0/16", "fd77::/64"), MTU: 1420,
			Timers:   Timers{Hello: 20 * time.Second, Misses: 3, Grace: 24 * time.Hour},
			Lifetime: Lifetime{Idle: 7 * time.Second, Absolute: 8 * time.Second, Reauth: 9 * time.Second}, RequestID: idFrom(10),
			Expires: &Expires{After: 11 * time.Second, Refresher: RefresherGateway},
		},
		&ICCN{LocalID: 1, RemoteID: 2, CircuitStatus: CircuitStatus{Active: true, New: true}},
		&CDN{LocalID: 1, RemoteID: 2, Result: short, Statistics: statistics, RequestID: idFrom(3)},
		&WEN{LocalID: 1, RemoteID: 2, CircuitErrors: CircuitErrors{3, 4, 5, 6}, Statistics: statistics},
		&SLI{LocalID: 1, RemoteID: 2, CircuitStatus: &CircuitStatus{Active: true, New: true}, HasRoutes: true, Routes: prefixes("10.30.0.0/16"), Lifetime: &Lifetime{Idle: 3 * time.Second, Absolute: 4 * time.Second, Reauth: 1<<32*time.Second - time.Second}, Stamp: Stamp{0x40, 11: 7}, RequestID: idFrom(5)},
		&FSQ{Sessions: []SessionPair{{1, 2}, {3, 4}}, Checkpoint: 1<<40 + 5},
		&FSR{Sessions: []SessionPair{{2, 1}, {5, 0}}, Checkpoint: 1<<40 + 6},
		&CertRequest{RequestID: idFrom(1), CSR: bytes.Repeat([]byte("csr"), 1000)},
		&CertReply{RequestID: idFrom(1), Certificate: bytes.Repeat([]byte{1}, MaxChunked)},
		&KeyRequest{LocalID: 1, RemoteID: 2, KeyEpoch: 3, KeyShare: octetsFrom(4), EncapsulationKey: bytes.Repeat([]byte{5}, mlkem.EncapsulationKeySize768)},
		&KeyReply{LocalID: 1, RemoteID: 2, KeyEpoch: 3, KeyShare: octetsFrom(4), Ciphertext: bytes.Repeat([]byte{5}, mlkem.CiphertextSize768)},
		&KeyChanged{LocalID: 1, RemoteID: 2, KeyEpoch: 3, Result: &result},
		&ChangeOffer{
			LocalID: 1, RemoteID: 2, RequestID: idFrom(3), Addresses: addrs("10.77.0.2", "fd77::2"), Peers: addrs("10.77.0.1", "fd77::1"),
			MTU: 1400, Timers: Timers{Hello: 20 * time.Second, Misses: 3, Grace: 24 * time.Hour}, Lifetime: &Lifetime{Idle: 5 * time.Second, Absolute: 4 * time.Second, Reauth: 6 * time.Second},
			HasRoutes: true, Routes: prefixes("10.30.0.0/16"), Expires: &Expires{After: 7 * time.Second, Refresher: RefresherGateway},
		},
		&ChangeAnswer{LocalID: 1, RemoteID: 2, RequestID: idFrom(3), Lifetime: &Lifetime{Idle: 1 * time.Second, Absolute: 2 * time.Second, Reauth: 3 * time.Second}, Expires: &Expires{After: 4 * time.Second, Refresher: RefresherNode}},
		&Ticket{LocalID: 1, RemoteID: 2, Ticket: bytes.Repeat([]byte("ticket"), 300)},
		&Drain{Leaving: true, Gateways: []string{"gw-2.example:443", "[2001:db8::3]:8443"}, Delay: 1500 * time.Millisecond},
	}
}

// least gives every message with as little as it may have.
func least() []Message {
	profile := Profile{Version: 1, BootID: idFrom(1)}
	return []Message{
		&SCCRQ{HostName: "n", AssignedID: 1, Pseudowires: []uint16{0}, Profile: profile},
		&SCCRP{HostName: "n", AssignedID: 1, Pseudowires: []uint16{0}, Profile: profile},
		&SCCCN{}, &Hello{}, &ACK{},
		&StopCCN{Result: Result{Code: StopShuttingDown}},
		&ICRQ{LocalID: 1, RemoteEnd: "n"},
		&ICRP{LocalID: 1, RemoteID: 2, Session: idFrom(1)},
		&ICCN{LocalID: 1, RemoteID: 2},
		&CDN{RemoteID: 2, Result: Result{Code: CDNError}},
		&CDN{LocalID: 1, Result: Result{Code: CDNError, Text: "x"}},
		&WEN{LocalID: 1, RemoteID: 2},
		&SLI{LocalID: 1, RemoteID: 2},
		&SLI{LocalID: 1, RemoteID: 2, HasRoutes: true},
		&SLI{LocalID: 1, RemoteID: 2, Lifetime: &Lifetime{}},
		&FSQ{}, &FSR{},
		&CertRequest{RequestID: idFrom(1), CSR: []byte{1}},
		&CertReply{RequestID: idFrom(1), Result: &Result{Code: CDNAdministrative}},
		&CertReply{RequestID: idFrom(1), Result: &Result{Code: CDNAdministrative, Cause: CauseCertificate}},
		&KeyReply{LocalID: 1, RemoteID: 2, Result: &Result{Code: CDNError}},
		&KeyChanged{LocalID: 1, RemoteID: 2},
		&ChangeOffer{LocalID: 1, RemoteID: 2, RequestID: idFrom(1), MTU: MinMTU},
		&ChangeOffer{LocalID: 1, RemoteID: 2, RequestID: idFrom(1), HasRoutes: true},
		&ChangeOffer{LocalID: 1, RemoteID: 2, RequestID: idFrom(1), Expires: &Expires{}},
		&ChangeAnswer{LocalID: 1, RemoteID: 2, RequestID: idFrom(1)},
		&ChangeAnswer{LocalID: 1, RemoteID: 2, RequestID: idFrom(1), Result: &Result{Code: CDNAdministrative, Cause: CauseToken}},
		&ChangeAnswer{LocalID: 1, RemoteID: 2, RequestID: idFrom(1), Result: &Result{Code: CDNAdministrative, Cause: CauseTooShort, Floor: time.Second}},
		&Ticket{LocalID: 1, RemoteID: 2, Ticket: []byte{1}},
		&Drain{},
		&UnknownMessage{Vendor: 9, Number: 1},
	}
}
