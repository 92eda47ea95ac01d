package tunnel

import (
	"time"

	"tunneld/internal/control/wire"
)

// life is the clocks that end a session whatever its ends do, as one end of it
// keeps them: docs/protocol.md, "Life of a session". Whoever has the session
// guards it.
type life struct {
	terms   wire.Lifetime
	began   bootTime  // terms.Absolute counts from here
	beganAt time.Time // the same on the wall clock; zero at a node, which is told what is left
	proven  bootTime  // when the node proved last who it is
	proveAt bootTime  // a node's: when it does so again; 0: not decided
	active  bootTime  // when it was last seen that a packet had passed
	packets uint64    // that had passed by then
	grace   time.Duration
	graceTo bootTime  // end of the suspension; 0: not suspended
	certTo  time.Time // end of the node's certificate, on the wall clock; zero: not known here

	warned  map[wire.Cause]bootTime // which ends were warned about
	checkAt bootTime                // when to look again
	over    bool                    // its end was asked for
}

// newLife begins all clocks now. beganAt is the session's beginning where that
// was earlier; zero: it is not known.
func newLife(terms wire.Lifetime, grace time.Duration, beganAt time.Time) life {
	now := bootNow()
	l := life{terms: terms, began: now, beganAt: beganAt, proven: now, active: now, grace: grace}
	if !beganAt.IsZero() {
		l.began = now.plus(-max(0, wallSince(beganAt, time.Now())))
	}
	return l
}

// wallSince is what the wall clock says has passed, steps of it included.
func wallSince(from, to time.Time) time.Duration { return to.Round(0).Sub(from.Round(0)) }

// agesV1 is what of a life outlives the process. Within one start of the host
// CLOCK_BOOTTIME goes on; after a reboot the wall clock must do.
type agesV1 struct {
	Age, Proven time.Duration // since its beginning and since the last proof, when written
	HostBoot    string
	Uptime      time.Duration // when written
	At          time.Time     // when written
}

// ages is what to journal; nil: nothing would be missed.
func (l *life) ages(now bootTime, wall time.Time) *agesV1 {
	if l.terms == (wire.Lifetime{}) {
		return nil
	}
	return &agesV1{now.since(l.began), now.since(l.proven), hostBoot(), time.Duration(now), wall}
}

// restore goes on with a life that outlived its process. A session is as old as
// the one of its clocks says that makes it older.
func (l *life) restore(a *agesV1, now bootTime, wall time.Time) {
	if a == nil {
		return
	}
	passed := max(0, wallSince(a.At, wall))
	if a.HostBoot != "" && a.HostBoot == hostBoot() {
		passed = max(0, now.since(bootTime(a.Uptime)))
	}
	l.began = min(l.began, now.plus(-a.Age-passed))
	l.proven = min(l.proven, now.plus(-a.Proven-passed))
}

// absoluteTo is when the session has lived long enough: by CLOCK_BOOTTIME or, if
// that is earlier, by the wall clock.
func (l *life) absoluteTo(now bootTime, wall time.Time) bootTime {
	if l.terms.Absolute == 0 {
		return never
	}
	end := l.began.plus(l.terms.Absolute)
	if !l.beganAt.IsZero() {
		end = min(end, now.plus(l.terms.Absolute-wallSince(l.beganAt, wall)))
	}
	return end
}

// An end is one of the ends of a life.
type end struct {
	cause wire.Cause
	at    bootTime
	lead  time.Duration // how long before it is warned of
}

// ends are those that this end of the session acts upon; never is among them.
func (l *life) ends(now bootTime, wall time.Time) [4]end {
	all := [4]end{
		{wire.CauseAbsolute, l.absoluteTo(now, wall), lead(l.terms.Absolute)},
		{wire.CauseReauth, never, lead(l.terms.Reauth)},
		{wire.CauseExpired, never, maxLead},
		{wire.CauseIdle, never, lead(l.terms.Idle)},
	}
	if l.terms.Reauth > 0 {
		all[1].at = l.proven.plus(l.terms.Reauth)
	}
	if !l.certTo.IsZero() {
		all[2].at = now.plus(wallSince(wall, l.certTo))
	}
	if l.terms.Idle > 0 {
		all[3].at = l.active.plus(l.terms.Idle)
	}
	return all
}

// maxLead is how long before an end its warning comes at the earliest.
const maxLead = 5 * time.Minute

// lead is how long before the end of so long a time its warning comes.
func lead(whole time.Duration) time.Duration { return min(max(whole/10, time.Second), maxLead) }

// hardTo is when the data plane must stop the session by itself. Idleness is not
// among its reasons: a session without packets has none to stop, and one that
// has some must not be stopped because nobody was left to see them.
func (l *life) hardTo(now bootTime, wall time.Time) bootTime {
	at := never
	for _, e := range l.ends(now, wall) {
		if e.cause != wire.CauseIdle {
			at = min(at, e.at)
		}
	}
	if l.graceTo != 0 {
		at = min(at, l.graceTo)
	}
	return at
}

// deadline is hardTo as the data plane is told it.
func (l *life) deadline() time.Time {
	now, wall := bootNow(), time.Now()
	return instantOf(l.hardTo(now, wall), now, wall)
}

// expiresAt is the earliest end that is known; nil: none is.
func (l *life) expiresAt() *time.Time {
	now, wall := bootNow(), time.Now()
	at := l.hardTo(now, wall)
	if l.terms.Idle > 0 {
		at = min(at, l.active.plus(l.terms.Idle))
	}
	return instant(instantOf(at, now, wall).Round(0))
}

// instantOf is an instant as a Time; zero for never.
func instantOf(at, now bootTime, wall time.Time) time.Time {
	if at == never {
		return time.Time{}
	}
	return wall.Add(at.since(now))
}

// Bounds of how often a session is looked at: often enough to see an idle one,
// and at least so often that a step of the wall clock is noticed.
const (
	minLook = 100 * time.Millisecond
	maxLook = 10 * time.Second
)

// look sees what has become of the session. It returns the end that is reached,
// or one that has come near and was not warned about.
func (l *life) look(now bootTime, wall time.Time, packets uint64, held bool) (reached, near *end) {
	if packets != l.packets || held {
		l.packets, l.active = packets, now
	}
	l.checkAt = now.plus(maxLook)
	if l.terms.Idle > 0 {
		l.checkAt = now.plus(min(max(l.terms.Idle/8, minLook), maxLook))
	}
	for _, e := range l.ends(now, wall) {
		switch warnAt := e.at.plus(-e.lead); {
		case e.at <= now:
			if reached == nil || e.at < reached.at {
				reached = &e
			}
		case warnAt > now:
			l.checkAt = min(l.checkAt, warnAt)
		default:
			l.checkAt = min(l.checkAt, e.at)
			if near == nil && e.at > l.warned[e.cause].plus(time.Second) {
				near = &e
			}
		}
	}
	if reached != nil {
		return reached, nil
	}
	if near != nil {
		if l.warned == nil {
			l.warned = map[wire.Cause]bootTime{}
		}
		l.warned[near.cause] = near.at
	}
	return nil, near
}

// endNames are the ends in the words of the configuration.
var endNames = map[wire.Cause]string{
	wire.CauseAbsolute: "absolute", wire.CauseReauth: "reauth", wire.CauseIdle: "idle", wire.CauseExpired: "certificate",
}
