package noise

import (
	"sync/atomic"
	"time"
)

// Timers says for one session when to start a handshake, when to send an empty
// packet and when to wipe keys (paper, chapter 6). It has no clock and no
// goroutine, owns 80 octets, and all its methods are for any
// goroutine and take no lock: data paths tell it about each batch.
//
// Whoever owns it keeps one place in one timer wheel for it. A method that
// returns a wake other than zero asks to be called there: put the session into
// the wheel for that instant, in place of a later one. Expire may come late,
// early or for nothing; it looks what is due. Deadlines that packets put off
// again and again are not moved in the wheel but looked at when they come, so
// that a busy session costs the wheel one turn in ten seconds.
type Timers struct {
	armed       atomic.Int64 // for when the wheel was asked; 0: not at all
	retryAt     atomic.Int64 // next initiation
	unheardAt   atomic.Int64 // data was sent, nothing came: handshake
	keepaliveAt atomic.Int64 // data came, nothing was sent: empty packet
	traffic     atomic.Int64 // last packet either way; kept for persistent keepalive only
	zeroAt      atomic.Int64 // keys are wiped
	handshakeAt atomic.Int64 // our last initiation or response
	completeAt  atomic.Int64 // the last handshake's end

	persistent atomic.Int32 // seconds; 0: none
	attempts   atomic.Int32 // initiations since the handshake was wanted
	passive    atomic.Bool  // the peer starts every handshake
	seed       uint32
}

// How soon an initiation may follow the last handshake message, or the end of
// the last handshake, when somebody asked for it, instead of RekeyTimeout. The
// peer accepts one in 20 ms, and counts from when it came to the one before:
// that may be long after we sent it, but not after the handshake's end. One that
// is in flight should have a fair chance to be answered.
const (
	urgentAfter         = 25 * time.Millisecond
	urgentAfterInFlight = 250 * time.Millisecond
)

// Start sets what seldom changes. seed makes the jitter of this session differ
// from others'. passive says that the peer starts every handshake.
func (t *Timers) Start(now Instant, seed uint32, persistent time.Duration, passive bool) (wake Instant) {
	t.seed = seed
	t.passive.Store(passive)
	return t.SetPersistent(now, persistent)
}

// SetPersistent sets the interval of persistent keepalives, in whole seconds up
// to 65535; zero ends them. The first is due at once.
func (t *Timers) SetPersistent(now Instant, every time.Duration) (wake Instant) {
	seconds := int32(every / time.Second)
	t.persistent.Store(seconds)
	if seconds == 0 {
		return 0
	}
	t.traffic.Store(int64(now.Add(-every)))
	return t.arm(now)
}

// SetPassive says who starts handshakes from now on.
func (t *Timers) SetPassive(passive bool) {
	t.passive.Store(passive)
	if passive {
		t.retryAt.Store(0)
		t.unheardAt.Store(0)
	}
}

// DataSent is told after data packets were sent, once a batch.
func (t *Timers) DataSent(now Instant) (wake Instant) {
	wake = t.sent(now)
	if t.unheardAt.Load() == 0 && !t.passive.Load() {
		at := now.Add(KeepaliveTimeout + RekeyTimeout + t.jitter(now))
		if t.unheardAt.CompareAndSwap(0, int64(at)) {
			wake = earlier(wake, t.arm(at))
		}
	}
	return wake
}

// KeepaliveSent is told after an empty packet was sent.
func (t *Timers) KeepaliveSent(now Instant) (wake Instant) { return t.sent(now) }

// DataReceived is told after data packets were authenticated, once a batch.
func (t *Timers) DataReceived(now Instant) (wake Instant) {
	wake = t.received(now)
	if t.keepaliveAt.Load() == 0 {
		at := now.Add(KeepaliveTimeout)
		if t.keepaliveAt.CompareAndSwap(0, int64(at)) {
			wake = earlier(wake, t.arm(at))
		}
	}
	return wake
}

// KeepaliveReceived is told after an empty packet was authenticated.
func (t *Timers) KeepaliveReceived(now Instant) (wake Instant) { return t.received(now) }

