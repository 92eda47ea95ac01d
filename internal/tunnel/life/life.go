// Package life is the clocks that end a session whatever its ends do:
// docs/protocol.md, "Life of a session". It is pure: the present is given to it,
// on CLOCK_BOOTTIME and on the wall clock.
package life

import (
	"time"

	"tunneld/internal/control/wire"
)

// Life is those clocks as one end of a session keeps them. Whoever has the
// session guards it.
type Life struct {
	Terms   wire.Lifetime
	Began   Instant   // Terms.Absolute counts from here
	BeganAt time.Time // the same on the wall clock; zero at a node, which is told what is left
	Proven  Instant   // when the node proved last who it is
	ProveAt Instant   // a node's: when it does so again; 0: not decided
	Active  Instant   // when it was last seen that a packet had passed
	Packets uint64    // that had passed by then
	Grace   time.Duration
	GraceTo Instant   // end of the suspension; 0: not suspended
	CertTo  time.Time // end of the node's certificate, on the wall clock; zero: not known here
	Refresh Refresh
	CheckAt Instant // when to look again
	Over    bool    // its end was asked for

	warned map[wire.Cause]Instant // which ends were warned about
	told   Instant                // when the data plane stops the session; 0: it was not told
}

// New begins all clocks now. beganAt is the session's beginning where that was
// earlier; zero: it is not known.
func New(terms wire.Lifetime, grace time.Duration, beganAt time.Time, now Instant, wall time.Time) Life {
	l := Life{Terms: terms, Began: now, BeganAt: beganAt, Proven: now, Active: now, Grace: grace, Refresh: Refresh{At: now}}
	if !beganAt.IsZero() {
		l.Began = now.Plus(-max(0, WallSince(beganAt, wall)))
	}
	return l
}

// WallSince is what the wall clock says has passed, steps of it included.
func WallSince(from, to time.Time) time.Duration { return to.Round(0).Sub(from.Round(0)) }

// Ages is what of a life outlives the process. Within one start of the host
// CLOCK_BOOTTIME goes on; after a reboot the wall clock must do.
type Ages struct {
	Age, Proven time.Duration // since its beginning and since the last proof, when written
	Refreshed   time.Duration `json:",omitzero"` // since the last refresh, likewise
	HostBoot    string        // which start of the host; empty: nobody can tell
	Uptime      time.Duration // when written
	At          time.Time     // when written
}

// Ages is what to journal; nil: nothing would be missed.
func (l *Life) Ages(now Instant, wall time.Time, boot string) *Ages {
	if l.Terms == (wire.Lifetime{}) && l.Refresh.After == 0 {
		return nil
	}
	a := &Ages{Age: now.Since(l.Began), Proven: now.Since(l.Proven), HostBoot: boot, Uptime: time.Duration(now), At: wall}
	if l.Refresh.After > 0 {
		a.Refreshed = now.Since(l.Refresh.At)
	}
	return a
}

// Restore goes on with a life that outlived its process. A session is as old as
// the one of its clocks says that makes it older.
func (l *Life) Restore(a *Ages, now Instant, wall time.Time, boot string) {
	if a == nil {
		l.Proven, l.Refresh.At = l.Began, l.Began // the last that is sure
		return
	}
	passed := max(0, WallSince(a.At, wall))
	if a.HostBoot != "" && a.HostBoot == boot {
		passed = max(0, now.Since(Instant(a.Uptime)))
	}
	l.Began = min(l.Began, now.Plus(-a.Age-passed))
	l.Proven = min(l.Proven, now.Plus(-a.Proven-passed))
	l.Refresh.At = min(l.Refresh.At, now.Plus(-a.Refreshed-passed))
}

// AbsoluteTo is when the session has lived long enough: by CLOCK_BOOTTIME or, if
// that is earlier, by the wall clock.
func (l *Life) AbsoluteTo(now Instant, wall time.Time) Instant {
	if l.Terms.Absolute == 0 {
		return Never
	}
	end := l.Began.Plus(l.Terms.Absolute)
	if !l.BeganAt.IsZero() {
		end = min(end, now.Plus(l.Terms.Absolute-WallSince(l.BeganAt, wall)))
	}
	return end
}

// An End is one of the ends of a life.
type End struct {
	Cause wire.Cause
	At    Instant
	lead  time.Duration // how long before it is warned of
}

