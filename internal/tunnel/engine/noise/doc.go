// Package noise is the WireGuard protocol as pure code: keys and messages go
// in and out as values and octets, and the time is an argument. It opens no
// socket, starts no goroutine, reads no clock and knows no TUN device.
//
// The handshake is Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s as the WireGuard
// paper fixes it (J. Donenfeld, NDSS 2017); "paper, section 5.4" in comments
// means that text.
//
// # One handshake
//
//	initiator                               responder
//	Timers.Want says send
//	StaticKey.CreateInitiation ──────────►  StaticKey.CheckMAC1, ConsumeInitiation
//	                                        look the peer up, ask its gate
//	                                        Initiation.Accept, CreateResponse
//	                                        Keypairs.Responded, Timers.ResponseSent
//	Handshake.ConsumeResponse    ◄────────
//	Keypairs.Initiated, Timers.Complete
//	first packet or keepalive    ────────►  Keypair.Open
//	                                        Keypairs.Confirmed, Timers.Complete
//
// The initiator sends something at once after its response came, because only
// that first packet lets the responder send with the new keypair.
//
// # Both ends at once
//
// An initiation is always answered, also while one of our own is in flight,
// and ours stays in flight: a peer that keeps only one handshake (the common
// implementations do) has forgotten its own and answers ours, one like this
// answers and keeps both, and whichever message is lost, the other handshake
// goes through. Where both complete, each end has two new keypairs, receives
// with both, and sends with the one whose initiator has the greater public
// key; see [Keypairs.Confirmed]. No round trip is added and no packet lost.
package noise

import (
	"errors"
	"time"
)

// Errors that callers branch on. Each of them drops one datagram and changes
// nothing else.
var (
	ErrMalformed = errors.New("noise: malformed message")
	ErrAuth      = errors.New("noise: message does not authenticate")
	ErrReplay    = errors.New("noise: message was seen before or is too old")
	ErrFlood     = errors.New("noise: initiations come faster than one per 20 ms")
	ErrExpired   = errors.New("noise: keypair is too old or used up")
	ErrBadKey    = errors.New("noise: key has the wrong size or low order")
)

// Sizes in octets (paper, section 5.4).
const (
	KeySize             = 32
	TagSize             = 16 // of Poly1305
	InitiationSize      = 148
	ResponseSize        = 92
	CookieReplySize     = 64
	TransportHeaderSize = 16
	KeepaliveSize       = TransportHeaderSize + TagSize // the smallest transport message
	PaddingMultiple     = 16
)

// Constants of the protocol (paper, sections 5.3, 5.4.7 and 6.1; jitter and key
// zeroing as the common implementations have them).
const (
	RekeyAfterTime      = 120 * time.Second      // the initiator of a keypair renews it when sending
	RejectAfterTime     = 180 * time.Second      // neither end uses a keypair older than this
	RekeyTimeout        = 5 * time.Second        // between our initiations, and before another attempt
	RekeyAttemptTime    = 90 * time.Second       // then attempts end until there is a new reason
	KeepaliveTimeout    = 10 * time.Second       // data was received and nothing sent since
	CookieRefreshTime   = 120 * time.Second      // life of a cookie and of the secret it is made from
	InitiationInterval  = 20 * time.Millisecond  // initiations accepted from one peer
	MaxJitter           = 334 * time.Millisecond // added to a wait so that two ends fall out of step
	ZeroKeysAfter       = 3 * RejectAfterTime    // keys are wiped when no new one came for so long
	RekeyAfterMessages  = 1 << 60
	RejectAfterMessages = 1<<64 - 1<<13 - 1
)

// Instant is a moment in nanoseconds on one clock of the caller's that never
// goes back and goes on during suspend, such as CLOCK_BOOTTIME. Zero means
// never, so the clock has to be past zero.
type Instant int64

// Add is the instant d later.
func (t Instant) Add(d time.Duration) Instant { return t + Instant(d) }

// Sub is the time from u to t.
func (t Instant) Sub(u Instant) time.Duration { return time.Duration(t - u) }
