package sim

import (
	"errors"
	"slices"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/redirect"
)

// course is how a link finds a gateway: what internal/tunnel does with
// internal/tunnel/redirect, and what the world knows of it.
type course struct {
	way      redirect.Way
	tried    []string // in the present dial
	unjoined *gateway // configured, and nobody knows who must answer there

	sentOn  int           // without having arrived anywhere since
	lostAt  time.Duration // when the connection's transport was lost last
	leaveAt time.Duration // told by the gateway
}

func (c *course) begins(l *link) {
	c.way = redirect.Way{Gateways: names(l.gateways), Joined: func(name string) bool { return l.n.w.named(name) != l.unjoined }}
}

func names(gateways []*gateway) (all []string) {
	for _, g := range gateways {
		all = append(all, g.h.name)
	}
	return all
}

// named is the gateway of that name; nil if there is none.
func (w *world) named(name string) *gateway {
	i := slices.IndexFunc(w.gateways, func(g *gateway) bool { return g.h.name == name })
	if i < 0 {
		return nil
	}
	return w.gateways[i]
}

// boottime is a clock that nobody sets.
func (h *host) boottime() time.Time { return epoch.Add(h.w.now) }

// home is the gateway that has the connection; nil if there is no choice.
func (l *link) home() *gateway {
	if l.c == nil || len(l.gateways) == 1 {
		return nil
	}
	id, _, _ := l.c.m.Peer()
	i := slices.IndexFunc(l.gateways, func(g *gateway) bool { return g.h.id == id })
	if i < 0 {
		return nil
	}
	return l.gateways[i]
}

func (l *link) loses() {
	l.lostAt = l.n.w.now
	l.way.Lost(l.n.h.boottime())
}

func (l *link) arrives() {
	l.sentOn = 0
	l.way.Arrived()
}

// dial tries the gateways one after the other, each of which takes a while.
func (l *link) dial() {
	l.dialling = true
	l.waits++
	l.tried = nil
	l.next()
}

// next tries the next gateway of the present dial.
func (l *link) next() {
	l.follows = nil
	home := ""
	if g := l.home(); g != nil {
		home = g.h.name
	}
	to := l.way.Next(l.tried, home, l.n.h.boottime())
	if to == "" {
		l.failed()
		return
	}
	l.n.w.ghost.turns(l, to, home)
	l.tried = append(l.tried, to)
	l.reach(to, l.carry, l.next)
}

// reach makes a transport to a gateway, if it is there and the right one.
func (l *link) reach(to string, there func(*gateway), not func()) {
	n, w := l.n, l.n.w
	n.h.after(w.between(5*time.Millisecond, 500*time.Millisecond), func() {
		g := w.named(to)
		if n.blocked > w.now || g == l.unjoined || !g.h.runs() || g.h.disk.revoked[n.h.id] && w.chance(2) {
			not()
			return
		}
		there(g)
	})
}

// carry gives the connection a transport to g, and makes one if there is none.
func (l *link) carry(g *gateway) {
	if l.c == nil {
		l.c = l.newConn(l.n.w.rng.Uint32N(1<<32-1) + 1)
		l.c.begins()
	}
	l.way.Dialled(g.h.name)
	l.follows = l.attach(g)
	mine := l.follows
	l.n.h.after(10*time.Second, func() {
		if l.dialling && l.follows == mine {
			l.next()
		}
	})
	l.follow()
}

// attach gives the connection a new transport.
func (l *link) attach(g *gateway) *end {
	e := l.n.w.connect(l.n.h, g.h, g.control).ends[0]
	e.onLost = l.nudge
	p := e.peer()
	g.h.after(10*time.Second, func() { // the gateway waits no longer for a first message
		if p.accept != nil {
			p.accept = nil
			p.drop()
		}
	})
	l.c.attach(e, nil)
	return e
}

// follow looks whether the transport came to carry the connection, or is gone.
func (l *link) follow() {
	switch {
	case l.follows == nil:
	case l.up:
		l.failures = 0
		l.dialling, l.follows = false, nil
		l.sleep(0)
	case l.follows.told:
		l.next()
	}
}

// drains takes what the gateway says of its going.
func (l *link) drains(a control.GatewayDrains) {
	l.leaveAt = l.n.w.now + a.Delay
	l.way.Drains(a.Leaving, a.Gateways, l.n.h.boottime().Add(a.Delay))
}

