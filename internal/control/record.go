package control

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// Record is everything of a control connection that outlives its process: what
// Save makes durable and Restore begins from.
type Record struct {
	Role        Role
	LocalID     uint32
	RemoteID    uint32
	PeerID      session.ID // node id
	PeerName    string
	PeerBootID  session.ID
	Ns, Nr      uint16         // next to send, next expected
	Serial      uint64         // of the checkpoint this end stands at; 0: not known, see checkpoint.go
	Major       uint64         // of the last one at which nothing was under way
	Unacked     []*wire.Packet // sent, not known to be journalled by the peer
	Generation  uint64         // of ResumeKey
	ResumeKey   secret.Value   // 32 octets
	NextKey     secret.Value   // a responder's: that of Generation+1, once offered
	Attempt     uint64         // highest made (initiator) or believed (responder)
	SuspendedAt time.Time      // zero while a transport carries the connection
	Timers      wire.Timers
	Sessions    []Session

	Anew          bool // an initiator's: the gateway has lost the connection, which is to be set up once more
	Unrecoverable bool // the peer cannot recover it: it ends with its transport
}

// Session is one session of a control connection: everything that both ends
// agreed on and what the data plane needs.
type Session struct {
	ID                session.ID
	LocalID, RemoteID uint32
	State             session.State
	Network           string
	Label             string // the initiator's own, never sent
	Serial            uint32
	Resumes           uint64

	PrivateKey   secret.Value // ours for this session; a gateway's is its network's and not kept here
	PublicKey    [32]byte     // ours
	PeerKey      [32]byte
	PresharedKey secret.Value // of KeyEpoch
	KeyEpoch     uint32

	// Of a change to the key epoch after that; see rekey.go.
	OfferSecret      secret.Value // an initiator's, while its offer is not answered
	NextPresharedKey secret.Value // while it is armed and not known to carry traffic

	Addresses []netip.Addr   // the node's
	Peers     []netip.Addr   // the gateway's
	Routes    []netip.Prefix // the node sends these here
	Advertise []netip.Prefix // the gateway sends these to the node
	MTU       uint16
	Timers    wire.Timers

	RequestID session.ID // of the ICRQ: the wish that began it
	Changes   uint64     // made to it, as this end counts them; see serial.go
	Offer     *Offer     // of ours, not answered; nil: none

	Life
	Claims
}

// recordVersion is the version of the encoding below. The first wrote keys as
// lists of numbers.
const recordVersion = 2

// The shapes on disk. Secrets are written in the clear here: the store seals.
type (
	recordV1 struct {
		Version     int
		Role        Role
		LocalID     uint32
		RemoteID    uint32
		PeerID      session.ID
		PeerName    string
		PeerBootID  session.ID
		Ns, Nr      uint16
		Serial      uint64 `json:",omitempty"`
		Major       uint64 `json:",omitempty"`
		Unacked     [][]byte
		Generation  uint64
		ResumeKey   []byte
		NextKey     []byte
		Attempt     uint64
		SuspendedAt time.Time
		Timers      wire.Timers
		Sessions    []sessionV1

		Anew, Unrecoverable bool `json:",omitempty"`
	}
	sessionV1 struct {
		ID                session.ID
		LocalID, RemoteID uint32
		State             session.State
		Network, Label    string
		Serial            uint32
		Resumes           uint64
		PrivateKey        []byte
		PublicKey         publicKey
		PeerKey           publicKey
		PresharedKey      []byte
		KeyEpoch          uint32
		OfferSecret       []byte `json:",omitempty"`
		NextPresharedKey  []byte `json:",omitempty"`
		Addresses, Peers  []netip.Addr
		Routes, Advertise []netip.Prefix
		MTU               uint16
		Timers            wire.Timers
		RequestID         session.ID `json:",omitzero"`
		Changes           uint64     `json:",omitempty"`
		Offer             *Offer     `json:",omitempty"`
		Life
		Ticket     []byte `json:",omitempty"`
		Rebuild    bool   `json:",omitempty"`
		ClaimEpoch uint32 `json:",omitempty"`
		Claim      []byte `json:",omitempty"`
	}
)

// publicKey is base64 in JSON, of which encoding/json would make a list.
type publicKey [keySize]byte

// MarshalText writes base64.
func (k publicKey) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, k[:]), nil
}

// UnmarshalJSON reads what MarshalText writes, and what the first version wrote.
func (k *publicKey) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		return json.Unmarshal(b, (*[keySize]byte)(k))
	}
	var raw []byte
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	if len(raw) != keySize {
		return fmt.Errorf("a key of %d octets", len(raw))
	}
	*k = publicKey(raw)
	return nil
}

