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

// Memory is where the parts of a keypair lie that may outlive the process: a
// slot of a memory file, or what NewMemory returns. The ciphers read the keys
// where they lie; there is no copy of them on the heap.
type Memory struct {
	Send, Receive *[KeySize]byte
	Counter       *atomic.Uint64 // the next to send with
	Window        Window

	// Free, if not nil, is called once, when the keys have been wiped and
	// nobody uses the memory any more.
	Free func()
}

// NewMemory is ordinary memory that does not outlive the process.
func NewMemory() Memory {
	m := new(struct {
		send, receive [KeySize]byte
		counter       atomic.Uint64
		window        [WindowWords]uint64
	})
	return Memory{Send: &m.send, Receive: &m.receive, Counter: &m.counter, Window: m.window[:]}
}

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
	counter       *atomic.Uint64
	free          func()

	holders atomic.Int32 // 1 for the owner; at 0 the keys are gone
	retired atomic.Bool
	lastMin atomic.Bool // RekeyOnReceive has asked

	mu     sync.Mutex // guards window
	window Window
}

// NewKeypair copies keys into mem and returns the pair that lives there. The
// counter begins at zero and the window empty.
func NewKeypair(keys *Keys, mem Memory) *Keypair {
	*mem.Send, *mem.Receive = keys.Send, keys.Receive
	mem.Counter.Store(0)
	mem.Window.Reset()
	return AdoptKeypair(keys, mem)
}

// AdoptKeypair goes on with what lies in mem; of keys everything but the two
// keys themselves counts.
func AdoptKeypair(keys *Keys, mem Memory) *Keypair {
	k := &Keypair{
		Local: keys.Local, Remote: keys.Remote, Created: keys.Created,
		Initiator: keys.Initiator, Crossed: keys.Crossed,
		send: overKey(mem.Send), receive: overKey(mem.Receive),
		counter: mem.Counter, window: mem.Window, free: mem.Free,
	}
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
	k.send.wipe()
	k.receive.wipe()
	if k.free != nil {
		k.free()
	}
}

// Retire ends the pair: Hold fails from now on, and the keys are wiped where
// they lie as soon as nobody holds them. Retiring twice is the same as once.
func (k *Keypair) Retire() {
	if k.retired.CompareAndSwap(false, true) {
		k.Release()
	}
}

// NextCounters takes n counters at once; first is the lowest of them. It
// reports false when the pair has used up its messages or EndSending was
// called. A caller whose counter lies in a memory file makes sure after this
// call, and before it seals, that the slot is still its own.
func (k *Keypair) NextCounters(n int) (first uint64, ok bool) {
	for {
		first = k.counter.Load()
		if first >= RejectAfterMessages || uint64(n) > RejectAfterMessages-first {
			return 0, false
		}
		if k.counter.CompareAndSwap(first, first+uint64(n)) {
			return first, true
		}
	}
}

// EndSending stops sending with the pair, because the peer has lost it.
// Receiving goes on.
func (k *Keypair) EndSending() { k.counter.Store(RejectAfterMessages) }

// MaySend reports whether the pair is young enough and has messages left.
func (k *Keypair) MaySend(now Instant) bool {
	return now.Sub(k.Created) < RejectAfterTime && k.counter.Load() < RejectAfterMessages
}

// MayReceive reports whether the pair is young enough.
func (k *Keypair) MayReceive(now Instant) bool { return now.Sub(k.Created) < RejectAfterTime }

// RekeyOnSend reports, after packets were sent, whether it is time for a
// handshake (paper, section 6.2). It goes on doing so; Timers.Want knows what
// is under way.
func (k *Keypair) RekeyOnSend(now Instant) bool {
	return k.Initiator && now.Sub(k.Created) > RekeyAfterTime || k.counter.Load() > RekeyAfterMessages
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
