package life

import (
	"time"

	"tunneld/internal/control/wire"
)

// Policy is what a network says of the lifetimes that its sessions' nodes ask
// for: docs/protocol.md, "Lifetime and refresher".
type Policy struct {
	Longest   time.Duration  // for those that ask for more, or for none; 0: without a bound
	Least     time.Duration  // what is shorter is refused
	Refresher wire.Refresher // where the node names none
}

// Answer agrees to a lifetime, or refuses it with the floor. A node that asked
// for none at all, asked nil, is of a release that knows of none.
func (p Policy) Answer(asked *wire.Expires) (wire.Expires, *wire.Result) {
	switch {
	case asked == nil:
		return wire.Expires{}, nil
	case asked.After > 0 && asked.After < p.Least:
		return wire.Expires{}, &wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseTooShort, Floor: p.Least}
	}
	e := *asked
	if p.Longest > 0 && (e.After == 0 || e.After > p.Longest) {
		e.After = p.Longest
	}
	if e.After == 0 {
		return wire.Expires{}, nil
	}
	if e.Refresher == wire.RefresherAny {
		e.Refresher = p.Refresher
	}
	return e, nil
}

// Refresh is the clock of a lifetime that both ends agreed on.
type Refresh struct {
	wire.Expires
	Mine bool    // this end is the refresher
	At   Instant // when the session was refreshed last; its beginning and each resume count as well
	Next Instant // when the refresher is to do it again; 0: not decided
}

// Agreed takes what the ends have agreed on; the session counts as refreshed.
func (r *Refresh) Agreed(e wire.Expires, own wire.Refresher, now Instant) {
	*r = Refresh{Expires: e, Mine: e.Refresher == own, At: now}
}

// Again counts a refresh.
func (r *Refresh) Again(now Instant) { r.At, r.Next = now, 0 }

// RefreshDue reports whether this end has to refresh the session now; should
// nobody answer, it is to do so once more after a twelfth of the lifetime. A
// refresh is due when half of that is over (RFC 4028, section 10), a little
// earlier, by a random part below 1, so that the sessions of a gateway do not
// come in step.
func (l *Life) RefreshDue(now Instant, part float64) (due bool) {
	r := &l.Refresh
	if r.After == 0 || !r.Mine {
		return false
	}
	if r.Next == 0 {
		r.Next = r.At.Plus(r.After/2 - time.Duration(part*float64(r.After/12)))
	}
	if due = r.Next <= now; due {
		r.Next = now.Plus(max(r.After/12, MinLook))
	}
	l.CheckAt = min(l.CheckAt, r.Next)
	return due
}

// NextAt is when the next refresh is due at the latest, as either end knows; Never: there
// is no lifetime.
func (r *Refresh) NextAt() Instant {
	switch {
	case r.After == 0:
		return Never
	case r.Mine && r.Next != 0:
		return r.Next
	}
	return r.At.Plus(r.After / 2)
}