// leaves is where to move now; empty: nowhere.
func (l *link) leaves() string {
	to, _ := l.way.Due(l.n.h.boottime())
	return to
}

// move takes the tunnels to another gateway, which answers before the present one
// is given up.
func (l *link) move(to string) {
	n := l.n
	l.n.w.ghost.moves(l, to)
	l.dialling = true
	l.waits++
	over := func() {
		l.dialling = false
		l.sleep(0)
	}
	l.reach(to, func(g *gateway) {
		if leave := l.way.Leave(); leave == nil || leave.To != to { // it stays after all
			over()
			return
		}
		l.way.Moves()
		n.w.stats.moves++
		n.w.logf("%s moves to %s", n.h.name, to)
		if l.c != nil {
			l.c.do(control.Stop{Result: wire.Result{Code: wire.StopShuttingDown, Cause: wire.CauseDraining}})
		}
		l.tried = l.way.Gateways // what fails from here on is a failed dial
		var free func()
		free = func() {
			if l.c != nil { // it is being written down
				n.h.after(10*time.Millisecond, free)
				return
			}
			l.carry(g)
		}
		free()
	}, func() {
		if l.way.Leave() != nil {
			l.way.NotMoved(n.h.boottime(), n.backoff)
		}
		over()
	})
}

// turns checks where a node goes: P1, to another gateway than the one that has its
// sessions only when that does not come back or has sent it away; and that it
// follows no longer than it may where gateways send it on.
func (g *ghost) turns(l *link, to, home string) {
	w := g.w
	if w.named(to) == nil || !slices.Contains(l.gateways, w.named(to)) {
		broken("drain", "%s goes to %q, which is none of its gateways", l.n.h.name, to)
	}
	if first := len(l.tried) == 0; first && l.sentOn > redirect.MaxHops && to != home && to != l.gateways[0].h.name {
		broken("drain", "%s goes to %s, having been sent on %d times in a row", l.n.h.name, to, l.sentOn)
	}
	if l.sentOn > 0 && l.sentOn <= redirect.MaxHops && len(l.tried) == 0 {
		w.stats.retargets++
	}
	if home == "" || to == home || len(l.c.m.Sessions()) == 0 {
		return
	}
	leave := l.way.Leave()
	if l.up || w.now-l.lostAt < 5*time.Second && l.sentOn == 0 && (leave == nil || leave.To == "") {
		broken("P1", "%s goes to %s with sessions of %s, whose transport was lost %v ago (up: %v)", l.n.h.name, to, home, w.now-l.lostAt, l.up)
	}
	g.doomAll(l.c, l.n.h.name+" goes to another gateway")
}

// hears checks that a node understands what is said of a gateway's going.
func (g *ghost) hears(c *conn, ev control.Event, out []control.Action) {
	r, ok := ev.(control.Received)
	if !ok {
		return
	}
	d, ok := r.Packet.Message.(*wire.Drain)
	if !ok || c.where(r.Transport) != "cur:" || c.m.State() == session.Closed {
		return
	}
	for _, a := range out {
		if told, ok := a.(control.GatewayDrains); ok && told.Leaving == d.Leaving && told.Delay == d.Delay && slices.Equal(told.Gateways, d.Gateways) {
			return
		}
	}
	broken("drain", "%s makes nothing, or something else, of a gateway that goes: %v to %v in %v", c.h.name, d.Leaving, d.Gateways, d.Delay)
}

// moves checks that a node leaves when it was told to, and for a gateway of its
// own.
func (g *ghost) moves(l *link, to string) {
	if o := g.w.named(to); o == nil || !slices.Contains(l.gateways, o) || o == l.unjoined {
		broken("drain", "%s moves to %q, which is none of its gateways, or was not joined", l.n.h.name, to)
	}
	if g.w.now < l.leaveAt {
		broken("drain", "%s moves %v before it was told to", l.n.h.name, l.leaveAt-g.w.now)
	}
}

// inCircles checks that a dial that fails because gateways send the node on to each
// other says so, and no other.
func (l *link) inCircles() {
	circles := l.sentOn > redirect.MaxHops
	if circles {
		l.n.w.stats.loops++
	}
	if err := l.way.Err(); errors.Is(err, redirect.ErrLoop) != circles {
		broken("drain", "%s was sent on %d times in a row and says %v", l.n.h.name, l.sentOn, err)
	}
}
