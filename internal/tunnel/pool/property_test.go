package pool

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tunneld/internal/session"
)

// model is the pool's contract in the plainest words: a list of all addresses,
// looked through from the start for every question.
type model struct {
	entries []modelEntry
	cooloff time.Duration
}

type modelEntry struct {
	addr    netip.Addr
	used    bool
	holder  session.ID
	owner   string
	freedAt time.Time
}

func newModel(p netip.Prefix, cooloff time.Duration) *model {
	m := &model{cooloff: cooloff}
	m.resize(p)
	return m
}

// resize keeps what is known of the addresses that p has, too, and forgets the
// others.
func (m *model) resize(p netip.Prefix) {
	old := m.entries
	m.entries = nil
	for a := p.Addr().Next().Next(); p.Contains(a.Next()); a = a.Next() {
		e := modelEntry{addr: a}
		for _, o := range old {
			if o.addr == a {
				e = o
			}
		}
		m.entries = append(m.entries, e)
	}
}

// lease returns every address that the pool may give; none means exhausted.
func (m *model) lease(id session.ID, owner string, now time.Time) (allowed []netip.Addr) {
	var own, fresh, oldest *modelEntry
	for i := range m.entries {
		e := &m.entries[i]
		switch {
		case e.holder == id:
			return []netip.Addr{e.addr}
		case e.holder != session.ID{}:
		case e.used && e.owner == owner:
			if own == nil || e.freedAt.After(own.freedAt) {
				own = e
			}
		case !e.used:
			if fresh == nil {
				fresh = e
			}
		case oldest == nil || e.freedAt.Before(oldest.freedAt):
			oldest = e
		}
	}
	if own != nil {
		return m.all(func(e modelEntry) bool {
			return e.holder.IsZero() && e.used && e.owner == owner && e.freedAt.Equal(own.freedAt)
		})
	}
	if fresh != nil {
		return m.all(func(e modelEntry) bool { return !e.used })
	}
	if oldest == nil || now.Sub(oldest.freedAt) < m.cooloff {
		return nil
	}
	return m.all(func(e modelEntry) bool { return e.holder.IsZero() && e.freedAt.Equal(oldest.freedAt) })
}

func (m *model) all(is func(modelEntry) bool) (out []netip.Addr) {
	for _, e := range m.entries {
		if is(e) {
			out = append(out, e.addr)
		}
	}
	return out
}

func (m *model) entry(a netip.Addr) *modelEntry {
	for i := range m.entries {
		if m.entries[i].addr == a {
			return &m.entries[i]
		}
	}
	return nil
}

// machine runs pool and model side by side.
type machine struct {
	pool    *Pool
	model   *model
	prefix  []netip.Prefix
	now     time.Time
	stored  map[netip.Addr]Rest // what a manager would have on disk
	journal map[session.ID]Lease
	before  map[session.ID]modelEntry // for Cancel
}

var owners = rapid.SampledFrom([]string{"ann", "ben", "cem", "dan/u", "eve"})

func (m *machine) session(t *rapid.T) session.ID { return id(rapid.IntRange(1, 9).Draw(t, "session")) }

func (m *machine) Lease(t *rapid.T) {
	id, owner := m.session(t), owners.Draw(t, "owner")
	if l, live := m.journal[id]; live {
		owner = l.Owner
	}
	allowed := m.model.lease(id, owner, m.now)
	if l, live := m.journal[id]; live { // wherever that is
		allowed = l.Addresses[:1]
	}
	l, err := m.pool.Lease(id, owner, m.now)
	if len(allowed) == 0 {
		m.checkExhausted(t, err)
		return
	}
	if err != nil || !contains(allowed, l.Addresses[0]) {
		t.Fatalf("Lease(%v, %q) = %v, %v, want one of %v", id, owner, l.Addresses, err, allowed)
	}
	if _, live := m.journal[id]; live {
		return
	}
	e := m.model.entry(l.Addresses[0])
	m.before[id] = *e
	e.holder, e.owner, e.used = id, owner, true
	m.journal[id] = l
}

func contains(addrs []netip.Addr, a netip.Addr) bool {
	for _, b := range addrs {
		if a == b {
			return true
		}
	}
	return false
}

