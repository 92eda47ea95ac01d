package pool

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"tunneld/internal/session"
)

// Restore brings a journalled lease back at start, before any Lease. One whose
// addresses the pool no longer has, because the file changed meanwhile, is kept
// all the same; Outside lists it. ErrTaken if another session has one of the
// addresses; restoring the same lease twice is no error.
func (p *Pool) Restore(l Lease) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if had := p.leases[l.Session]; had != nil {
		if had.Owner == l.Owner && slices.Equal(had.Addresses, l.Addresses) {
			return nil
		}
		return fmt.Errorf("%w: session %v holds %v for %q, not %v for %q", ErrTaken, l.Session, had.Addresses, had.Owner, l.Addresses, l.Owner)
	}
	for _, a := range l.Addresses {
		if other, taken := p.byAddr[a]; taken {
			return fmt.Errorf("%w: %v is wanted by session %v and held by %v", ErrTaken, a, l.Session, other)
		}
	}
	p.add(&lease{
		Lease:    Lease{Session: l.Session, Owner: l.Owner, Addresses: slices.Clone(l.Addresses)},
		slots:    p.slotsOf(l.Addresses),
		restored: true,
	})
	return nil
}

// slotsOf returns the slots of those addresses that the pool can lease, making
// the ones that are not there.
func (p *Pool) slotsOf(addrs []netip.Addr) []*slot {
	var out []*slot
	for _, a := range addrs {
		index, ok := p.index(a)
		if !ok {
			continue
		}
		s := p.slots[index]
		if s == nil {
			s = &slot{index: index, pos: -1}
			p.slots[index] = s
		}
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// index is the inverse of at, for addresses that can be leased.
func (p *Pool) index(a netip.Addr) (uint32, bool) {
	for _, prefix := range p.prefixes {
		if !prefix.Contains(a) {
			continue
		}
		base, b := prefix.Addr().As16(), a.As16()
		var index uint64
		for i := range b {
			if index >= 1<<31 {
				return 0, false
			}
			index = index<<8 + uint64(b[i]-base[i]) // base has zeros there: no borrow
		}
		return uint32(index), first <= index && index <= uint64(p.last)
	}
	return 0, false
}

// Snapshot returns every freed address with its past owner, freed first first,
// resting or not: all that a later RestoreRests needs beside the leases.
func (p *Pool) Snapshot() []Rest {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Rest, 0, len(p.free))
	for _, s := range p.free {
		out = append(out, Rest{Owner: s.owner, Addresses: p.addresses(s.index), FreedAt: s.freedAt})
	}
	slices.SortFunc(out, func(a, b Rest) int {
		if c := a.FreedAt.Compare(b.FreedAt); c != 0 {
			return c
		}
		return a.Addresses[0].Compare(b.Addresses[0])
	})
	return out
}

// RestoreRests brings back what Free returned, before any Lease; whether leases
// are restored before or after makes no difference. Addresses that are leased,
// or no longer the pool's, are passed over. A time
// that lies after now, as a clock that was set back leaves it, counts as now.
func (p *Pool) RestoreRests(rests []Rest, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sorted := slices.Clone(rests)
	slices.SortStableFunc(sorted, func(a, b Rest) int { return a.FreedAt.Compare(b.FreedAt) })
	for _, r := range sorted {
		slots := p.slotsOf(r.Addresses)
		owner := r.Owner
		if len(slots) > 1 {
			owner = ""
		}
		for _, s := range slots {
			if s.holders > 0 || s.pos >= 0 && s.freedAt.After(r.FreedAt) {
				continue
			}
			if s.pos >= 0 {
				p.remove(s)
			}
			freedAt := r.FreedAt
			if freedAt.After(now) {
				freedAt = now
			}
			p.rest(s, owner, freedAt)
		}
	}
}

// Outside returns the leases with an address that the pool does not lease, by
// session.
func (p *Pool) Outside() []Lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Lease
	for _, id := range slices.SortedFunc(maps.Keys(p.leases), compareID) {
		l := p.leases[id]
		if slices.ContainsFunc(l.Addresses, func(a netip.Addr) bool { _, ok := p.index(a); return !ok }) {
			out = append(out, l.copy())
		}
	}
	return out
}

// Leases returns all leases, by session.
func (p *Pool) Leases() []Lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Lease
	for _, id := range slices.SortedFunc(maps.Keys(p.leases), compareID) {
		out = append(out, p.leases[id].copy())
	}
	return out
}

func compareID(a, b session.ID) int { return slices.Compare(a[:], b[:]) }
