// Package pool gives out the addresses of one network. It is pure: no clock, no
// disk, no goroutine; what it returns is journalled by its caller, who hands it
// back at the next start.
//
// A lease is one number, the index: the address of each family is the prefix
// plus that number. So 10.77.0.9 and fd77::9 belong to the same session, which
// an operator can see, and the smaller family bounds the pool. Index 0 is the
// network's address (IPv6: the subnet-router anycast address, RFC 4291, section
// 2.6.1), 1 the gateway's, and the last one of IPv4 the broadcast address; none
// of these is leased. Memory goes with the addresses in use, not with the size.
package pool

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"tunneld/internal/session"
)

// DefaultCooloff is how long a freed address rests before somebody else gets it.
const DefaultCooloff = 15 * time.Minute

// Errors that callers branch on.
var (
	ErrExhausted = errors.New("pool exhausted")
	ErrPrefix    = errors.New("pool: unusable prefixes")
	ErrTaken     = errors.New("pool: address is leased to another session")
)

// An ExhaustedError is why there is no address now. It is an ErrExhausted.
type ExhaustedError struct {
	Prefixes []netip.Prefix
	Size     int       // addresses of each family that can be leased
	Leased   int       // of them, held by sessions
	Resting  int       // of them, freed and not yet over their cooloff
	FreeAt   time.Time // when the next rest is over; zero if none rests
}

// Error says when it will be better, or that the pool is too small.
func (e *ExhaustedError) Error() string {
	var names []string
	for _, p := range e.Prefixes {
		names = append(names, p.String())
	}
	text := fmt.Sprintf("%v: %s has room for %d, %d leased, %d resting", ErrExhausted, strings.Join(names, ", "), e.Size, e.Leased, e.Resting)
	if e.FreeAt.IsZero() {
		return text + ": end a session or enlarge the network's pools"
	}
	return text + ": the next is free at " + e.FreeAt.UTC().Format(time.RFC3339) + "; try again then, or enlarge the network's pools"
}

// Is makes errors.Is(err, ErrExhausted) true.
func (e *ExhaustedError) Is(target error) bool { return target == ErrExhausted }

// Lease is what a session holds: one address of each family, IPv4 first.
type Lease struct {
	Session   session.ID   `json:"session"`
	Owner     string       `json:"owner"` // node or node/user, to whom the address comes back
	Addresses []netip.Addr `json:"addresses"`
}

// Rest is a freed address and who had it. Its first address is a good key to
// store it under: a later Rest of the same address takes its place, and one
// that is stale because the address was leased again does no harm.
type Rest struct {
	Owner     string       `json:"owner"`
	Addresses []netip.Addr `json:"addresses"`
	FreedAt   time.Time    `json:"freed_at"`
}

// Pool is the addresses of one network. Its methods may be called from any
// goroutine. Times are the caller's; they should come from one clock.
type Pool struct {
	mu       sync.Mutex // guards everything below
	prefixes []netip.Prefix
	cooloff  time.Duration
	last     uint32 // highest index that is leased

	leases   map[session.ID]*lease
	byAddr   map[netip.Addr]session.ID
	slots    map[uint32]*slot // every index that is or was used
	free     restHeap         // those that nobody holds
	owners   map[string][]*slot
	next     uint32   // no index from here on is fresh unless it has no slot
	returned []uint32 // fresh again, below next
}

// first is the lowest index that is leased.
const first = 2

type lease struct {
	Lease
	slots    []*slot // of the addresses inside the prefixes
	restored bool    // by Restore: it took effect in an earlier life
	was      *Rest   // how the slot was before, for Cancel; nil: fresh
}

// A slot is an index that was used.
type slot struct {
	index   uint32
	holders int    // leases that have an address of this index
	owner   string // who comes back to it; empty: nobody
	freedAt time.Time
	pos     int // in the heap; -1 when held
}

// New makes a pool of at most one prefix of each family, all of it free.
// ErrPrefix if they cannot be used.
func New(prefixes []netip.Prefix, cooloff time.Duration) (*Pool, error) {
	prefixes = slices.SortedFunc(slices.Values(prefixes), func(a, b netip.Prefix) int {
		return cmp.Compare(a.Addr().BitLen(), b.Addr().BitLen()) // IPv4 first
	})
	last := uint32(1<<31 - 1)
	for i, p := range prefixes {
		if err := Check(p); err != nil {
			return nil, err
		}
		if i > 0 && prefixes[i-1].Addr().BitLen() == p.Addr().BitLen() {
			return nil, fmt.Errorf("%w: %v and %v are of one family: a network has at most one of each", ErrPrefix, prefixes[i-1], p)
		}
		last = min(last, lastIndex(p))
	}
	if len(prefixes) == 0 {
		return nil, fmt.Errorf("%w: none given", ErrPrefix)
	}
	return &Pool{
		prefixes: prefixes,
		cooloff:  cooloff,
		last:     last,
		leases:   map[session.ID]*lease{},
		byAddr:   map[netip.Addr]session.ID{},
		slots:    map[uint32]*slot{},
		owners:   map[string][]*slot{},
		next:     first,
	}, nil
}

