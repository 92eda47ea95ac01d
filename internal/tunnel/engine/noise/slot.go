package noise

import (
	"encoding/binary"
	"sync/atomic"

	"crypto/rand"
)

// Slot is the memory a keypair lives in: its keys, its send counter and its
// replay window. There is no second copy of them. It holds no pointer and no
// lock, so it may lie in memory that outlives the process, which may be killed
// between any two instructions.
//
// ID is published last and cleared first: a slot without one holds nothing,
// whatever else stands in it.
type Slot struct {
	ID      atomic.Uint64 // random for each keypair; zero: no keypair lives here
	Counter atomic.Uint64 // the next to send with; advanced before it is used
	Turn    atomic.Uint64 // when it became the pair that sends, see Keypairs; zero: not yet
	_       [40]byte      // a sender's cache line ends here
	Keys    Keys          // both keys are one more
	_       [40]byte
	Window  [WindowWords]uint64
}

// fill puts keys into s, which holds nothing; the counter begins at zero and
// the window empty.
func (s *Slot) fill(keys *Keys) {
	s.Keys = *keys
	s.Counter.Store(0)
	s.Turn.Store(0)
	Window(s.Window[:]).Reset()
}

// publish gives s an ID, after which a keypair lives there.
func (s *Slot) publish() {
	var b [8]byte
	for id := uint64(0); ; {
		if id != 0 {
			s.ID.Store(id)
			return
		}
		rand.Read(b[:])
		id = binary.NativeEndian.Uint64(b[:])
	}
}

// Wipe clears the slot: the ID first.
func (s *Slot) Wipe() {
	s.ID.Store(0)
	s.Keys.Wipe()
	s.Counter.Store(0)
	s.Turn.Store(0)
	Window(s.Window[:]).Reset()
}
