package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// node decides as a dialling daemon of internal/tunnel does.
type node struct {
	w       *world
	h       *host
	links   []*link
	blocked time.Duration // no way to any gateway until then
}

// link is a node's control connection towards one list of gateways, with the
// tunnels that share it.
type link struct {
	n        *node
	gateways []*gateway
	key      string
	course
	tunnels  []*tunnel
	c        *conn
	up       bool
	redial   bool
	dialling bool
	follows  *end
	failures int
	waits    int // number of the present sleep
	serial   uint32
	proofs   int // number of the present wait for the next proof
	provenAt time.Duration
}

// tunnel is one that is configured.
type tunnel struct {
	l        *link
	label    string
	network  string
	wanted   bool
	session  *control.Session
	state    session.State
	retryAt  time.Duration
	failures int
	givenUp  bool
	cause    wire.Cause

	wish       wire.Expires
	refreshing int // number of the present wait for the next refresh
}

// newNode has a link to each gateway, or roams: has one to all of them.
func (w *world) newNode(i int, roams bool) *node {
	n := &node{w: w, h: w.newHost(fmt.Sprintf("node%d", i))}
	for _, g := range w.gateways {
		var rights []string
		for _, net := range g.networks {
			rights = append(rights, net.name)
		}
		g.h.disk.rights[n.h.id] = rights
	}
	if roams {
		n.newLink(w.gateways)
	} else {
		for i := range w.gateways {
			n.newLink(w.gateways[i : i+1])
		}
	}
	n.h.starts, n.h.stops = n.starts, n.stops
	return n
}

func (n *node) newLink(gateways []*gateway) {
	l := &link{n: n, gateways: gateways, key: strings.Join(names(gateways), ",")}
	for _, net := range gateways[0].networks {
		l.tunnels = append(l.tunnels, &tunnel{l: l, label: l.key + "/" + net.name, network: net.name, wish: n.w.wish()})
	}
	if len(gateways) > 2 && n.w.chance(4) {
		l.unjoined = gateways[len(gateways)-1]
	}
	l.course.begins(l)
	n.links = append(n.links, l)
}

func (n *node) stops() {}

// starts restores what the disk has.
func (n *node) starts() {
	for _, l := range n.links {
		*l = link{n: n, gateways: l.gateways, key: l.key, tunnels: l.tunnels, course: course{unjoined: l.unjoined}}
		l.course.begins(l)
		for _, t := range l.tunnels {
			*t = tunnel{l: l, label: t.label, network: t.network, wanted: !n.h.disk.unwanted[t.label], wish: t.wish, refreshing: t.refreshing}
		}
	}
	for _, r := range slices.Clone(n.h.disk.rows) {
		rec := r.load()
		for _, l := range n.links {
			if l.key == r.link {
				l.restore(r.id, rec)
			}
		}
	}
	for _, l := range n.links {
		l.sleep(0)
	}
}

func (l *link) restore(id uint32, rec *control.Record) {
	l.c = l.newConn(id)
	l.loses()
	for _, s := range rec.Sessions {
		if t := l.labelled(s.Label); t != nil && (s.State == session.Established || s.Rebuild) {
			t.session, t.state = &s, session.Suspended
			if !s.NextPresharedKey.IsZero() { // it outlived a restart
				l.c.hd.(*linkConn).settleKey(s)
			}
		}
	}
	l.c.restored(rec, l.n.h.graceLeft(rec))
}

func (l *link) newConn(id uint32) *conn {
	c := l.n.w.newConn(l.n.h, control.Initiator, id, l.key, nil)
	c.hd = &linkConn{l, c}
	c.undone = func(ev control.Event) {
		if o, ok := ev.(control.OpenSession); ok {
			l.labelled(o.Label).state = session.Idle
		}
	}
	c.done = func() {
		if l.c == c {
			l.c, l.up = nil, false
		}
		l.nudge()
	}
	return c
}

func (l *link) labelled(label string) *tunnel {
	for _, t := range l.tunnels {
		if t.label == label {
			return t
		}
	}
	return nil
}

// sleep looks again after d, or earlier if nudged.
func (l *link) sleep(d time.Duration) {
	l.waits++
	mine := l.waits
	if _, wait := l.way.Due(l.n.h.boottime()); l.up && wait > 0 {
		d = min(d, wait)
	}
	l.n.h.after(d, func() {
		if l.waits == mine && !l.dialling {
			l.once()
		}
	})
}

// nudge makes the link look again at what is to be done.
func (l *link) nudge() {
	if !l.n.h.up {
		return
	}
	if l.dialling {
		l.follow()
		return
	}
	l.sleep(0)
}

const idleWait = time.Minute

