package noise

import "sync/atomic"

// Window is a replay window (RFC 6479) over words that the caller gives: the
// highest counter accepted, then a power of two of words with one bit for each
// counter. It holds no lock; one goroutine at a time uses it.
//
// The words may lie in memory that outlives the process, which may be killed
// between any two instructions. Therefore the highest counter moves first, then
// the words it moved over are cleared, then the bit is set, and only then the
// packet goes on. Wherever that is cut, bits of long ago may stand where newer
// counters look: they refuse packets, and never let one in twice. In the other
// order, a kill after the clearing would forget counters still inside.
type Window []uint64

// WindowWords is the size that makes a window of 8,128 counters, which is what
// wireguard-go has.
const WindowWords = 1 + 128

const wordBits = 64

// Reset empties the window.
func (w Window) Reset() { clear(w) }

// Mend makes a window fit to go on with after whoever used it was killed. Of the
// word that the highest counter lies in, bits above it can only be stale, and
// would refuse packets that are still to come; and the highest counter itself
// counts as taken, as its packet may have been on its way.
func (w Window) Mend() {
	last, bits := w[0], w[1:]
	word := &bits[last/wordBits&uint64(len(bits)-1)]
	if last > 0 || *word != 0 {
		bit := uint64(1) << (last % wordBits)
		atomic.StoreUint64(word, *word&(bit<<1-1)|bit)
	}
}

// Accept takes a counter that was authenticated. It reports false for one that
// was taken before or lies too far behind.
func (w Window) Accept(counter uint64) bool {
	bits := w[1:]
	mask := uint64(len(bits) - 1)
	last, word := w[0], counter/wordBits
	switch {
	case counter > last:
		atomic.StoreUint64(&w[0], counter)
		from := last/wordBits + 1
		if word-last/wordBits > mask {
			from = word - mask // all of them
		}
		for i := from; i <= word; i++ {
			atomic.StoreUint64(&bits[i&mask], 0)
		}
	case last-counter > mask*wordBits:
		return false
	}
	bit := uint64(1) << (counter % wordBits)
	old := bits[word&mask]
	if old&bit != 0 {
		return false
	}
	atomic.StoreUint64(&bits[word&mask], old|bit)
	return true
}

// Last is the highest counter accepted, zero before the first.
func (w Window) Last() uint64 { return atomic.LoadUint64(&w[0]) }
