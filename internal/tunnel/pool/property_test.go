package pool

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tunneld/internal/session"
)

// machine runs pool and model side by side, with a journal and a disk as a
// manager has them.
type machine struct {
	pool     *Pool
	model    *model
	prefixes []netip.Prefix
	now      time.Time
	stepped  bool                // the clock was set back
	disk     map[netip.Addr]Rest // each of its addresses leads to what was freed
	gone     []Lease             // that a ticket may name
	last     map[netip.Addr]Rest // of every address that was ever leased: the last that gave it back
}

const testCooloff = 10 * time.Minute

var owners = rapid.SampledFrom([]string{"ann", "ben", "cem", "dan/u", ""})

// definitions are pools as files may have them: one family and two, of sizes
// that differ, with each in turn the smaller, moved, overlapping, apart; the last
// parts what the one with fd77::8/125 pairs.
var definitions = rapid.SampledFrom([][]netip.Prefix{
	prefixes("10.0.0.0/29"), prefixes("10.0.0.0/30"), prefixes("10.0.0.0/28"), prefixes("10.0.0.8/29"), prefixes("10.9.0.0/29"),
	prefixes("fd77::/125"), prefixes("fd77::/126"),
	prefixes("10.0.0.0/29", "fd77::/64"), prefixes("10.0.0.0/29", "fd77::/126"), prefixes("10.0.0.0/30", "fd77::/125"),
	prefixes("10.0.0.0/28", "fd77::/125"), prefixes("10.0.0.8/29", "fd77::/125"), prefixes("10.0.0.0/28", "fd77::8/125"),
	prefixes("10.0.0.0/29", "fd78::/64"), prefixes("10.9.0.0/28", "fd77::/124"), prefixes("10.0.0.0/28", "fd77::/124"),
})

func (m *machine) session(t *rapid.T) session.ID { return id(rapid.IntRange(1, 9).Draw(t, "session")) }

func (m *machine) Lease(t *rapid.T) {
	id, owner := m.session(t), owners.Draw(t, "owner")
	had, lives := m.model.leases[id]
	if lives && rapid.Bool().Draw(t, "the same owner") {
		owner = had.Owner
	}
	may := m.model.mayLease(owner, m.now)
	l, err := m.pool.Lease(id, owner, m.now)
	switch {
	case lives && owner != had.Owner:
		if !errors.Is(err, ErrTaken) {
			t.Fatalf("Lease(%v) for %q = %v, %v, and it is %q's", id, owner, l, err, had.Owner)
		}
	case lives:
		if err != nil || fmt.Sprint(l) != fmt.Sprint(had) {
			t.Fatalf("Lease(%v) = %v, %v, want %v again", id, l, err, had)
		}
	case len(may) == 0:
		m.checkExhausted(t, err)
	case err != nil || !slices.ContainsFunc(may, func(i int) bool { return slices.Equal(m.model.rows[i], l.Addresses) }):
		t.Fatalf("Lease(%v, %q) = %v, %v, want one of rows %v of %v", id, owner, l.Addresses, err, may, m.model.rows)
	default:
		m.taken(t, l)
	}
}

// taken notes a new lease. Whatever prefixes came and went meanwhile, no address
// of it is one that rests for somebody else.
func (m *machine) taken(t *rapid.T, l Lease) {
	for _, a := range l.Addresses {
		if r, ok := m.last[a]; ok && !m.stepped && r.Owner != l.Owner && m.now.Sub(r.FreedAt) < testCooloff {
			t.Fatalf("%v is given to %q, %v after %q had it", a, l.Owner, m.now.Sub(r.FreedAt), r.Owner)
		}
	}
	m.model.take(l)
}

func (m *machine) checkExhausted(t *rapid.T, err error) {
	var full *ExhaustedError
	if !errors.As(err, &full) {
		t.Fatalf("Lease = %v, want ErrExhausted", err)
	}
	size, leased, resting, freeAt := m.model.exhausted()
	if full.Size != size || full.Leased != leased || full.Resting != resting || !full.FreeAt.Equal(freeAt) {
		t.Fatalf("error = %+v, want size %d, %d leased, %d resting, next at %v", *full, size, leased, resting, freeAt)
	}
}

// Claim is a ticket: of a session that was, mostly.
func (m *machine) Claim(t *rapid.T) {
	if len(m.gone) == 0 {
		return
	}
	l := rapid.SampledFrom(m.gone).Draw(t, "ticket")
	if rapid.IntRange(0, 3).Draw(t, "forged") == 0 {
		l.Owner = owners.Draw(t, "owner")
	}
	may := m.model.mayClaim(l, m.now)
	if err := m.pool.Claim(l, m.now); (err == nil) != may || err != nil && !errors.Is(err, ErrTaken) {
		t.Fatalf("Claim(%v) = %v, want it taken: %v", l, err, may)
	}
	if may {
		m.taken(t, l)
	}
}