// once does the next thing that is due.
func (l *link) once() {
	wanted := slices.ContainsFunc(l.tunnels, func(t *tunnel) bool { return t.wanted && !t.givenUp })
	redial := l.redial
	l.redial = false
	switch {
	case l.c == nil && !wanted:
		l.sleep(idleWait)
	case l.c != nil && !wanted && l.finish():
		l.sleep(idleWait)
	case l.up && l.way.Useless(len(l.c.m.Sessions())):
		l.c.do(control.Stop{Result: wire.Result{Code: wire.StopShuttingDown, Cause: wire.CauseDraining}})
		l.sleep(idleWait)
	case l.up && l.leaves() != "":
		l.redial = redial
		l.move(l.leaves())
	case l.up && !redial:
		l.ask()
	default:
		l.dial()
	}
}

// finish ends a connection that no tunnel needs.
func (l *link) finish() bool {
	m := l.c.m
	if m.State() == session.Closed {
		return true
	}
	if len(m.Sessions()) > 0 || m.Pending() > 0 && m.State() != session.Established {
		return false
	}
	l.c.do(control.Stop{Result: wire.Result{Code: wire.StopShuttingDown, Cause: wire.CauseUser}})
	return true
}

// ask opens the sessions that are wanted and missing.
func (l *link) ask() {
	wait := idleWait
	for _, t := range l.tunnels {
		if !t.wanted && t.session != nil && l.c != nil { // killed between `tunnelctl down` and what it leads to
			l.c.do(control.CloseSession{LocalID: t.session.LocalID, Result: administrative(wire.CauseUser)})
			continue
		}
		if s := l.unclaimed(t); s != nil && t.failures > 0 {
			if left := t.retryAt - l.n.w.now; left > 0 {
				wait = min(wait, left)
			} else {
				l.c.do(control.RebuildSession{LocalID: s.LocalID})
			}
			continue
		}
		if !t.wanted || t.givenUp || t.session != nil || t.state == session.WaitReply || l.c == nil {
			continue
		}
		if left := t.retryAt - l.n.w.now; left > 0 {
			wait = min(wait, left)
			continue
		}
		private, public := l.n.w.keyPair()
		l.serial++
		t.state = session.WaitReply
		l.c.do(control.OpenSession{Network: t.network, Label: t.label, Serial: l.serial, PrivateKey: private, PublicKey: public, Expires: t.wish})
	}
	l.sleep(wait)
}

// unclaimed is the session of a tunnel that its gateway has lost and not rebuilt.
func (l *link) unclaimed(t *tunnel) *control.Session {
	if l.c == nil {
		return nil
	}
	for _, s := range l.c.m.Sessions() {
		if s.Rebuild && s.Label == t.label {
			return &s
		}
	}
	return nil
}

// failed counts a failed dial.
func (l *link) failed() {
	l.dialling, l.follows = false, nil
	l.inCircles()
	l.failures++
	l.redial = l.up
	for _, t := range l.tunnels {
		if t.wanted && t.session == nil && !l.up { // on a living transport the request goes on
			t.state = session.Idle
		}
	}
	l.sleep(l.n.backoff(l.failures))
}

// backoff is that of internal/tunnel.
func (n *node) backoff(failures int) time.Duration {
	d := 25 * time.Millisecond
	for range min(failures-1, 40) {
		if d >= 250*time.Millisecond && failures <= 20 {
			break
		}
		d = min(d*3/2, 30*time.Second)
	}
	return d/2 + n.w.between(0, d/2+1)
}

// want is `tunnelctl up` and `tunnelctl down`.
func (t *tunnel) want(up bool) {
	d := t.l.n.h.disk
	if d.commit(func() error { d.unwanted[t.label] = !up; return nil }) != nil {
		return
	}
	t.wanted = up
	t.l.n.w.logf("%s: %s wanted: %v", t.l.n.h.name, t.label, up)
	if up {
		t.givenUp, t.failures, t.retryAt = false, 0, 0
	} else if t.session != nil && t.l.c != nil {
		t.l.c.do(control.CloseSession{LocalID: t.session.LocalID, Result: administrative(wire.CauseUser)})
	}
	t.l.nudge()
}

// linkConn decides for a dialled connection (control.Handler).
type linkConn struct {
	l *link
	c *conn
}

func (k *linkConn) disk() *disk { return k.l.n.h.disk }

// Save makes the record durable.
func (k *linkConn) Save(r *control.Record) error {
	return k.disk().commit(func() error { return k.disk().put(k.c.id, k.l.key, r) })
}

// Forget removes the record.
func (k *linkConn) Forget() error {
	return k.disk().commit(func() error { k.disk().remove(k.c.id); return nil })
}

// Authorize is asked of gateways only, as are Grant and Sign.
func (k *linkConn) Authorize(control.AskAuthorize) *wire.Result { panic("asked of a node") }

// Grant is asked of gateways only.
func (k *linkConn) Grant(control.AskSession) (control.Grant, *wire.Result) { panic("asked of a node") }