// Want asks for a handshake, because a packet has no keypair to go with, the
// keypair gets old, or somebody says so. If it reports send, the caller creates
// and sends an initiation now. Otherwise there is nothing to do: one is in
// flight, or Expire will ask for one as soon as it may be sent, or the peer
// starts every handshake.
//
// Initiations are 5 s apart, and so are a response and an initiation. urgent
// does not wait for that, nor for one in flight that has had its chance: the
// peer has restarted, or an administrator asks.
func (t *Timers) Want(now Instant, urgent bool) (send bool, wake Instant) {
	if t.passive.Load() {
		return false, 0
	}
	at := now
	retry := t.retryAt.Load()
	last := Instant(t.handshakeAt.Load())
	if retry != 0 && (last == 0 || !urgent) {
		return false, 0
	}
	if last != 0 {
		switch {
		case retry != 0 && t.attempts.Load() > 0:
			at = last.Add(urgentAfterInFlight)
		case urgent:
			at = max(last, Instant(t.completeAt.Load())).Add(urgentAfter)
		default:
			at = last.Add(RekeyTimeout)
		}
	}
	if retry == 0 {
		t.attempts.Store(0)
	}
	if at > now {
		if retry != 0 && retry <= int64(at) || !t.retryAt.CompareAndSwap(retry, int64(at)) {
			return false, 0
		}
		return false, t.arm(at)
	}
	return t.initiate(now, retry)
}

// initiate claims the right to send one initiation: of several callers that saw
// the same state, one gets it.
func (t *Timers) initiate(now Instant, seen int64) (send bool, wake Instant) {
	at := now.Add(RekeyTimeout + t.jitter(now))
	if !t.retryAt.CompareAndSwap(seen, int64(at)) {
		return false, 0
	}
	t.handshakeAt.Store(int64(now))
	t.attempts.Add(1)
	wake = t.sent(now)
	return true, earlier(wake, t.arm(at))
}

// InitiationSent is told after an initiation was sent, which Want or Expire may
// have asked for or not. The next attempt is 5 s off.
func (t *Timers) InitiationSent(now Instant) (wake Instant) {
	at := now.Add(RekeyTimeout + t.jitter(now))
	t.retryAt.Store(int64(at))
	t.handshakeAt.Store(int64(now))
	t.attempts.CompareAndSwap(0, 1)
	return earlier(t.sent(now), t.arm(at))
}

// ResponseSent is told after an initiation was answered.
func (t *Timers) ResponseSent(now Instant) (wake Instant) {
	t.handshakeAt.Store(int64(now))
	t.unheardAt.Store(0)
	return earlier(t.sent(now), t.derived(now))
}

// Complete is told after a response was consumed, or Keypairs.Confirmed
// promoted a pair. No initiation is in flight any more.
func (t *Timers) Complete(now Instant) (wake Instant) {
	t.retryAt.Store(0)
	t.attempts.Store(0)
	t.completeAt.Store(int64(now))
	return earlier(t.received(now), t.derived(now))
}

// InFlight reports whether an initiation is in flight or due.
func (t *Timers) InFlight() bool { return t.retryAt.Load() != 0 }

// Actions are what Expire wants done, as bits in the order of their doing.
type Actions uint8

const (
	// WipeKeys: no new key came for 540 s. Retire all keypairs, wipe the
	// handshake.
	WipeKeys Actions = 1 << iota
	// NoAnswer: initiations went out for 90 s in vain. Wipe the handshake, drop
	// what waits for it, tell whoever wants to know. No more follow until Want.
	NoAnswer
	// SendInitiation: forget a cached source address, which may be the reason
	// for silence, create a new initiation and send it.
	SendInitiation
	// SendKeepalive: seal an empty packet, and call KeepaliveSent; without a
	// keypair that may send, Want takes its place.
	SendKeepalive
)

// Expire says what is due. What it asks for counts as done, so that a session
// that cannot send now does not ask again at once.
func (t *Timers) Expire(now Instant) (do Actions, wake Instant) {
	if t.due(&t.zeroAt, now) {
		do |= WipeKeys
		t.keepaliveAt.Store(0)
		t.unheardAt.Store(0)
	}
	do |= t.expireHandshake(now)
	if t.due(&t.keepaliveAt, now) || t.persistentDue(now) {
		do |= SendKeepalive
		t.sent(now)
	}
	return do, t.rearm()
}