// ends are those that this end of the session acts upon; Never is among them.
func (l *Life) ends(now Instant, wall time.Time) [5]End {
	all := [5]End{
		{wire.CauseAbsolute, l.AbsoluteTo(now, wall), lead(l.Terms.Absolute)},
		{wire.CauseReauth, Never, lead(l.Terms.Reauth)},
		{wire.CauseExpired, Never, maxLead},
		{wire.CauseIdle, Never, lead(l.Terms.Idle)},
		{wire.CauseUnrefreshed, Never, lead(l.Refresh.After)},
	}
	if l.Terms.Reauth > 0 {
		all[1].At = l.Proven.Plus(l.Terms.Reauth)
	}
	if !l.CertTo.IsZero() {
		all[2].At = now.Plus(WallSince(wall, l.CertTo))
	}
	if l.Terms.Idle > 0 {
		all[3].At = l.Active.Plus(l.Terms.Idle)
	}
	if l.Refresh.After > 0 {
		all[4].At = l.Refresh.At.Plus(l.Refresh.After)
	}
	return all
}

// maxLead is how long before an end its warning comes at the earliest.
const maxLead = 5 * time.Minute

// lead is how long before the end of so long a time its warning comes.
func lead(whole time.Duration) time.Duration { return min(max(whole/10, time.Second), maxLead) }

// HardTo is when the data plane must stop the session by itself. Idleness is not
// among its reasons: a session without packets has none to stop, and one that
// has some must not be stopped because nobody was left to see them.
func (l *Life) HardTo(now Instant, wall time.Time) Instant {
	at := Never
	for _, e := range l.ends(now, wall) {
		if e.Cause != wire.CauseIdle {
			at = min(at, e.At)
		}
	}
	if l.GraceTo != 0 {
		at = min(at, l.GraceTo)
	}
	return at
}

// Deadline is HardTo as the data plane is told it.
func (l *Life) Deadline(now Instant, wall time.Time) time.Time {
	l.told = l.HardTo(now, wall)
	return l.told.Wall(now, wall)
}

// Stopped reports whether the data plane has stopped a session whose time is not
// over, because it was told a deadline while the wall clock was wrong: it is to be
// told another.
func (l *Life) Stopped(now Instant, wall time.Time) bool {
	return l.told != 0 && l.told <= now && l.HardTo(now, wall) > now
}

// ExpiresAt is the earliest end that is known; zero: none is.
func (l *Life) ExpiresAt(now Instant, wall time.Time) time.Time {
	at := l.HardTo(now, wall)
	if l.Terms.Idle > 0 {
		at = min(at, l.Active.Plus(l.Terms.Idle))
	}
	return at.Wall(now, wall).Round(0)
}

// Bounds of how often a session is looked at: often enough to see an idle one,
// and at least so often that a step of the wall clock is noticed.
const (
	MinLook = 100 * time.Millisecond
	maxLook = 10 * time.Second
)

// Look sees what has become of the session. It returns the end that is reached,
// or one that has come near and was not warned about.
func (l *Life) Look(now Instant, wall time.Time, packets uint64, held bool) (reached, near *End) {
	if packets != l.Packets || held {
		l.Packets, l.Active = packets, now
	}
	l.CheckAt = now.Plus(maxLook)
	if l.Terms.Idle > 0 {
		l.CheckAt = now.Plus(min(max(l.Terms.Idle/8, MinLook), maxLook))
	}
	for _, e := range l.ends(now, wall) {
		switch warnAt := e.At.Plus(-e.lead); {
		case e.At <= now:
			if reached == nil || e.At < reached.At {
				reached = &e
			}
		case warnAt > now:
			l.CheckAt = min(l.CheckAt, warnAt)
		default:
			l.CheckAt = min(l.CheckAt, e.At)
			if near == nil && e.At > l.warned[e.Cause].Plus(time.Second) {
				near = &e
			}
		}
	}
	if reached != nil {
		return reached, nil
	}
	if near != nil {
		if l.warned == nil {
			l.warned = map[wire.Cause]Instant{}
		}
		l.warned[near.Cause] = near.At
	}
	return nil, near
}

// names are the ends in the words of the configuration.
var names = map[wire.Cause]string{
	wire.CauseAbsolute: "absolute", wire.CauseReauth: "reauth", wire.CauseIdle: "idle", wire.CauseExpired: "certificate",
	wire.CauseUnrefreshed: "lifetime",
}

// Name is the end in the words of the configuration.
func (e *End) Name() string { return names[e.Cause] }
