package noise

import (
	"sync"
	"sync/atomic"
	"time"
)

// Keys is what a handshake yields. It holds no pointer, so it may be kept in a
// memory file; whoever has a Keypair made of it wipes it.
type Keys struct {
	Send, Receive [KeySize]byte
	Local, Remote uint32 // indices: which packets name this pair here, and at the peer
	Created       Instant
	Initiator     bool // our initiation led to it

	// Crossed is the index of an initiation of ours that was in flight when
	// this pair answered one of the peer's; zero if there was none. The caller
	// sets it, and gives no initiation the index zero.
	Crossed uint32
}

// Wipe overwrites the keys.
func (k *Keys) Wipe() { *k = Keys{} }

// Keypair moves data in both directions. Its exported fields do not change;
// its methods may be called from any goroutine.
//
// Whoever seals or opens holds the keypair meanwhile, once a batch, because a
// packet must not be sealed under a key that is just being wiped:
//
//	if kp.Hold() {
//		defer kp.Release()
//		…
//	}
type Keypair struct {
	Local, Remote uint32
	Created       Instant
	Initiator     bool
	Crossed       uint32

	send, receive cipherKey
	slot          *Slot
	id            uint64 // of slot, as long as it is ours
	free          func()

	holders atomic.Int32 // 1 for the owner; at 0 the keys are gone
	retired atomic.Bool
	lastMin atomic.Bool // RekeyOnReceive has asked

	mu     sync.Mutex // guards window
	window Window     // of slot
}

// NewKeypair puts keys into ordinary memory, which does not outlive the
// process, and returns the pair that lives there.
func NewKeypair(keys *Keys) *Keypair { return NewKeypairAt(new(Slot), keys, nil) }

// NewKeypairAt puts keys into a slot that holds nothing, and returns the pair
// that lives there. The counter begins at zero and the window empty. free, if
// not nil, is called once, when the slot is wiped and nobody uses it any more.
func NewKeypairAt(s *Slot, keys *Keys, free func()) *Keypair {
	s.fill(keys)
	s.publish()
	return AdoptKeypair(s, free)
}

// AdoptKeypair goes on with the keypair that lives in s. Nobody else may use
// it any more.
func AdoptKeypair(s *Slot, free func()) *Keypair {
	keys := &s.Keys
	k := &Keypair{
		Local: keys.Local, Remote: keys.Remote, Created: keys.Created,
		Initiator: keys.Initiator, Crossed: keys.Crossed,
		send: overKey(&keys.Send), receive: overKey(&keys.Receive),
		slot: s, id: s.ID.Load(), window: s.Window[:], free: free,
	}
	k.window.Mend()
	k.holders.Store(1)
	return k
}

// Hold keeps the keys from being wiped until Release. It reports false once
// the pair has been retired; then nothing may be sealed or opened with it.
func (k *Keypair) Hold() bool {
	for {
		n := k.holders.Load()
		if n == 0 || k.retired.Load() {
			return false
		}
		if k.holders.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Release ends a Hold. The last one wipes a retired pair.
func (k *Keypair) Release() {
	if k.holders.Add(-1) > 0 {
		return
	}
	k.slot.Wipe()
	if k.free != nil {
		k.free()
	}
}

// Retire ends the pair: Hold fails from now on, no counter is given out any
// more, and the keys are wiped where they lie as soon as nobody holds them.
// Retiring twice is the same as once.
func (k *Keypair) Retire() {
	if k.retired.CompareAndSwap(false, true) {
		k.slot.ID.Store(0)
		k.Release()
	}
}

// NextCounters takes n counters at once; first is the lowest of them. It
// reports false when the pair has used up its messages, or EndSending or Retire
// was called. The counter moves before anybody seals with what was taken, so a
// process that goes on with the slot after this one was killed takes none
// twice; and it is looked at afterwards whether the slot is still ours, so that
// one that was wiped meanwhile, or given to another keypair, sends nothing.
func (k *Keypair) NextCounters(n int) (first uint64, ok bool) {
	for {
		first = k.slot.Counter.Load()
		if first >= RejectAfterMessages || uint64(n) > RejectAfterMessages-first {
			return 0, false
		}
		if k.slot.Counter.CompareAndSwap(first, first+uint64(n)) {
			return first, k.slot.ID.Load() == k.id
		}
	}
}

// EndSending stops sending with the pair, because the peer has lost it.
// Receiving goes on.
func (k *Keypair) EndSending() { k.slot.Counter.Store(RejectAfterMessages) }

// Newest is the highest counter that was received.
func (k *Keypair) Newest() uint64 { return k.window.Last() }

// MaySend reports whether the pair is young enough and has messages left.
func (k *Keypair) MaySend(now Instant) bool {
	return now.Sub(k.Created) < RejectAfterTime && k.slot.Counter.Load() < RejectAfterMessages
}

// MayReceive reports whether the pair is young enough.
func (k *Keypair) MayReceive(now Instant) bool { return now.Sub(k.Created) < RejectAfterTime }

// RekeyOnSend reports, after packets were sent, whether it is time for a
// handshake (paper, section 6.2). It goes on doing so; Timers.Want knows what
// is under way.
func (k *Keypair) RekeyOnSend(now Instant) bool {
	return k.Initiator && now.Sub(k.Created) > RekeyAfterTime || k.slot.Counter.Load() > RekeyAfterMessages
}

// RekeyOnReceive reports, after packets were received, whether a handshake has
// to come soon because the pair ends before the passive keepalive would be
// answered. It says so once.
func (k *Keypair) RekeyOnReceive(now Instant) bool {
	const late = RejectAfterTime - KeepaliveTimeout - RekeyTimeout
	return k.Initiator && now.Sub(k.Created) > late && !k.lastMin.Load() && k.lastMin.CompareAndSwap(false, true)
}

// Age is how long the pair exists.
func (k *Keypair) Age(now Instant) time.Duration { return now.Sub(k.Created) }
