package pool

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"tunneld/internal/session"
)

// model is the pool's contract in the plainest words: all indices and all leases
// are looked through for every question.
type model struct {
	rows    [][]netip.Addr // the addresses of each index that can be leased
	cooloff time.Duration
	leases  map[session.ID]Lease
	past    map[int]Rest          // by place in rows: who had what nobody holds
	undo    map[session.ID]func() // leases that may yet be cancelled
}

// newModel begins with live leases and with what was freed before.
func newModel(prefixes []netip.Prefix, cooloff time.Duration, leases map[session.ID]Lease, rests []Rest, now time.Time) *model {
	m := &model{rows: rowsOf(prefixes), cooloff: cooloff, leases: maps.Clone(leases), past: map[int]Rest{}, undo: map[session.ID]func(){}}
	slices.SortFunc(rests, func(a, b Rest) int { return a.FreedAt.Compare(b.FreedAt) })
	for _, r := range rests { // of two that are about one index the later counts
		if r.FreedAt.After(now) {
			r.FreedAt = now
		}
		m.rest(r)
	}
	return m
}

// rowsOf pairs the n-th addresses of the families, from the one after the
// gateway's to where the smaller ends; IPv4 ends before its broadcast address.
func rowsOf(prefixes []netip.Prefix) (rows [][]netip.Addr) {
	prefixes = slices.Clone(prefixes)
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) }) // IPv4 first
	at := make([]netip.Addr, len(prefixes))
	for i, p := range prefixes {
		at[i] = p.Addr().Next().Next()
	}
	for {
		for i, p := range prefixes {
			if last := at[i]; !p.Contains(last) || last.Is4() && !p.Contains(last.Next()) {
				return rows
			}
		}
		rows = append(rows, slices.Clone(at))
		for i := range at {
			at[i] = at[i].Next()
		}
	}
}

func meet(a, b []netip.Addr) bool {
	return slices.ContainsFunc(a, func(x netip.Addr) bool { return slices.Contains(b, x) })
}

// rowsWith are the rows that have any of those addresses.
func (m *model) rowsWith(addresses []netip.Addr) (all []int) {
	for i, row := range m.rows {
		if meet(row, addresses) {
			all = append(all, i)
		}
	}
	return all
}

// held: a row is held if any lease has any address of it.
func (m *model) held(i int) bool {
	for _, l := range m.leases {
		if meet(l.Addresses, m.rows[i]) {
			return true
		}
	}
	return false
}

// rest puts freed addresses to rest. Nobody comes back to what is no one row.
func (m *model) rest(r Rest) {
	rows := m.rowsWith(r.Addresses)
	if len(rows) != 1 {
		r.Owner = ""
	}
	for _, i := range rows {
		if !m.held(i) {
			m.past[i] = Rest{r.Owner, m.rows[i], r.FreedAt}
		}
	}
}

func (m *model) rested(r Rest, now time.Time) bool { return now.Sub(r.FreedAt) >= m.cooloff }

// mayLease are the rows that the pool may choose from; none: it is exhausted.
func (m *model) mayLease(owner string, now time.Time) (rows []int) {
	var own, oldest *Rest
	for i := range m.rows {
		r, used := m.past[i]
		if !used && !m.held(i) {
			rows = append(rows, i)
		}
		if used && owner != "" && r.Owner == owner && (own == nil || r.FreedAt.After(own.FreedAt)) {
			own = &r
		}
		if used && (oldest == nil || r.FreedAt.Before(oldest.FreedAt)) {
			oldest = &r
		}
	}
	switch {
	case own != nil: // what the owner had last
		return m.freed(func(r Rest) bool { return r.Owner == owner && r.FreedAt.Equal(own.FreedAt) })
	case len(rows) > 0: // what nobody had
	case oldest != nil && m.rested(*oldest, now): // what was freed first
		return m.freed(func(r Rest) bool { return r.FreedAt.Equal(oldest.FreedAt) })
	}
	return rows
}

func (m *model) freed(is func(Rest) bool) (rows []int) {
	for i, r := range m.past {
		if is(r) {
			rows = append(rows, i)
		}
	}
	return rows
}

// mayClaim reports whether a session of before may have its addresses back.
func (m *model) mayClaim(l Lease, now time.Time) bool {
	for i, row := range m.rows {
		if slices.Equal(row, l.Addresses) {
			r, used := m.past[i]
			_, lives := m.leases[l.Session]
			return !lives && !m.held(i) && (!used || r.Owner == l.Owner || m.rested(r, now))
		}
	}
	return false
}

// take is a lease; undo makes all as it was before.
func (m *model) take(l Lease) {
	past := maps.Clone(m.past)
	for _, i := range m.rowsWith(l.Addresses) {
		delete(m.past, i)
	}
	m.leases[l.Session] = l
	m.undo[l.Session] = func() {
		delete(m.leases, l.Session)
		for _, i := range m.rowsWith(l.Addresses) {
			if r, used := past[i]; used {
				m.past[i] = r
			}
		}
	}
}

func (m *model) free(id session.ID, now time.Time) Rest {
	l := m.leases[id]
	r := Rest{l.Owner, l.Addresses, now}
	delete(m.leases, id)
	delete(m.undo, id)
	m.rest(r)
	return r
}

// exhausted is what the error has to say.
func (m *model) exhausted() (size, leased, resting int, freeAt time.Time) {
	for _, r := range m.past {
		if at := r.FreedAt.Add(m.cooloff); freeAt.IsZero() || at.Before(freeAt) {
			freeAt = at
		}
	}
	return len(m.rows), len(m.rows) - len(m.past), len(m.past), freeAt
}

// outside reports whether a lease has an address that the pool does not give.
func (m *model) outside(l Lease) bool {
	return slices.ContainsFunc(l.Addresses, func(a netip.Addr) bool { return len(m.rowsWith([]netip.Addr{a})) == 0 })
}