func (m *machine) Free(t *rapid.T) {
	id := m.session(t)
	l, lives := m.model.leases[id]
	m.now = m.now.Add(1) // no two at one instant
	r, ok := m.pool.Free(id, m.now)
	if ok != lives {
		t.Fatalf("Free(%v) = %v, want %v", id, ok, lives)
	}
	if !lives {
		return
	}
	if want := m.model.free(id, m.now); fmt.Sprint(r) != fmt.Sprint(want) {
		t.Fatalf("Free(%v) = %v, want %v", id, r, want)
	}
	for _, a := range r.Addresses {
		m.disk[a], m.last[a] = r, r
	}
	m.gone = append(m.gone, l)
}

func (m *machine) Cancel(t *rapid.T) {
	id := m.session(t)
	m.pool.Cancel(id)
	if undo := m.model.undo[id]; undo != nil {
		undo()
		delete(m.model.undo, id)
	}
}

func (m *machine) Wait(t *rapid.T) {
	m.now = m.now.Add(time.Duration(rapid.IntRange(0, 12).Draw(t, "minutes")) * time.Minute)
}

// SetBack is an administrator's, or a clock's that was wrong.
func (m *machine) SetBack(t *rapid.T) {
	if rapid.IntRange(0, 4).Draw(t, "seldom") == 0 {
		m.now, m.stepped = m.now.Add(-time.Duration(rapid.IntRange(1, 30).Draw(t, "minutes"))*time.Minute), true
	}
}

// Restart makes a new pool of what a manager has on disk, as it was defined or as
// the file says now: more, less, elsewhere. Of the leases that may yet be
// cancelled some are not on disk.
func (m *machine) Restart(t *rapid.T) {
	if rapid.Bool().Draw(t, "redefined") {
		m.prefixes = definitions.Draw(t, "prefixes")
	}
	p, err := New(m.prefixes, testCooloff)
	if err != nil {
		t.Fatal(err)
	}
	leases := maps.Clone(m.model.leases)
	for _, id := range slices.SortedFunc(maps.Keys(m.model.undo), compareID) {
		if rapid.Bool().Draw(t, "killed before the journal") {
			delete(leases, id)
		}
	}
	rests := slices.Collect(maps.Values(m.disk))
	early := rapid.Bool().Draw(t, "rests first")
	if early {
		p.RestoreRests(rests, m.now)
	}
	for _, l := range leases {
		if err := p.Restore(l); err != nil {
			t.Fatalf("Restore(%v) = %v, want nil", l, err)
		}
	}
	if !early {
		p.RestoreRests(rests, m.now)
	}
	m.pool, m.model = p, newModel(m.prefixes, testCooloff, leases, rests, m.now)
}

// Check compares everything that can be seen.
func (m *machine) Check(t *rapid.T) {
	seen := map[netip.Addr]session.ID{}
	leases := m.pool.Leases()
	for _, l := range leases {
		for _, a := range l.Addresses {
			if other, double := seen[a]; double {
				t.Fatalf("%v is leased to %v and %v", a, other, l.Session)
			}
			seen[a] = l.Session
			if got, ok := m.pool.Of(a); got != l.Session || !ok {
				t.Fatalf("Of(%v) = %v, %v, want %v", a, got, ok, l.Session)
			}
		}
		if want := m.model.leases[l.Session]; fmt.Sprint(l) != fmt.Sprint(want) {
			t.Fatalf("lease = %v, want %v", l, want)
		}
	}
	if len(leases) != len(m.model.leases) {
		t.Fatalf("%d leases, want %d", len(leases), len(m.model.leases))
	}
	outside := map[session.ID]bool{}
	for _, l := range m.pool.Outside() {
		outside[l.Session] = true
	}
	for id, l := range m.model.leases {
		if want := m.model.outside(l); outside[id] != want {
			t.Fatalf("lease %v is told to be outside of %v: %v, want %v", l, m.prefixes, outside[id], want)
		}
	}
	m.checkRests(t)
}

func (m *machine) checkRests(t *rapid.T) {
	free := m.pool.Snapshot()
	if len(free) != len(m.model.past) || m.pool.Size() != len(m.model.rows) {
		t.Fatalf("%v are free of %d, want %v of %d", free, m.pool.Size(), m.model.past, len(m.model.rows))
	}
	for _, want := range m.model.past {
		if !slices.ContainsFunc(free, func(r Rest) bool {
			return r.Owner == want.Owner && slices.Equal(r.Addresses, want.Addresses) && r.FreedAt.Equal(want.FreedAt)
		}) {
			t.Fatalf("Snapshot = %v, want %v in it", free, want)
		}
	}
}

func TestAgainstModel(t *testing.T) {
	for range 20 { // of 100 each: some definitions seldom meet
		rapid.Check(t, besideModel)
	}
}

func besideModel(t *rapid.T) {
	at := definitions.Draw(t, "prefixes")
	p, err := New(at, testCooloff)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{pool: p, model: newModel(at, testCooloff, map[session.ID]Lease{}, nil, t0), prefixes: at, now: t0, disk: map[netip.Addr]Rest{}, last: map[netip.Addr]Rest{}}
	t.Repeat(rapid.StateMachineActions(m))
}
