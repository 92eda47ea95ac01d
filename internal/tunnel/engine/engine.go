// Package engine declares the data plane: what moves the packets of sessions
// between TUN devices and the network. On the wire every engine is WireGuard
// (Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s).
//
// Implementations: enginetest.Fake (in memory, for tests), engine/native (our
// own) and engine/reference (wireguard-go's device).
package engine

import (
	"encoding/base64"
	"errors"
	"iter"
	"net/netip"
	"time"

	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// Errors that callers branch on.
var (
	ErrInterfaceTaken = errors.New("engine: interface name is taken")
	ErrNoTUN          = errors.New("engine: no /dev/net/tun")
	ErrNotPermitted   = errors.New("engine: not permitted (CAP_NET_ADMIN is missing)")
	ErrPortTaken      = errors.New("engine: UDP port is taken")
	ErrUnknownSession = errors.New("engine: no such session")
	ErrKeyInUse       = errors.New("engine: public key belongs to another session")
	ErrClosed         = errors.New("engine: closed")
)

// KeySize is the size of every key in octets.
const KeySize = 32

// PublicKey is an X25519 public key.
type PublicKey [KeySize]byte

// String is the key in base64, as `wg` prints it.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// Gate says what may pass a session now. The data path reads it once a batch.
type Gate uint8

const (
	Closed      Gate = iota // nothing passes, and handshakes are neither started nor answered
	Open                    // packets pass
	Quarantined             // kept, and handshakes go on, but no packet passes until the control plane has decided
)

// Direction says which packets an open gate lets through, seen from here. The
// empty packets that keep a session alive go both ways in any case.
type Direction uint8

const (
	Duplex      Direction = iota // both
	SendOnly                     // what the peer sends is dropped
	ReceiveOnly                  // what the host sends is dropped
)

// Rate bounds the inner octets of a session in one direction. What goes beyond
// is dropped, never delayed. The zero Rate is no bound.
type Rate struct {
	BytesPerSecond uint64
	Burst          uint64 // octets at once; zero: what comes in 100 ms, at least 64 KiB
}

// Engine is one data plane: one UDP port, any number of devices. Its methods
// may be called from any goroutine; one that returns nil has taken effect.
type Engine interface {
	// Open makes (or takes over) the TUN interface and starts moving packets.
	// Errors: ErrInterfaceTaken, ErrNoTUN, ErrNotPermitted.
	Open(DeviceConfig) (Device, error)
	// Port is the UDP port the engine is bound to, in use by every device.
	Port() uint16
	// PathChanged says that the host's addresses or routes changed: cached
	// source addresses are forgotten at once.
	PathChanged()
	// Events are what happened to the sessions of all devices.
	Events() *Events
	// KeyMemory says where the live keys lie.
	KeyMemory() KeyMemory
	// Settled says that the control plane has added every session its journal
	// names live. An engine that goes on with what the process before it left
	// wipes the rest, and lets packets move; until then the kernel keeps them.
	Settled()
	// Close ends every device and waits for what they started.
	Close() error
}

// KeyMemory is what keeps live keys off a disk.
type KeyMemory struct {
	Unlocked error // why a swap could take them in; nil: it cannot
	Limited  bool  // RLIMIT_MEMLOCK is what is in the way
}

// ErrOrdinaryMemory says that live keys lie where everything else does.
var ErrOrdinaryMemory = errors.New("they lie in ordinary memory, since nobody keeps descriptors for the next process")

// DeviceConfig describes one TUN interface.
type DeviceConfig struct {
	Interface string // name in the kernel, at most 15 octets
	MTU       int    // of the inside, in octets
}

// Device is one TUN interface and the sessions behind it. All of them share
// the interface's private key; each has a public key of its own.
//
// Methods may be called from any goroutine; one that returns nil has taken
// effect. They never wait for traffic. Those that name a session return
// ErrUnknownSession if it is not there.
type Device interface {
	// Name is the interface's name in the kernel.
	Name() string
	// SetPrivateKey sets the static key of the interface. Setting another one
	// than before ends every keypair in use; setting the same changes nothing.
	SetPrivateKey(secret.Value) error
	// Add adds a session, or replaces everything about the one of that ID
	// except its live keypairs when PeerKey is unchanged. A peer key that
	// another session has is refused with ErrKeyInUse.
	Add(Session) error
	// SetAllowedIPs makes the inner prefixes of a session exactly these.
	SetAllowedIPs(session.ID, []netip.Prefix) error
	// SetGate opens or closes a session, with effect from the next batch.
	SetGate(session.ID, Gate) error
	// SetDirection says which packets pass the open gate, from the next batch on.
	SetDirection(session.ID, Direction) error
	// SetRates bounds what passes in each direction.
	SetRates(id session.ID, rx, tx Rate) error
	// SetDeadline says when the data path itself stops the session, whoever
	// else is alive: from then on it is as Closed, whatever the gate says. The
	// time that is left when it is told counts on CLOCK_BOOTTIME, so that
	// neither a sleep of the host nor a step of its clock moves the end. The
	// zero Time takes the deadline away; a past one stops the session now.
	SetDeadline(session.ID, time.Time) error
	// SetPresharedKey sets the preshared key of a session, 32 octets or none
	// at all. It is used from the next handshake on: a response is built, or
	// consumed, with the key of that moment. Live keypairs are not touched, and
	// no handshake is started.
	SetPresharedKey(session.ID, secret.Value) error
	// SetSendFloor has our next initiations carry stamps above s, which the
	// peer says was the last it accepted.
	SetSendFloor(id session.ID, s Stamp) error
	// SetEndpoint says where the peer is now; roaming may move it again.
	SetEndpoint(session.ID, netip.AddrPort) error
	// Remove forgets a session and wipes its keys. Unknown sessions are no
	// error: the wish is fulfilled.
	Remove(session.ID) error
	// Handshake starts a handshake now. With fresh set, keypairs in use are
	// no longer sent with, because the peer has lost them; otherwise traffic
	// goes on with them until the new one stands. An engine that may not send
	// one yet does so as soon as it may. For a session whose peer starts every
	// handshake it is an error.
	Handshake(id session.ID, fresh bool) error
	// Keypairs names the live keypairs of a session by their receiver indices:
	// what the peer writes into the packets that it sends with them. An engine
	// that cannot go on with them in another process has none to name.
	Keypairs(session.ID) ([]uint32, error)
	// PeerRestarted says that the peer is another process than before, which has
	// of the keypairs of before those that it names. Unless we send with one of
	// them it is as Handshake with fresh set.
	PeerRestarted(id session.ID, kept []uint32) error
	// Probe sends an authenticated empty packet now, so that the peer learns
	// where we are. Without a live keypair it starts a handshake, unless that
	// is the peer's part.
	Probe(session.ID) error
	// Stats reads the counters of one session.
	Stats(session.ID) (Stats, error)
	// AllStats reads the counters of every session, without keeping packets
	// waiting. Sessions that come or go meanwhile may be there or not.
	AllStats() iter.Seq2[session.ID, Stats]
	// Close removes the interface and waits for what Open started.
	Close() error
}

// Session is what the data plane must know of a session.
type Session struct {
	ID           session.ID
	PeerKey      PublicKey
	PresharedKey secret.Value   // 32 octets; none at all for a peer without
	AllowedIPs   []netip.Prefix // inner prefixes the peer may send from and receives
	Endpoint     netip.AddrPort // zero: learnt from the peer's first packet
	Keepalive    time.Duration  // persistent keepalive, in whole seconds; zero: none
	Gate         Gate
	Direction    Direction
	RxRate       Rate
	TxRate       Rate
	Deadline     time.Time // as of SetDeadline; zero: none
	// AcceptAbove is the stamp of the peer's last initiation that was accepted
	// before this process, SendAbove that of our own last one. They never lower
	// what the engine knows.
	AcceptAbove, SendAbove Stamp
	// Responder says that the peer starts every handshake. The engine then
	// sends it none, because both ends starting at once can cost 5 s.
	Responder bool
}

// Stats are the counters of a session in this process. Bytes are inner bytes:
// what passed the TUN device, IP headers included.
type Stats struct {
	RxPackets, TxPackets uint64
	RxBytes, TxBytes     uint64
	RxDropped, TxDropped Drops
	Endpoint             netip.AddrPort // where the peer was last seen; zero if never
	LastHandshake        time.Time      // zero if there was none
	Accepted, Sent       Stamp          // of the last initiations of the peer's and of ours; zero if not known
}

// Cause is why packets of a session were dropped.
type Cause uint8

const (
	CauseGate      Cause = iota // it is not open
	CauseDeadline               // it is over
	CauseDirection              // the gate lets the other direction through
	CauseRate                   // too many
	CauseSource                 // the inner source is not the peer's
	CauseNoKey                  // a handshake was waited for in vain, or too many packets waited
	CauseCongested              // marked on the way, but nobody inside understands marks
	CauseUnsent                 // neither the kernel nor the carrier had room for it
	Causes                      // how many there are
)

// Drops are dropped packets by cause, as far as an engine sees them.
type Drops [Causes]uint64

// Total is all of them.
func (d Drops) Total() (n uint64) {
	for _, c := range d {
		n += c
	}
	return n
}