// Check says why a prefix cannot be a pool: an ErrPrefix, or nil.
func Check(p netip.Prefix) error {
	switch {
	case !p.IsValid() || p.Addr().Is4In6():
		return fmt.Errorf("%w: %v is neither an IPv4 nor an IPv6 prefix", ErrPrefix, p)
	case p != p.Masked():
		return fmt.Errorf("%w: %v has host bits set: use %v", ErrPrefix, p, p.Masked())
	case lastIndex(p) < first:
		return fmt.Errorf("%w: %v has no address left beside the gateway's: use a /%d or shorter", ErrPrefix, p, p.Addr().BitLen()-2)
	}
	return nil
}

// lastIndex is the highest index of p that can be leased, at most 2^31-1.
func lastIndex(p netip.Prefix) uint32 {
	bits := p.Addr().BitLen() - p.Bits()
	switch {
	case bits > 31:
		return 1<<31 - 1
	case p.Addr().Is4():
		return uint32(1)<<bits - min(2, uint32(1)<<bits) // not the broadcast address
	}
	return 1<<bits - 1
}

// at returns the address of p with that index.
func at(p netip.Prefix, index uint32) netip.Addr {
	b := p.Addr().As16()
	for i := 15; index > 0; i-- {
		sum := uint32(b[i]) + index&0xff
		b[i] = byte(sum)
		index = index>>8 + sum>>8
	}
	if p.Addr().Is4() {
		return netip.AddrFrom16(b).Unmap()
	}
	return netip.AddrFrom16(b)
}

// Gateway returns the gateway's address of each family, IPv4 first, with the
// length of its prefix.
func (p *Pool) Gateway() []netip.Prefix {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []netip.Prefix
	for _, prefix := range p.prefixes {
		out = append(out, netip.PrefixFrom(at(prefix, 1), prefix.Bits()))
	}
	return out
}

// Size is how many sessions the pool has addresses for.
func (p *Pool) Size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int(p.last - first + 1)
}

// Lease gives a session its addresses: those that owner had last, at once;
// else fresh ones; else those that were freed first, if their rest is over;
// else an *ExhaustedError. An empty owner has no past. A session that has a
// lease gets the same again, and ErrTaken if it names another owner.
func (p *Pool) Lease(id session.ID, owner string, now time.Time) (Lease, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.leases[id]; l != nil {
		if l.Owner != owner {
			return Lease{}, fmt.Errorf("%w: session %v holds %v for %q, not for %q", ErrTaken, id, l.Addresses, l.Owner, owner)
		}
		return l.copy(), nil
	}
	s, err := p.pick(owner, now)
	if err != nil {
		return Lease{}, err
	}
	l := &lease{Lease: Lease{Session: id, Owner: owner, Addresses: p.addresses(s.index)}, slots: []*slot{s}}
	if s.pos >= 0 {
		l.was = &Rest{Owner: s.owner, FreedAt: s.freedAt}
	}
	p.add(l)
	return l.copy(), nil
}

// Claim gives a session of before the very addresses it had, as Lease would give
// it some: ErrTaken if another session holds one, or they rest for another
// owner, or the pool does not have them any more.
func (p *Pool) Claim(l Lease, now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(l.Addresses) == 0 || p.leases[l.Session] != nil {
		return fmt.Errorf("%w: session %v has a lease, or claims none", ErrTaken, l.Session)
	}
	index, ok := p.index(l.Addresses[0])
	if !ok || !slices.Equal(p.addresses(index), l.Addresses) {
		return fmt.Errorf("%w: %v are not the pool's", ErrTaken, l.Addresses)
	}
	for _, a := range l.Addresses {
		if other, taken := p.byAddr[a]; taken {
			return fmt.Errorf("%w: %v is wanted by session %v and held by %v", ErrTaken, a, l.Session, other)
		}
	}
	s := p.slots[index]
	claimed := &lease{Lease: Lease{Session: l.Session, Owner: l.Owner, Addresses: slices.Clone(l.Addresses)}}
	switch {
	case s == nil:
		s = &slot{index: index, pos: -1}
		p.slots[index] = s
	case s.pos >= 0 && s.owner != l.Owner && !p.rested(s, now):
		return fmt.Errorf("%w: %v rests and belongs to %q", ErrTaken, l.Addresses, s.owner)
	case s.pos >= 0:
		claimed.was = &Rest{Owner: s.owner, FreedAt: s.freedAt}
	}
	claimed.slots = []*slot{s}
	p.add(claimed)
	return nil
}

// pick chooses the slot of a new lease.
func (p *Pool) pick(owner string, now time.Time) (*slot, error) {
	if had := p.owners[owner]; len(had) > 0 && owner != "" {
		return slices.MaxFunc(had, func(a, b *slot) int { return a.freedAt.Compare(b.freedAt) }), nil
	}
	if index, ok := p.fresh(); ok {
		s := &slot{index: index, pos: -1}
		p.slots[index] = s
		return s, nil
	}
	if len(p.free) > 0 && p.rested(p.free[0], now) {
		return p.free[0], nil
	}
	return nil, p.exhausted(now)
}