func (m *machine) checkExhausted(t *rapid.T, err error) {
	var full *ExhaustedError
	if !errors.As(err, &full) {
		t.Fatalf("Lease = %v, want ErrExhausted", err)
	}
	var next time.Time
	resting, leased := 0, 0
	for _, e := range m.model.entries {
		if !e.holder.IsZero() {
			leased++
			continue
		}
		resting++
		if at := e.freedAt.Add(m.model.cooloff); next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if full.Size != len(m.model.entries) || full.Resting != resting || full.Leased != leased || !full.FreeAt.Equal(next) {
		t.Fatalf("error = %+v, want %d resting, %d leased, next at %v", *full, resting, leased, next)
	}
}

func (m *machine) Free(t *rapid.T) {
	id := m.session(t)
	l, live := m.journal[id]
	r, ok := m.pool.Free(id, m.now)
	if ok != live {
		t.Fatalf("Free(%v) = %v, want %v", id, ok, live)
	}
	if !live {
		return
	}
	if e := m.model.entry(l.Addresses[0]); e != nil { // else the pool has lost that address
		e.holder, e.freedAt = session.ID{}, m.now
	}
	delete(m.journal, id)
	delete(m.before, id)
	m.stored[r.Addresses[0]] = r
}

func (m *machine) Cancel(t *rapid.T) {
	id := m.session(t)
	m.pool.Cancel(id)
	if was, made := m.before[id]; made {
		if e := m.model.entry(was.addr); e != nil {
			*e = was
		}
		delete(m.before, id)
		delete(m.journal, id)
	}
}

func (m *machine) Wait(t *rapid.T) {
	m.now = m.now.Add(time.Duration(rapid.IntRange(0, 12).Draw(t, "minutes")) * time.Minute)
}

// Restart makes a new pool of what a manager has on disk.
func (m *machine) Restart(t *rapid.T) {
	p, err := New(m.prefix, m.model.cooloff)
	if err != nil {
		t.Fatal(err)
	}
	var rests []Rest
	for _, r := range m.stored {
		rests = append(rests, r)
	}
	early := rapid.Bool().Draw(t, "rests first")
	if early {
		p.RestoreRests(rests, m.now)
	}
	for _, l := range m.journal {
		if err := p.Restore(l); err != nil {
			t.Fatalf("Restore(%v) = %v, want nil", l, err)
		}
	}
	if !early {
		p.RestoreRests(rests, m.now)
	}
	m.pool = p
	m.before = map[session.ID]modelEntry{}
	for i := range m.model.entries { // a resize had forgotten what is on disk
		e := &m.model.entries[i]
		if r, ok := m.stored[e.addr]; ok && e.holder.IsZero() {
			e.used, e.owner, e.freedAt = true, r.Owner, r.FreedAt
		}
	}
}

// Resize as a reload does: to what was, to more, to less, to something else. Live
// leases stay; those with an address that the pool has no more are told.
func (m *machine) Resize(t *rapid.T) {
	to := m.prefix
	if len(to) == 1 { // of two families each has an index of its own then: TestResize
		to = prefixes(rapid.SampledFrom([]string{"10.0.0.0/29", "10.0.0.0/30", "10.0.0.0/28", "10.0.0.8/29", "10.0.0.0/27"}).Draw(t, "prefix"))
	}
	outside, err := m.pool.Resize(to, m.now)
	if err != nil {
		t.Fatalf("Resize(%v) = %v", to, err)
	}
	m.prefix = to
	m.model.resize(to[0])
	for id, l := range m.journal { // one that was outside may be inside again
		if e := m.model.entry(l.Addresses[0]); e != nil {
			e.holder, e.owner, e.used = id, l.Owner, true
		}
	}
	m.checkOutside(t, outside)
}

func (m *machine) checkOutside(t *rapid.T, outside []Lease) {
	told := map[session.ID]bool{}
	for _, l := range outside {
		told[l.Session] = true
	}
	for id, l := range m.journal {
		if want := m.model.entry(l.Addresses[0]) == nil; told[id] != want {
			t.Fatalf("lease %v is told to be outside of %v: %v, want %v", l, m.prefix, told[id], want)
		}
	}
}

// Check compares everything that can be seen.
func (m *machine) Check(t *rapid.T) {
	seen := map[netip.Addr]session.ID{}
	for _, l := range m.pool.Leases() {
		for _, a := range l.Addresses {
			if other, double := seen[a]; double {
				t.Fatalf("%v is leased to %v and %v", a, other, l.Session)
			}
			seen[a] = l.Session
			if got, ok := m.pool.Of(a); got != l.Session || !ok {
				t.Fatalf("Of(%v) = %v, %v, want %v", a, got, ok, l.Session)
			}
		}
		if fmt.Sprint(l) != fmt.Sprint(m.journal[l.Session]) {
			t.Fatalf("lease = %v, want %v", l, m.journal[l.Session])
		}
	}
	m.checkOutside(t, m.pool.Outside())
	if len(seen) != len(m.journal)*len(m.prefix) {
		t.Fatalf("%d addresses are leased, want those of %d sessions", len(seen), len(m.journal))
	}
	free := map[netip.Addr]Rest{}
	for _, r := range m.pool.Snapshot() {
		free[r.Addresses[0]] = r
	}
	for _, e := range m.model.entries {
		r, ok := free[e.addr]
		if want := e.used && e.holder.IsZero(); ok != want {
			t.Fatalf("%v is in Snapshot: %v, want %v", e.addr, ok, want)
		} else if ok && (r.Owner != e.owner || !r.FreedAt.Equal(e.freedAt)) {
			t.Fatalf("Snapshot has %v, want owner %q, freed at %v", r, e.owner, e.freedAt)
		}
	}
}

func TestAgainstModel(t *testing.T) {
	for _, texts := range [][]string{{"10.0.0.0/29"}, {"10.0.0.0/29", "fd77::/64"}} {
		t.Run(fmt.Sprint(texts), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				prefix := prefixes(texts...)
				p, err := New(prefix, 10*time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				m := &machine{
					pool: p, model: newModel(prefix[0], 10*time.Minute), prefix: prefix, now: t0,
					stored: map[netip.Addr]Rest{}, journal: map[session.ID]Lease{}, before: map[session.ID]modelEntry{},
				}
				t.Repeat(rapid.StateMachineActions(m))
			})
		})
	}
}
