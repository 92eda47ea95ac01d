package native

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"crypto/rand"

	"tunneld/internal/tunnel/engine/memfile"
	"tunneld/internal/tunnel/engine/noise"
)

// errFull says that there are no indices left.
var errFull = errors.New("native: all receiver indices are in use")

const (
	slotBits  = 22 // four million keypairs
	maxSlots  = 1 << slotBits
	chunkBits = 10
	chunkSize = 1 << chunkBits
)

// An entry is what a receiver index stands for: a handshake of ours in flight
// (no pair yet) or a keypair.
type entry struct {
	index uint32
	peer  *peer
	pair  atomic.Pointer[noise.Keypair]
	slot  *memfile.Slot // where pair lies, if that outlives the process; guarded by peer.mu
	top   atomic.Uint64 // the highest counter that opened, as far as was noted
	fresh atomic.Bool   // nothing was received with pair, and the peer's first packet makes it the current one
}

// A table finds entries by receiver index, for all devices. Readers take no
// lock: an index names a slot of an array, and the array grows by chunks that
// never move. The rest of the index is a random generation, so that a stranger
// to a slot's last index does not know its next one, and all of it is mixed so
// that an observer does not see how many sessions there are.
type table struct {
	chunks   atomic.Pointer[[]*[chunkSize]atomic.Pointer[entry]]
	multiply uint32 // odd
	inverse  uint32 // of multiply, modulo 2^32
	add      uint32
	limit    int // of chunks

	mu   sync.Mutex // guards changes of chunks and everything below
	free []uint32   // slots; used from the front, so that each rests as long as it can
	next int        // first of free
}

// newMixing is how the indices of a new table are mixed.
func newMixing() [2]uint32 {
	var b [8]byte
	rand.Read(b[:])
	return [2]uint32{binary.LittleEndian.Uint32(b[:]) | 1, binary.LittleEndian.Uint32(b[4:])}
}

// newTable makes a table with the mixing given. taken are indices that a table
// with the same mixing gave out: nobody gets their slots until adopt or release.
func newTable(mixing [2]uint32, taken []uint32) *table {
	t := &table{multiply: mixing[0], add: mixing[1], limit: maxSlots / chunkSize}
	t.inverse = t.multiply
	for range 5 { // Newton's iteration doubles the bits that are right, of which three are to begin with
		t.inverse *= 2 - t.multiply*t.inverse
	}
	t.chunks.Store(new([]*[chunkSize]atomic.Pointer[entry]))
	t.reserve(taken)
	return t
}

func (t *table) slot(index uint32) uint32 { return (index - t.add) * t.inverse & (maxSlots - 1) }

// reserve takes the slots of indices out of those that are free.
func (t *table) reserve(indices []uint32) {
	taken := make(map[uint32]bool)
	for _, index := range indices {
		slot := t.slot(index)
		taken[slot] = true
		for int(slot>>chunkBits) >= len(*t.chunks.Load()) {
			t.growLocked() // nobody else knows t yet
		}
	}
	t.free = slices.DeleteFunc(t.free, func(slot uint32) bool { return taken[slot] })
}

// adopt makes an entry of a reserved index.
func (t *table) adopt(index uint32, p *peer) *entry {
	e, slot := &entry{index: index, peer: p}, t.slot(index)
	(*t.chunks.Load())[slot>>chunkBits][slot%chunkSize].Store(e)
	return e
}

// release frees the slot of a reserved index.
func (t *table) release(index uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.free = append(t.free, t.slot(index))
}

// find is the entry of an index, or nil. Any thread.
func (t *table) find(index uint32) *entry {
	slot := t.slot(index)
	chunks := *t.chunks.Load()
	if int(slot>>chunkBits) >= len(chunks) {
		return nil
	}
	e := chunks[slot>>chunkBits][slot%chunkSize].Load()
	if e == nil || e.index != index {
		return nil
	}
	return e
}

// take makes an entry with an index of its own.
func (t *table) take(p *peer) (*entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next == len(t.free) && !t.growLocked() {
		return nil, errFull
	}
	slot := t.free[t.next]
	t.next++
	if t.next > len(t.free)/2 && t.next >= chunkSize {
		t.free, t.next = append(t.free[:0], t.free[t.next:]...), 0
	}
	e := &entry{peer: p}
	for e.index == 0 { // which stands for none
		var generation [4]byte
		rand.Read(generation[:])
		e.index = (slot|binary.LittleEndian.Uint32(generation[:])<<slotBits)*t.multiply + t.add
	}
	(*t.chunks.Load())[slot>>chunkBits][slot%chunkSize].Store(e)
	return e, nil
}

// growLocked adds a chunk.
func (t *table) growLocked() bool {
	old := *t.chunks.Load()
	if len(old) == t.limit {
		return false
	}
	chunks := append(old[:len(old):len(old)], new([chunkSize]atomic.Pointer[entry]))
	t.chunks.Store(&chunks)
	var start [4]byte
	rand.Read(start[:]) // so that the next process does not begin with the same
	for i := range uint32(chunkSize) {
		t.free = append(t.free, uint32(len(old))<<chunkBits|(binary.LittleEndian.Uint32(start[:])+i)%chunkSize)
	}
	return true
}

// drop frees the index of e; a second time does nothing.
func (t *table) drop(e *entry) {
	if e == nil {
		return
	}
	slot := t.slot(e.index)
	t.mu.Lock()
	defer t.mu.Unlock()
	if (*t.chunks.Load())[slot>>chunkBits][slot%chunkSize].CompareAndSwap(e, nil) {
		t.free = append(t.free, slot)
	}
}
