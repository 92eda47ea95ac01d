package memfile

import (
	"encoding/binary"
	"hash/crc64"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine/noise"
)

// A Slot is one keypair in the file and the session it belongs to.
type Slot struct {
	noise.Slot
	about About
	check uint64 // of what does not change
	place place
	_     [32]byte
}

// About is whose a keypair is.
type About struct {
	Session session.ID
	Peer    [noise.KeySize]byte // public key
	Local   [noise.KeySize]byte // our own public key
	Stamp   noise.Stamp         // the last of the peer's that was accepted
}

// About is whose the keypair is.
func (s *Slot) About() *About { return &s.about }

// A Place is where the peer is.
type Place struct {
	Dst     netip.AddrPort // with a number as zone, if any
	Source  netip.Addr     // our address towards it; invalid: the routing table chooses
	Ifindex uint32         // and interface
	Proved  bool           // the peer has shown that it is there
}

// A place is a Place as octets. turn is odd while it is written: one that was
// cut off is not believed.
type place struct {
	turn        atomic.Uint32
	dst, source [16]byte
	zone        uint32
	ifindex     uint32
	port        uint16
	flags       uint8
}

const (
	placeDst4 = 1 << iota
	placeSource4
	placeHasSource
	placeProved
)

// SetPlace keeps where the peer is. One goroutine at a time.
func (s *Slot) SetPlace(p Place) {
	to := &s.place
	turn := to.turn.Load() | 1
	to.turn.Store(turn)
	to.dst, to.port, to.flags = p.Dst.Addr().As16(), p.Dst.Port(), 0
	zone, _ := strconv.ParseUint(p.Dst.Addr().Zone(), 10, 32) // none is none
	to.zone = uint32(zone)
	to.source, to.ifindex = [16]byte{}, p.Ifindex
	if p.Source.IsValid() {
		to.source = p.Source.As16()
		to.flags |= placeHasSource
	}
	for flag, set := range map[uint8]bool{placeDst4: p.Dst.Addr().Is4(), placeSource4: p.Source.Is4(), placeProved: p.Proved} {
		if set {
			to.flags |= flag
		}
	}
	to.turn.Store(turn + 1)
}

// Place is what SetPlace kept last; false if nothing, or only in part.
func (s *Slot) Place() (p Place, ok bool) {
	from := &s.place
	if turn := from.turn.Load(); turn == 0 || turn%2 == 1 {
		return p, false
	}
	dst := netip.AddrFrom16(from.dst)
	if from.flags&placeDst4 != 0 {
		dst = dst.Unmap()
	} else if from.zone != 0 {
		dst = dst.WithZone(strconv.FormatUint(uint64(from.zone), 10))
	}
	if from.flags&placeHasSource != 0 {
		p.Source = netip.AddrFrom16(from.source)
		if from.flags&placeSource4 != 0 {
			p.Source = p.Source.Unmap()
		}
	}
	p.Dst, p.Ifindex, p.Proved = netip.AddrPortFrom(dst, from.port), from.ifindex, from.flags&placeProved != 0
	return p, true
}

var crcTable = crc64.MakeTable(crc64.ECMA)

// sum is over what does not change as long as the keypair lives. It finds what
// was torn or overwritten, not what somebody made: whoever can write here has
// the keys.
func (s *Slot) sum() uint64 {
	k, a := &s.Keys, &s.about
	var b [28]byte
	binary.LittleEndian.PutUint32(b[0:], k.Local)
	binary.LittleEndian.PutUint32(b[4:], k.Remote)
	binary.LittleEndian.PutUint64(b[8:], uint64(k.Created))
	binary.LittleEndian.PutUint32(b[16:], k.Crossed)
	if k.Initiator {
		b[20] = 1
	}
	sum := uint64(0)
	for _, part := range [][]byte{b[:], k.Send[:], k.Receive[:], a.Session[:], a.Peer[:], a.Local[:], a.Stamp[:]} {
		sum = crc64.Update(sum, crcTable, part)
	}
	return sum
}

// Keypair makes a keypair of keys in a free slot. It returns nil if there is
// none.
func (f *File) Keypair(keys *noise.Keys, about About) (*noise.Keypair, *Slot) {
	at, ok := f.take()
	if !ok {
		return nil, nil
	}
	s := &f.slots[at]
	s.about, s.place.flags = about, 0
	s.place.turn.Store(0)
	s.Keys = *keys
	s.check = s.sum()
	return noise.NewKeypairAt(&s.Slot, keys, func() { f.give(at) }), s
}

// take finds a slot that holds nothing.
func (f *File) take() (uint32, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.free); n > 0 {
		at := f.free[n-1]
		f.free = f.free[:n-1]
		return at, true
	}
	at := f.head.high.Load()
	if at == capacity {
		return 0, false
	}
	f.head.high.Store(at + 1)
	return at, true
}

// give takes back a slot whose keypair was wiped.
func (f *File) give(at uint32) {
	f.slots[at].about = About{}
	f.slots[at].check = 0
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free = append(f.free, at)
}

// A Find is a keypair that outlived its process.
type Find struct {
	Pair *noise.Keypair
	Slot *Slot
}

// TakeFinds returns the keypairs in an adopted file that are young enough to be
// used, and how many slots were torn. Those and what is too old are wiped. It
// is for once, before Keypair.
func (f *File) TakeFinds(now noise.Instant) (finds []Find, torn int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	indices := make(map[uint32]bool)
	for i := range f.head.high.Load() {
		s := &f.slots[i]
		whole := s.ID.Load() != 0 && s.check == s.sum() && s.Keys.Local != 0 && !indices[s.Keys.Local]
		if age := now.Sub(s.Keys.Created); whole && age >= 0 && age < noise.RejectAfterTime {
			indices[s.Keys.Local] = true
			finds = append(finds, Find{noise.AdoptKeypair(&s.Slot, func() { f.give(i) }), s})
			continue
		}
		if s.ID.Load() != 0 && !whole {
			torn++
		}
		s.Wipe()
		s.about, s.check = About{}, 0
		f.free = append(f.free, i)
	}
	slices.Reverse(f.free) // the front first
	return finds, torn
}