// Sign is asked of gateways only.
func (k *linkConn) Sign(control.AskSign) ([]byte, *wire.Result) { panic("asked of a node") }

// SetUp gives a session interface, keys, addresses and routes.
func (k *linkConn) SetUp(s control.Session) *wire.Result {
	t := k.l.labelled(s.Label)
	if t == nil || !t.wanted {
		k.l.n.w.ghost.doom(s.ID, "not wanted")
		return refusal(wire.CauseUser)
	}
	if !k.l.n.w.healed && k.l.n.w.chance(40) {
		k.l.n.w.ghost.doom(s.ID, "not set up at its node")
		if !s.Rebuild { // as internal/tunnel: else its end is told of
			t.session = nil
		}
		return &wire.Result{Code: wire.CDNError, Error: wire.ErrorVendor, Cause: wire.CauseLocal}
	}
	t.session = &s
	return nil
}

// Notify acts upon what happened.
func (k *linkConn) Notify(a control.Action) {
	l := k.l
	switch a := a.(type) {
	case control.Opened:
		l.up, l.provenAt = true, l.n.w.now
		l.arrives()
	case control.Resumed:
		l.up, l.provenAt = true, l.n.w.now
		l.arrives()
		if a.PeerRestarted {
			l.way.Restarted()
		}
		l.all(session.Established)
		l.proves()
		l.refreshAll()
	case control.SessionUp:
		if t := l.labelled(a.Session.Label); t != nil {
			t.session, t.state, t.failures, t.cause = &a.Session, session.Established, 0, wire.CauseNone
			t.refreshes(a.Session)
		}
		l.proves()
	case control.SessionRefreshed:
		if t := l.labelled(a.Session.Label); t != nil {
			t.session = &a.Session
			t.refreshes(a.Session)
		}
	case control.SessionRefused:
		if t := l.labelled(a.Label); t != nil {
			t.refused(a.Result)
		}
		if a.Result.Cause == wire.CauseDraining {
			l.way.TurnedAway()
		}
	case control.RebuildRefused:
		if t := l.labelled(a.Session.Label); t != nil {
			t.failures++
			t.retryAt = l.n.w.now + l.n.backoff(t.failures)
		}
	case control.SessionDown:
		l.n.w.ghost.ended(k.c, a.Session, a.Result)
		if t := l.labelled(a.Session.Label); t != nil {
			t.down(a.Result)
		}
	case control.KeyArmed:
		k.settleKey(a.Session)
	case control.GatewayDrains:
		l.drains(a)
	case control.Retargeted:
		l.sentOn++
		l.way.SentOn(a.Gateways)
	case control.WasSuspended:
		l.up = false
		l.loses()
		l.all(session.Suspended)
	case control.Ended:
		k.ended(a)
	}
	l.nudge()
}

// all follows the connection with the states of its sessions.
func (l *link) all(to session.State) {
	for _, t := range l.tunnels {
		if t.session != nil {
			t.state = to
		}
	}
}

func (t *tunnel) refused(res wire.Result) {
	t.cause = res.Cause
	t.givenUp = res.Cause.Advice() == wire.GiveUp
	t.reprove(res.Cause)
	t.failures++
	t.retryAt = t.l.n.w.now + t.l.n.backoff(t.failures)
	t.state = session.Idle
}

func (t *tunnel) down(res wire.Result) {
	t.session, t.state = nil, session.Idle
	if t.wanted {
		t.cause = res.Cause
		t.givenUp = res.Cause.Advice() == wire.GiveUp
		t.reprove(res.Cause)
	}
}

// reprove has the link make a new transport where the proof of the present one is
// too old.
func (t *tunnel) reprove(c wire.Cause) {
	if c == wire.CauseReauth {
		t.l.redial = t.l.up
	}
}

// settleKey confirms an armed key or gives it up, as the data plane finds it.
func (k *linkConn) settleKey(s control.Session) {
	w := k.l.n.w
	k.l.n.h.after(w.between(0, 10*time.Second), func() {
		if k.c.dead {
			return
		}
		if w.chance(3) {
			k.c.do(control.FailRekey{LocalID: s.LocalID, KeyEpoch: s.KeyEpoch + 1,
				Result: wire.Result{Code: wire.CDNError, Error: wire.ErrorVendor, Cause: wire.CauseUnconfirmed}})
			return
		}
		k.c.do(control.ConfirmRekey{LocalID: s.LocalID, KeyEpoch: s.KeyEpoch + 1})
	})
}

func (k *linkConn) ended(a control.Ended) {
	k.l.up, k.l.c = false, nil
	k.l.way.Ended()
	for _, t := range k.l.tunnels {
		if t.wanted && a.Remote && a.Result.Cause.Advice() == wire.GiveUp {
			t.givenUp, t.cause, t.state = true, a.Result.Cause, session.Idle
		}
	}
}

var _ control.Handler = (*linkConn)(nil)
