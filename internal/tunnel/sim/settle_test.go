package sim

import (
	"fmt"
	"slices"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// shape is how large a schedule is.
type shape struct {
	gateways, networks, nodes, room int
	roams                           bool // nodes have one connection, to any of the gateways
}

func (w *world) shape() shape {
	switch n := w.seed % 1000; {
	case n%500 == 0:
		return shape{1, 1, 50, 6, false}
	case n%25 == 7:
		return shape{6, 1, 1, 3, true} // more than a node lets itself be sent on
	case n < 400:
		return shape{1, 1, 1, 3, false}
	case n < 500:
		return shape{2 + w.rng.IntN(2), 1 + w.rng.IntN(2), 1 + w.rng.IntN(2), 3, true}
	case n < 700:
		return shape{1, 3, 1, 3, false}
	case n < 750:
		return shape{1, 1, 2 + w.rng.IntN(3), 3, false}
	case n < 800:
		return shape{1, 1, 2 + w.rng.IntN(2), 2, false} // one address for all of them
	case n < 900:
		return shape{1, 2 + w.rng.IntN(2), 2 + w.rng.IntN(3), 4, false}
	}
	return shape{2, 1 + w.rng.IntN(3), 1 + w.rng.IntN(3), 3, false}
}

// play runs the schedule: a while with accidents, then without, until all is as
// it is wished.
func (w *world) play() {
	s := w.shape()
	for i := range s.gateways {
		w.gateways = append(w.gateways, w.newGateway(i, s.networks, s.room))
	}
	for i := range s.nodes {
		w.nodes = append(w.nodes, w.newNode(i, s.roams))
	}
	for _, g := range w.gateways {
		g.h.boots()
	}
	for _, n := range w.nodes {
		w.after(w.between(0, 2*time.Second), n.h.again)
	}
	w.run(w.between(0, 5*time.Second))
	for range 3 + w.rng.IntN(10+s.nodes) {
		w.happens()
		if s.roams && w.chance(3) {
			w.drain()
		}
		w.run(w.now + w.pause())
	}
	w.heal()
	w.settle()
	if w.seed%16 == 0 { // and so it stays, while lifetimes are refreshed
		w.run(w.now + 5*time.Minute)
		w.settle()
	}
}

// settle runs until all is as it is wished.
func (w *world) settle() {
	var why error
	for range 60 {
		w.run(w.now + 10*time.Second)
		if why = w.settled(); why == nil {
			return
		}
	}
	broken("quiet", "ten minutes after the last accident: %v", why)
}

// pause is the time to the next accident: often nothing, sometimes long.
func (w *world) pause() time.Duration {
	switch w.rng.IntN(6) {
	case 0:
		return 0
	case 1:
		return w.between(0, 20*time.Millisecond)
	case 2:
		return w.between(0, time.Minute)
	}
	return w.between(0, 3*time.Second)
}

// heal ends all accidents.
func (w *world) heal() {
	w.healed, w.healedAt = true, w.now
	w.logf("no accident from here on")
	for _, l := range slices.Clone(w.lines) {
		if l.slow() {
			l.cut()
		}
	}
	var hosts []*host
	for _, g := range w.gateways {
		hosts = append(hosts, g.h)
	}
	for _, n := range w.nodes {
		n.blocked = 0
		hosts = append(hosts, n.h)
	}
	for _, h := range hosts {
		h.crashIn, h.frozen, h.disk.full = 0, min(h.frozen, w.now+time.Second), false
		h.again()
	}
	for i, g := range w.gateways {
		if i == 0 || len(w.nodes[0].links) > 1 || w.chance(2) { // else it goes on to send its nodes away
			g.stays()
		}
		for _, n := range g.networks {
			g.soon(func() { g.announce(n) })
		}
	}
}

// settled says what is not yet as it has to be in the end.
func (w *world) settled() error {
	for _, g := range w.gateways {
		if err := g.settled(); err != nil {
			return err
		}
	}
	for _, n := range w.nodes {
		if len(n.h.disk.rows) != len(n.h.conns) {
			return fmt.Errorf("%s: %d connections on disk, %d in memory", n.h.name, len(n.h.disk.rows), len(n.h.conns))
		}
		for _, l := range n.links {
			for _, t := range l.tunnels {
				if err := t.settled(); err != nil {
					return err
				}
			}
		}
	}
	return w.ledgers()
}

// settled compares what a gateway has in its five places.
func (g *gateway) settled() error {
	live := map[session.ID]bool{}
	for _, p := range g.peers {
		if p.c.m.State() == session.Suspended && len(p.c.m.Sessions()) > 0 {
			return fmt.Errorf("%s: connection %08x of %s is suspended with %d sessions", g.h.name, p.c.id, p.node, len(p.c.m.Sessions()))
		}
		for _, s := range p.c.m.Sessions() {
			live[s.ID] = true
			if m := g.member(s.ID); m == nil {
				return fmt.Errorf("%s: session %v of %s is not in the data plane", g.h.name, s.ID, p.node)
			}
			if !slices.Equal(s.Routes, g.network(s.Network).routes) {
				return fmt.Errorf("%s: session %v has routes %v, the network %v", g.h.name, s.ID, s.Routes, g.network(s.Network).routes)
			}
		}
	}
	for _, m := range g.members {
		if !live[m.id] {
			return fmt.Errorf("%s: member %v of %s has no session", g.h.name, m.id, m.p.node)
		}
		if m.open && g.h.disk.revoked[m.p.nodeID] {
			return fmt.Errorf("%s: gate of %v is open, its node %s is revoked", g.h.name, m.id, m.p.node)
		}
	}
	for _, n := range g.networks {
		for _, l := range n.pool.Leases() {
			if m := g.member(l.Session); m == nil || !live[l.Session] || !slices.Equal(l.Addresses, m.addresses) {
				return fmt.Errorf("%s: %v is leased to %v, which is no session, or has others", g.h.name, l.Addresses, l.Session)
			}
		}
	}
	for _, r := range g.h.disk.rows {
		if !slices.ContainsFunc(g.peers, func(p *peer) bool { return p.c.id == r.id }) {
			return fmt.Errorf("%s: connection %08x is on disk and not in memory", g.h.name, r.id)
		}
		for _, s := range r.rec.Sessions {
			if !live[s.ID] {
				return fmt.Errorf("%s: session %v is on disk and not in memory", g.h.name, s.ID)
			}
		}
	}
	return nil
}

// settled says whether a tunnel has what it wants, or knows why not.
func (t *tunnel) settled() error {
	n := 0
	for _, g := range t.l.gateways {
		for _, m := range g.members {
			if m.p.nodeID != t.l.n.h.id || m.n.name != t.network {
				continue
			}
			if n++; t.session == nil || t.session.ID != m.id {
				return fmt.Errorf("tunnel %s of %s and %s speak of different sessions", t.label, t.l.n.h.name, g.h.name)
			}
			if g.drain != nil && t.l.elsewhere(g) != nil {
				return fmt.Errorf("tunnel %s of %s is with %s, which sends it to %s", t.label, t.l.n.h.name, g.h.name, t.l.elsewhere(g).h.name)
			}
		}
	}
	if t.session != nil {
		if n != 1 || t.state != session.Established {
			return fmt.Errorf("tunnel %s of %s is %v with %d sessions at the gateway", t.label, t.l.n.h.name, t.state, n)
		}
		if !t.wanted {
			return fmt.Errorf("tunnel %s of %s is down and has a session", t.label, t.l.n.h.name)
		}
		return nil
	}
	if n > 0 {
		return fmt.Errorf("tunnel %s of %s is %v with %d sessions at the gateway", t.label, t.l.n.h.name, t.state, n)
	}
	if t.wanted && !t.excused() {
		return fmt.Errorf("tunnel %s of %s is %v, given up %v, cause %v", t.label, t.l.n.h.name, t.state, t.givenUp, t.cause)
	}
	return nil
}

// excused reports whether there is a reason for a wanted tunnel to be down.
func (t *tunnel) excused() bool {
	id := t.l.n.h.id
	return slices.ContainsFunc(t.l.gateways, func(g *gateway) bool {
		return g.h.disk.revoked[id] || !slices.Contains(g.h.disk.rights[id], t.network)
	}) || t.cause == wire.CauseDraining && t.l.c != nil && len(t.l.c.m.Sessions()) > 0 || // beside one that is not given up
		t.givenUp && (t.cause == wire.CauseNetworkRight || t.cause == wire.CauseReplaced || t.cause == wire.CauseIdle) ||
		t.cause == wire.CausePoolExhausted
}

// ledgers checks P7: of every session that ever was on disk there is the one
// end, or the session.
func (w *world) ledgers() error {
	for _, g := range w.gateways {
		on := map[session.ID]*control.Record{}
		for _, r := range g.h.disk.rows {
			for _, s := range r.rec.Sessions {
				if on[s.ID] != nil {
					broken("P7", "%s has session %v twice on disk", g.h.name, s.ID)
				}
				on[s.ID] = r.rec
			}
		}
		for id := range g.h.disk.ended {
			if on[id] != nil {
				broken("P7", "%s has an end of session %v, which lives", g.h.name, id)
			}
		}
		for id, l := range w.ghost.sessions {
			if l.gateway == g && l.up && !l.lost && on[id] == nil && !g.h.disk.ended[id] {
				broken("P7", "session %v of %s was up and has no end in the record", id, l.node)
			}
		}
	}
	return nil
}