// expireHandshake is Expire's part that concerns initiations.
func (t *Timers) expireHandshake(now Instant) (do Actions) {
	if t.due(&t.unheardAt, now) {
		if send, _ := t.Want(now, false); send {
			return SendInitiation
		}
	}
	retry := t.retryAt.Load()
	switch {
	case retry == 0 || retry > int64(now):
		return 0
	case int(t.attempts.Load()) >= int(RekeyAttemptTime/RekeyTimeout):
		if t.retryAt.CompareAndSwap(retry, 0) {
			t.keepaliveAt.Store(0)
			t.zeroAt.CompareAndSwap(0, int64(now.Add(ZeroKeysAfter)))
			return NoAnswer
		}
	default:
		if send, _ := t.initiate(now, retry); send {
			return SendInitiation
		}
	}
	return 0
}

// rearm asks the wheel for the earliest of all deadlines. Whoever sets one
// meanwhile did so before armed was cleared, and it is read here, or asks for
// itself.
func (t *Timers) rearm() (wake Instant) {
	t.armed.Store(0)
	for _, at := range [...]*atomic.Int64{&t.retryAt, &t.unheardAt, &t.keepaliveAt, &t.zeroAt} {
		wake = earlier(wake, Instant(at.Load()))
	}
	if every := t.persistent.Load(); every != 0 {
		wake = earlier(wake, Instant(t.traffic.Load()).Add(time.Duration(every)*time.Second))
	}
	if wake == 0 {
		return 0
	}
	return t.arm(wake)
}

// Stop forgets every deadline and what the timers know, but for Start's
// arguments. A persistent keepalive goes on at the next packet.
func (t *Timers) Stop() {
	for _, v := range [...]*atomic.Int64{&t.armed, &t.retryAt, &t.unheardAt, &t.keepaliveAt, &t.zeroAt, &t.handshakeAt, &t.completeAt} {
		v.Store(0)
	}
	t.attempts.Store(0)
}

// sent and received are what every authenticated message does.
func (t *Timers) sent(now Instant) (wake Instant) {
	if t.keepaliveAt.Load() != 0 {
		t.keepaliveAt.Store(0)
	}
	return t.traversal(now)
}

func (t *Timers) received(now Instant) (wake Instant) {
	if t.unheardAt.Load() != 0 {
		t.unheardAt.Store(0)
	}
	return t.traversal(now)
}

func (t *Timers) traversal(now Instant) (wake Instant) {
	every := t.persistent.Load()
	if every == 0 {
		return 0
	}
	t.traffic.Store(int64(now))
	return t.arm(now.Add(time.Duration(every) * time.Second))
}

// Resume is told of the newest keypair that outlived the process before this
// one: no new one is made without need, and this one ends when it would have.
func (t *Timers) Resume(created Instant) (wake Instant) { return t.derived(created) }

// derived is what every new keypair does.
func (t *Timers) derived(now Instant) (wake Instant) {
	at := now.Add(ZeroKeysAfter)
	t.zeroAt.Store(int64(at))
	return t.arm(at)
}

// due takes a deadline that has come.
func (t *Timers) due(at *atomic.Int64, now Instant) bool {
	v := at.Load()
	return v != 0 && v <= int64(now) && at.CompareAndSwap(v, 0)
}

func (t *Timers) persistentDue(now Instant) bool {
	every := t.persistent.Load()
	return every != 0 && Instant(t.traffic.Load()).Add(time.Duration(every)*time.Second) <= now
}

// arm asks for a call at that instant, unless an earlier one is coming.
func (t *Timers) arm(at Instant) (wake Instant) {
	for {
		armed := t.armed.Load()
		if armed != 0 && armed <= int64(at) {
			return 0
		}
		if t.armed.CompareAndSwap(armed, int64(at)) {
			return at
		}
	}
}

// jitter is between 0 and MaxJitter, another one at each instant.
func (t *Timers) jitter(now Instant) time.Duration {
	x := uint64(now) ^ uint64(t.seed)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9 // the mixer of SplitMix64
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return time.Duration((x ^ x>>31) % uint64(MaxJitter))
}

// earlier is the first of two instants, of which zero is none.
func earlier(a, b Instant) Instant {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