func (p *Pool) rested(s *slot, now time.Time) bool { return !s.freedAt.Add(p.cooloff).After(now) }

// fresh returns an index that was never used.
func (p *Pool) fresh() (uint32, bool) {
	for n := len(p.returned); n > 0; n = len(p.returned) {
		index := p.returned[n-1]
		p.returned = p.returned[:n-1]
		if p.slots[index] == nil { // not restored meanwhile
			return index, true
		}
	}
	for ; p.next <= p.last; p.next++ {
		if p.slots[p.next] == nil {
			p.next++
			return p.next - 1, true
		}
	}
	return 0, false
}

func (p *Pool) exhausted(now time.Time) error {
	e := &ExhaustedError{Prefixes: slices.Clone(p.prefixes), Size: int(p.last - first + 1)}
	e.Resting = len(p.free) // all of them: none has rested
	e.Leased = e.Size - e.Resting
	if len(p.free) > 0 {
		e.FreeAt = p.free[0].freedAt.Add(p.cooloff)
	}
	return e
}

func (p *Pool) addresses(index uint32) []netip.Addr {
	var out []netip.Addr
	for _, prefix := range p.prefixes {
		out = append(out, at(prefix, index))
	}
	return out
}

func (l *lease) copy() Lease {
	c := l.Lease
	c.Addresses = slices.Clone(c.Addresses)
	return c
}

// add makes a lease hold its slots and addresses.
func (p *Pool) add(l *lease) {
	p.leases[l.Session] = l
	for _, a := range l.Addresses {
		p.byAddr[a] = l.Session
	}
	for _, s := range l.slots {
		if s.pos >= 0 {
			p.remove(s)
		}
		s.holders++
	}
}

// remove takes a slot from those that are free and from what its owner comes
// back to.
func (p *Pool) remove(s *slot) {
	heap.Remove(&p.free, s.pos)
	had := slices.DeleteFunc(p.owners[s.owner], func(o *slot) bool { return o == s })
	if len(had) == 0 {
		delete(p.owners, s.owner)
	} else {
		p.owners[s.owner] = had
	}
	s.owner = ""
}

// rest makes a slot that nobody holds any more available again.
func (p *Pool) rest(s *slot, owner string, freedAt time.Time) {
	s.owner, s.freedAt = owner, freedAt
	heap.Push(&p.free, s)
	if owner != "" {
		p.owners[owner] = append(p.owners[owner], s)
	}
}

// Free ends the lease of a session. Its address rests from now on; the Rest is
// to be stored. False if the session has no lease.
func (p *Pool) Free(id session.ID, now time.Time) (Rest, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.leases[id]
	if l == nil {
		return Rest{}, false
	}
	p.drop(l)
	for _, s := range l.slots {
		if s.holders == 0 {
			p.rest(s, l.heir(), now)
		}
	}
	return Rest{Owner: l.Owner, Addresses: slices.Clone(l.Addresses), FreedAt: now}, true
}

// heir is who may come back to the slots of l: its owner, unless other
// prefixes than it was made under left its addresses under two indices, which no
// lease can have again.
func (l *lease) heir() string {
	if len(l.slots) == 1 {
		return l.Owner
	}
	return ""
}

// drop takes the lease off its slots and addresses.
func (p *Pool) drop(l *lease) {
	delete(p.leases, l.Session)
	for _, a := range l.Addresses {
		delete(p.byAddr, a)
	}
	for _, s := range l.slots {
		s.holders--
	}
}

// Cancel takes back a lease that never took effect, because it could not be
// journalled: the address is as it was before, with no new rest. A lease that
// was restored is left as it is.
func (p *Pool) Cancel(id session.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.leases[id]
	if l == nil || l.restored {
		return
	}
	p.drop(l)
	for _, s := range l.slots {
		switch {
		case s.holders > 0:
		case l.was != nil:
			p.rest(s, l.was.Owner, l.was.FreedAt)
		default:
			delete(p.slots, s.index)
			p.returned = append(p.returned, s.index)
		}
	}
}

// Of returns the session that holds an address.
func (p *Pool) Of(a netip.Addr) (session.ID, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, ok := p.byAddr[a]
	return id, ok
}

// restHeap orders free slots: freed first, leased first.
type restHeap []*slot

func (h restHeap) Len() int { return len(h) }
func (h restHeap) Less(i, j int) bool {
	if c := h[i].freedAt.Compare(h[j].freedAt); c != 0 {
		return c < 0
	}
	return h[i].index < h[j].index
}
func (h restHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].pos, h[j].pos = i, j
}

// Push is for package heap.
func (h *restHeap) Push(x any) {
	s := x.(*slot)
	s.pos = len(*h)
	*h = append(*h, s)
}

// Pop is for package heap.
func (h *restHeap) Pop() any {
	old := *h
	s := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	s.pos = -1
	return s
}
