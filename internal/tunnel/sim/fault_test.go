package sim

import (
	"slices"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// happening is a kind of accident or wish, with how often it comes.
type happening struct {
	weight int
	fn     func(*world)
}

var happenings = []happening{
	{14, (*world).cutOne},
	{6, (*world).cutHost},
	{8, (*world).killLater},
	{4, (*world).killNow},
	{3, (*world).restart},
	{3, (*world).freeze},
	{3, (*world).setClock},
	{5, (*world).fillDisk},
	{4, (*world).block},
	{8, (*world).redialOne},
	{4, (*world).duplicate},
	{10, (*world).toggle},
	{6, (*world).kill},
	{1, (*world).revokeOne},
	{2, (*world).changeRights},
	{5, (*world).changeRoutes},
	{3, (*world).renew},
	{2, (*world).trouble},
	{6, (*world).rekey},
	{6, (*world).hold},
	{2, (*world).relimit},
	{6, (*world).offer},
	{3, (*world).extend},
	{6, (*world).steal},
	{1, (*world).forgetful},
	{1, (*world).wipe},
	{2, (*world).loseState},
	{4, (*world).drain},
	{1, (*world).ring},
}

// happens does one of them.
func (w *world) happens() {
	sum := 0
	for _, h := range happenings {
		sum += h.weight
	}
	n := w.rng.IntN(sum)
	for _, h := range happenings {
		if n -= h.weight; n < 0 {
			h.fn(w)
			return
		}
	}
}

func (w *world) anyNode() *node       { return w.nodes[w.rng.IntN(len(w.nodes))] }
func (w *world) anyGateway() *gateway { return w.gateways[w.rng.IntN(len(w.gateways))] }

func (w *world) anyHost() *host {
	if w.chance(2) {
		return w.anyNode().h
	}
	return w.anyGateway().h
}

func (w *world) anyLink() *link {
	n := w.anyNode()
	return n.links[w.rng.IntN(len(n.links))]
}

func (w *world) anyTunnel() *tunnel {
	l := w.anyLink()
	return l.tunnels[w.rng.IntN(len(l.tunnels))]
}

func (w *world) cutOne() {
	if len(w.lines) > 0 {
		w.lines[w.rng.IntN(len(w.lines))].cut()
	}
}

// cutHost takes a host off the network for a moment.
func (w *world) cutHost() {
	h := w.anyHost()
	for _, l := range slices.Clone(w.lines) {
		if l.ends[0].h == h || l.ends[1].h == h {
			l.cut()
		}
	}
}

// killLater kills a daemon after some more actions, wherever that is.
func (w *world) killLater() {
	if h := w.anyHost(); h.up && h.crashIn == 0 {
		h.crashIn = 1 + w.rng.IntN(25)
	}
}

func (w *world) killNow() { w.anyHost().dies(w.chance(2)) }

// restart is SIGTERM: transports are taken from the machines first.
func (w *world) restart() {
	h := w.anyHost()
	if !h.up || h.frozen > w.now {
		return
	}
	w.logf("%s stops in order", h.name)
	for _, c := range slices.Clone(h.conns) {
		for _, e := range slices.Clone(c.ends) {
			if c.idle() {
				c.do(control.Detached{Transport: e.l.id, At: h.wall(), Err: errCut})
			}
		}
	}
	h.dies(true)
}

// freeze stops a daemon for a while.
func (w *world) freeze() {
	h := w.anyHost()
	d := w.between(time.Second, 2*time.Minute)
	h.frozen = max(h.frozen, w.now+d)
	w.logf("%s is frozen until %v", h.name, h.frozen)
	for _, c := range h.conns {
		if c.suspended >= 0 {
			c.slack += d
		}
	}
}

// setClock sets the wall clock of a host.
func (w *world) setClock() {
	h := w.anyHost()
	h.offset += w.between(-2*time.Hour, 2*time.Hour)
	h.stepped = true
	w.stats.clocks++
	w.logf("%s: clock set to %v", h.name, h.wall())
}

func (w *world) fillDisk() {
	h := w.anyHost()
	if h.disk.full {
		return
	}
	h.disk.full = true
	w.logf("%s: disk is full", h.name)
	w.after(w.between(10*time.Millisecond, 15*time.Second), func() { h.disk.full = false })
}

// block leaves a node without a way to its gateways; nobody is told.
func (w *world) block() {
	n := w.anyNode()
	n.blocked = w.now + w.between(time.Second, 4*time.Minute)
	w.logf("%s: no way until %v", n.h.name, n.blocked)
	for _, l := range slices.Clone(w.lines) {
		if l.ends[0].h == n.h {
			l.cut()
		}
	}
}

// redialOne is a change of a node's network.
func (w *world) redialOne() {
	if l := w.anyLink(); l.n.h.runs() && l.c != nil {
		l.redial, l.failures = true, 0
		l.nudge()
	}
}

// duplicate gives a connection one more transport beside whatever it has.
func (w *world) duplicate() {
	l := w.anyLink()
	g := l.home()
	if len(l.gateways) == 1 {
		g = l.gateways[0]
	}
	if g != nil && l.n.h.runs() && l.c != nil && !l.c.dead && g.h.runs() && !g.h.disk.revoked[l.n.h.id] && l.n.blocked < w.now {
		w.logf("%s: one more transport", l.n.h.name)
		l.attach(g)
	}
}

func (w *world) toggle() {
	if t := w.anyTunnel(); t.l.n.h.runs() {
		t.want(!t.wanted)
	}
}

// kill is `tunnelctl session kill`, at either end.
func (w *world) kill() {
	res := administrative(wire.CauseAdministrator)
	if g := w.anyGateway(); w.chance(2) && g.h.runs() && len(g.members) > 0 {
		m := g.members[w.rng.IntN(len(g.members))]
		m.p.c.do(control.CloseSession{LocalID: m.local, Result: res})
		return
	}
	if t := w.anyTunnel(); t.l.n.h.runs() && t.session != nil && t.l.c != nil {
		t.l.c.do(control.CloseSession{LocalID: t.session.LocalID, Result: res})
	}
}

func (w *world) revokeOne() {
	if g := w.anyGateway(); g.h.runs() {
		g.revoke(w.anyNode().h.id)
	}
}

func (w *world) changeRights() {
	g, n := w.anyGateway(), w.anyNode()
	var left []string
	for _, net := range g.networks {
		if !w.chance(2) {
			left = append(left, net.name)
		}
	}
	if g.h.runs() {
		g.h.disk.commit(func() error { g.h.disk.rights[n.h.id] = left; return nil })
		w.logf("%s: rights of %s are now %v", g.h.name, n.h.name, left)
	}
}

func (w *world) changeRoutes() {
	g := w.anyGateway()
	n := g.networks[w.rng.IntN(len(g.networks))]
	n.reroute(w.rng.IntN(1 << 16))
	if g.h.runs() {
		g.announce(n)
	}
}

func (w *world) renew() {
	if l := w.anyLink(); l.n.h.runs() && l.c != nil {
		l.c.do(control.RenewCertificate{RequestID: w.newID(), CSR: []byte("request")})
	}
}

func (w *world) trouble() {
	if t := w.anyTunnel(); t.l.n.h.runs() && t.l.c != nil && t.session != nil {
		t.l.c.do(control.ReportTrouble{LocalID: t.session.LocalID, Errors: wire.CircuitErrors{}})
	}
}

func (w *world) rekey() {
	if t := w.anyTunnel(); t.l.n.h.runs() && t.l.c != nil && t.session != nil {
		t.l.c.do(control.StartRekey{LocalID: t.session.LocalID})
	}
}

// hold is `tunnelctl suspend` and `tunnelctl resume`.
func (w *world) hold() {
	if t := w.anyTunnel(); t.l.n.h.runs() && t.l.c != nil && t.session != nil {
		held := w.chance(2)
		t.l.c.do(control.HoldSession{LocalID: t.session.LocalID, Held: held})
		if w.chance(2) { // and thinks better of it
			w.after(w.between(0, 10*time.Second), func() {
				if t.l.n.h.runs() && t.l.c != nil && t.session != nil {
					t.l.c.do(control.HoldSession{LocalID: t.session.LocalID, Held: !held})
				}
			})
		}
	}
}

// forgetful restarts a host that has lost one session, which RFC 4951, section
// 4 is for: the ends find out and agree.
func (w *world) forgetful() {
	h := w.anyHost()
	h.dies(w.chance(2))
	h.life++ // what was written and not synced is lost
	for i := range h.disk.rows {
		r := &h.disk.rows[i]
		rec := r.load()
		at := slices.IndexFunc(rec.Sessions, func(s control.Session) bool { return s.State == session.Established })
		if at < 0 || len(rec.Unacked) > 0 { // what is on its way would bring it back
			continue
		}
		lost := rec.Sessions[at].ID
		rec.Sessions = slices.Delete(rec.Sessions, at, at+1)
		w.ghost.doom(lost, "lost by "+h.name)
		for _, g := range w.gateways {
			if g.h == h {
				(&peer{g: g, c: &conn{id: r.id}, node: rec.PeerName}).ledger(rec.Sessions)
			}
		}
		h.disk.put(r.id, r.link, rec)
		w.logf("%s has lost session %v", h.name, lost)
		return
	}
}

// wipe takes a node's state away; its identity remains.
func (w *world) wipe() {
	n := w.anyNode()
	n.h.dies(w.chance(2))
	n.h.life++
	for _, r := range n.h.disk.rows {
		for _, s := range r.rec.Sessions {
			w.ghost.doom(s.ID, "lost by "+n.h.name)
		}
	}
	n.h.disk.rows = nil
	w.logf("%s has lost its state", n.h.name)
}

// steal copies what a node has of a connection, and tries later to go on with it.
func (w *world) steal() {
	l := w.anyLink()
	if len(l.n.h.disk.rows) == 0 {
		return
	}
	r := l.n.h.disk.rows[w.rng.IntN(len(l.n.h.disk.rows))]
	if r.link != l.key {
		return
	}
	w.logf("state of %s is stolen: connection %08x, generation %d, attempt %d", l.n.h.name, r.id, r.rec.Generation, r.rec.Attempt)
	w.after(w.between(time.Second, 90*time.Second), func() { w.tryStolen(l, r) })
}

// tryStolen dials with stolen state: as it is, or dressed up as what the
// gateway expects now.
func (w *world) tryStolen(l *link, r row) {
	i := slices.IndexFunc(l.gateways, func(g *gateway) bool { return g.h.id == r.rec.PeerID })
	if i < 0 {
		return // it was not set up
	}
	g := l.gateways[i]
	at := g.h.disk.record(r.rec.RemoteID)
	if !g.h.runs() || at == nil || l.n.blocked > w.now {
		return
	}
	rec := r.load()
	if at.Generation <= rec.Generation && at.Attempt <= rec.Attempt {
		return // nothing is spent yet: whoever comes first has it, which would be a clone
	}
	h := &host{w: w, name: l.n.h.name, id: l.n.h.id, key: l.n.h.key, up: true, boot: w.newID(), disk: newDisk()}
	h.starts, h.stops = func() {}, func() {}
	h.stolen = "a proof that was used before"
	if at.Generation > rec.Generation && w.chance(2) {
		h.stolen = "a proof under a key that is spent"
		rec.Generation, rec.Attempt, rec.Ns, rec.Nr, rec.PeerBootID = at.Generation, at.Attempt+100, at.Nr, at.Ns, g.h.boot
		rec.Unacked = nil
	} else if at.Generation == rec.Generation {
		rec.Attempt = min(rec.Attempt, at.Attempt-1) // a machine counts before it tries
	}
	w.stats.thefts++
	w.logf("a thief comes with connection %08x of %s: %s", r.id, l.n.h.name, h.stolen)
	c := w.newConn(h, control.Initiator, r.id, "", nil)
	c.stolen = true
	c.hd = &thief{disk: h.disk, c: c}
	c.restored(rec, time.Hour)
	c.attach(w.connect(h, g.h, g.control).ends[0], nil)
}

// thief keeps a journal and wants nothing else (control.Handler).
type thief struct {
	*linkConn
	disk *disk
	c    *conn
}

// Save makes the record durable.
func (t *thief) Save(r *control.Record) error { return t.disk.put(t.c.id, "", r) }

// Forget removes the record.
func (t *thief) Forget() error { t.disk.remove(t.c.id); return nil }

// Notify is of no interest.
func (t *thief) Notify(control.Action) {}