// Encode writes the record for the store. The result holds secrets.
func (r *Record) Encode() ([]byte, error) {
	v := recordV1{
		Version: recordVersion, Role: r.Role, LocalID: r.LocalID, RemoteID: r.RemoteID,
		PeerID: r.PeerID, PeerName: r.PeerName, PeerBootID: r.PeerBootID, Ns: r.Ns, Nr: r.Nr, Serial: r.Serial, Major: r.Major,
		Generation: r.Generation, ResumeKey: r.ResumeKey.Reveal(), NextKey: r.NextKey.Reveal(),
		Attempt: r.Attempt, SuspendedAt: r.SuspendedAt, Timers: r.Timers, Anew: r.Anew, Unrecoverable: r.Unrecoverable,
	}
	for _, p := range r.Unacked {
		b, err := p.Append(nil)
		if err != nil {
			return nil, fmt.Errorf("record of connection %d: %w", r.LocalID, err)
		}
		v.Unacked = append(v.Unacked, b)
	}
	for _, s := range r.Sessions {
		v.Sessions = append(v.Sessions, sessionV1{
			ID: s.ID, LocalID: s.LocalID, RemoteID: s.RemoteID, State: s.State, Network: s.Network, Label: s.Label, Serial: s.Serial,
			Resumes: s.Resumes, PrivateKey: s.PrivateKey.Reveal(), PublicKey: publicKey(s.PublicKey), PeerKey: publicKey(s.PeerKey),
			PresharedKey: s.PresharedKey.Reveal(), KeyEpoch: s.KeyEpoch,
			OfferSecret: s.OfferSecret.Reveal(), NextPresharedKey: s.NextPresharedKey.Reveal(), Addresses: s.Addresses, Peers: s.Peers,
			Routes: s.Routes, Advertise: s.Advertise, MTU: s.MTU, Timers: s.Timers, RequestID: s.RequestID, Changes: s.Changes, Offer: s.Offer, Life: s.Life,
			Ticket: s.Ticket.Reveal(), Rebuild: s.Rebuild, ClaimEpoch: s.ClaimEpoch, Claim: s.Claim.Reveal(),
		})
	}
	return json.Marshal(v)
}

// DecodeRecord reads what Encode wrote.
func DecodeRecord(b []byte) (*Record, error) {
	var v recordV1
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("record of a control connection: %w", err)
	}
	if v.Version < 1 || v.Version > recordVersion {
		return nil, fmt.Errorf("record of a control connection: version %d, this daemon knows up to %d", v.Version, recordVersion)
	}
	r := &Record{
		Role: v.Role, LocalID: v.LocalID, RemoteID: v.RemoteID, PeerID: v.PeerID, PeerName: v.PeerName,
		PeerBootID: v.PeerBootID, Ns: v.Ns, Nr: v.Nr, Serial: v.Serial, Major: v.Major, Generation: v.Generation,
		ResumeKey: secret.New(v.ResumeKey), NextKey: secret.New(v.NextKey),
		Attempt: v.Attempt, SuspendedAt: v.SuspendedAt, Timers: v.Timers, Anew: v.Anew, Unrecoverable: v.Unrecoverable,
	}
	for _, b := range v.Unacked {
		p, err := wire.Parse(b)
		if err != nil {
			return nil, fmt.Errorf("record of connection %d: %w", v.LocalID, err)
		}
		r.Unacked = append(r.Unacked, p)
	}
	for _, s := range v.Sessions {
		r.Sessions = append(r.Sessions, Session{
			ID: s.ID, LocalID: s.LocalID, RemoteID: s.RemoteID, State: s.State, Network: s.Network, Label: s.Label, Serial: s.Serial,
			Resumes: s.Resumes, PrivateKey: secret.New(s.PrivateKey), PublicKey: s.PublicKey, PeerKey: s.PeerKey,
			PresharedKey: secret.New(s.PresharedKey), KeyEpoch: s.KeyEpoch,
			OfferSecret: secret.New(s.OfferSecret), NextPresharedKey: secret.New(s.NextPresharedKey), Addresses: s.Addresses, Peers: s.Peers,
			Routes: s.Routes, Advertise: s.Advertise, MTU: s.MTU, Timers: s.Timers, RequestID: s.RequestID, Changes: s.Changes, Offer: s.Offer, Life: s.Life,
			Claims: Claims{Ticket: secret.New(s.Ticket), Rebuild: s.Rebuild, ClaimEpoch: s.ClaimEpoch, Claim: secret.New(s.Claim)},
		})
	}
	return r, nil
}
