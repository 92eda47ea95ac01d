package sim

import (
	"crypto/ecdh"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/life"
	"tunneld/internal/tunnel/pool"
	"tunneld/internal/tunnel/redirect"
)

// gateway decides as the gateway of internal/tunnel does.
type gateway struct {
	w        *world
	h        *host
	networks []*network
	peers    []*peer
	members  []*member
	looked   time.Duration   // when it looked at lives last
	drain    *redirect.Drain // nil: it stays

	book       *book
	rebuilding map[session.ID]string // granted by a ticket, and not set up yet
}

// network is one of a gateway's; the pool is the real one.
type network struct {
	name    string
	pools   []netip.Prefix
	cooloff time.Duration
	timers  wire.Timers
	private secret.Value
	public  [32]byte
	pool    *pool.Pool
	all     []netip.Addr // every address it can lease, of the first family
	routes  []netip.Prefix
	terms   wire.Lifetime
	extend  time.Duration
	policy  life.Policy
}

// peer is a node's control connection (control.Handler).
type peer struct {
	g       *gateway
	c       *conn
	node    string
	nodeID  session.ID
	serial  uint64
	proven  life.Instant // when it was proved last who the node is; 0: not in this life of the daemon
	leaveAt time.Time    // when its node should leave a gateway that goes
	rests   []rested     // addresses given back, and not on disk yet
}

// member is a session that has its addresses and a place in the data plane.
type member struct {
	id        session.ID
	n         *network
	p         *peer
	local     uint32
	open      bool
	addresses []netip.Addr
	offer     *control.Offer // of other addresses, not answered

	life    life.Life
	hard    life.Instant // when the data plane stops it
	held    bool
	packets uint64
	cause   wire.Cause // of its end, once its time is over
}

func (w *world) keyPair() (secret.Value, [32]byte) {
	var raw [32]byte
	w.Read(raw[:])
	k, err := ecdh.X25519().NewPrivateKey(raw[:])
	if err != nil {
		panic(err) // 32 octets are a key
	}
	return secret.New(raw[:]), [32]byte(k.PublicKey().Bytes())
}

func (w *world) newGateway(i, networks, room int) *gateway {
	g := &gateway{w: w, h: w.newHost(fmt.Sprintf("gateway%d", i)), book: newBook()}
	for j := range networks {
		n := &network{
			name: fmt.Sprintf("net%d", j), cooloff: w.between(10*time.Second, 2*time.Minute),
			timers: wire.Timers{Hello: w.between(4*time.Second, 15*time.Second).Truncate(time.Second), Misses: uint16(2 + w.rng.IntN(2)), Grace: w.between(20*time.Second, 3*time.Minute).Truncate(time.Second)},
		}
		n.pools = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(j), 0}), 32-room)}
		if w.chance(2) {
			n.pools = append(n.pools, netip.MustParsePrefix(fmt.Sprintf("fd77:%d:%d::/64", i, j)))
		}
		n.private, n.public = w.keyPair()
		n.reroute(0)
		n.timed(w)
		for a := n.pools[0].Addr().Next().Next(); n.pools[0].Contains(a.Next()); a = a.Next() {
			n.all = append(n.all, a)
		}
		g.networks = append(g.networks, n)
	}
	g.h.starts, g.h.stops = g.starts, g.stops
	return g
}

// reroute gives the network its i-th set of routes.
func (n *network) reroute(i int) {
	n.routes = append(slices.Clone(n.pools), netip.PrefixFrom(netip.AddrFrom4([4]byte{192, byte(i >> 8), byte(i), 0}), 24))
}

// starts restores what the disk has.
func (g *gateway) starts() {
	for _, n := range g.networks {
		p, err := pool.New(n.pools, n.cooloff)
		if err != nil {
			panic(err) // the prefixes are ours
		}
		n.pool = p
	}
	g.rebuilding, g.drain = map[session.ID]string{}, nil
	g.w.ghost.restarted(g)
	var orphans []func()
	for _, r := range slices.Clone(g.h.disk.rows) {
		rec := r.load()
		p := &peer{g: g, node: rec.PeerName, nodeID: rec.PeerID}
		for _, s := range rec.Sessions {
			if s.ID.IsZero() {
				continue
			}
			m := g.newMember(p, s)
			m.open = true
			if g.h.disk.holders[s.Network+"/"+s.Addresses[0].String()] != s.ID { // replaced, and not closed yet
				g.w.ghost.orphaned(g, s.ID, nil)
				g.forgetMember(m)
				orphans = append(orphans, func() { p.c.do(control.CloseSession{LocalID: s.LocalID, Result: administrative(wire.CauseReplaced)}) })
				continue
			}
			if err := m.n.pool.Restore(pool.Lease{Session: s.ID, Owner: p.node, Addresses: s.Addresses}); err != nil {
				g.w.ghost.orphaned(g, s.ID, err)
				g.forgetMember(m)
				orphans = append(orphans, func() {
					p.c.do(control.CloseSession{LocalID: s.LocalID, Result: administrative(wire.CauseConfiguration)})
				})
				continue
			}
			g.restoreOffer(m, s)
		}
		p.c = g.w.newConn(g.h, control.Responder, r.id, "", p)
		p.c.done = func() { g.forgetPeer(p) }
		g.peers = append(g.peers, p)
		for _, m := range p.members() {
			m.restore(g.h.graceLeft(rec))
		}
		p.c.restored(rec, g.h.graceLeft(rec))
	}
	for _, n := range g.networks {
		var rests []pool.Rest
		for _, a := range n.all {
			if r, ok := g.h.disk.rests[n.name+"/"+a.String()]; ok {
				rests = append(rests, r.Rest)
			}
		}
		n.pool.RestoreRests(rests, g.h.wall())
	}
	for _, o := range orphans {
		o()
	}
	g.cutRevoked()
	g.looks(1)
}

// graceLeft is that of internal/tunnel.
func (h *host) graceLeft(r *control.Record) time.Duration {
	if r.SuspendedAt.IsZero() {
		return r.Timers.Grace
	}
	return max(0, min(r.Timers.Grace, r.Timers.Grace-h.wall().Sub(r.SuspendedAt)))
}

func (g *gateway) stops() { g.peers, g.members = nil, nil }

func (g *gateway) network(name string) *network {
	for _, n := range g.networks {
		if n.name == name {
			return n
		}
	}
	return nil
}

func (g *gateway) forgetPeer(p *peer) {
	g.peers = slices.DeleteFunc(g.peers, func(o *peer) bool { return o == p })
}

func (g *gateway) forgetMember(m *member) {
	g.members = slices.DeleteFunc(g.members, func(o *member) bool { return o == m })
}

func (g *gateway) newMember(p *peer, s control.Session) *member {
	m := &member{id: s.ID, n: g.network(s.Network), p: p, local: s.LocalID, addresses: s.Addresses}
	g.members = append(g.members, m)
	m.begin(s)
	return m
}

// soon is a chore: not now, and not if the daemon is gone by then.
func (g *gateway) soon(fn func()) { g.h.after(g.w.between(0, 300*time.Millisecond), fn) }

// control takes the first message of a transport.
func (g *gateway) control(e *end, first *wire.Packet) {
	q, ok := first.Message.(*wire.SCCRQ)
	if !ok {
		e.drop() // a node that could not write down its attempt sends StopCCN alone
		return
	}
	if r := g.drain.Refuses(wire.StopError, q.Recovery != nil); r != nil {
		if q.Recovery != nil {
			broken("drain", "%s is about to go and refuses the resume of %s", g.h.name, e.peer().h.name)
		}
		g.refuse(e, first, *r, g.drain.To...)
		return
	}
	p := g.connFor(q, e.peer().h)
	if p == nil {
		res := wire.Result{Code: wire.StopError, Error: wire.ErrorResources, Cause: wire.CauseBusy}
		if q.Recovery != nil {
			res = wire.Result{Code: wire.StopError, Error: wire.ErrorNoConnection, Cause: wire.CauseUnknownResume}
		}
		g.refuse(e, first, res)
		return
	}
	p.c.attach(e, first)
}

func (g *gateway) connFor(q *wire.SCCRQ, from *host) *peer {
	if q.Recovery != nil {
		for _, p := range g.peers {
			if p.c.id == q.Recovery.RemoteID && p.nodeID == from.id {
				return p
			}
		}
		return nil
	}
	n := 0
	for _, p := range g.peers {
		if p.nodeID == from.id {
			n++
		}
	}
	if n >= 16 {
		return nil
	}
	p := &peer{g: g, node: from.name, nodeID: from.id}
	p.c = g.w.newConn(g.h, control.Responder, g.freeID(), "", p)
	p.c.done = func() { g.forgetPeer(p) }
	p.c.begins()
	g.peers = append(g.peers, p)
	return p
}

func (g *gateway) freeID() uint32 {
	for {
		id := g.w.rng.Uint32()
		if id != 0 && !slices.ContainsFunc(g.peers, func(p *peer) bool { return p.c.id == id }) {
			return id
		}
	}
}

// Save makes the record durable, with the ends of the sessions that are no more
// in it.
func (p *peer) Save(rec *control.Record) error {
	d := p.g.h.disk
	return d.commit(func() error {
		if p.serial != d.serial && d.revoked[p.nodeID] {
			return &control.Denied{Result: wire.Result{Code: wire.StopNotAuthorized, Cause: wire.CauseRevoked}, Err: fmt.Errorf("node %q is revoked", p.node)}
		}
		p.ledger(rec.Sessions)
		p.writeRests()
		for _, s := range rec.Sessions {
			p.g.w.ghost.written(&s)
			if !s.ID.IsZero() {
				p.holds(s)
			}
			if !s.ID.IsZero() && !d.known(p.c.id, s.ID) {
				l := p.g.w.ghost.sessions[s.ID]
				l.durable, l.lost = true, false
			}
			if l := p.g.w.ghost.sessions[s.ID]; l != nil { // it may be killed before it is told
				l.extended = max(l.extended, s.Extended)
			}
		}
		return d.put(p.c.id, "", rec)
	})
}

// holds notes whose an address is that a session has from now on.
func (p *peer) holds(s control.Session) {
	d := p.g.h.disk
	if old := d.record(p.c.id); old != nil && slices.ContainsFunc(old.Sessions, func(o control.Session) bool {
		return o.ID == s.ID && slices.Equal(o.Addresses, s.Addresses)
	}) {
		return
	}
	d.holders[s.Network+"/"+s.Addresses[0].String()] = s.ID
}

// Forget removes the record; what was in it has ended.
func (p *peer) Forget() error {
	d := p.g.h.disk
	return d.commit(func() error {
		p.ledger(nil)
		p.writeRests()
		d.remove(p.c.id)
		return nil
	})
}

// ledger enters the ends of the sessions that the disk has and that are not in
// left.
func (p *peer) ledger(left []control.Session) {
	d := p.g.h.disk
	old := d.record(p.c.id)
	if old == nil {
		return
	}
	for _, s := range old.Sessions {
		if s.ID.IsZero() || slices.ContainsFunc(left, func(t control.Session) bool { return t.ID == s.ID }) {
			continue
		}
		p.g.w.ghost.gone(p.c, s.ID, d.ended[s.ID])
		d.ended[s.ID], p.g.book.ended[s.ID] = true, true
		if d.holders[s.Network+"/"+s.Addresses[0].String()] != s.ID {
			continue // replaced: the address is in use again
		}
		d.rests[s.Network+"/"+s.Addresses[0].String()] = rested{s.Network, pool.Rest{Owner: p.node, Addresses: s.Addresses, FreedAt: p.g.h.wall()}}
	}
}

// Authorize admits a node that is not revoked.
func (p *peer) Authorize(a control.AskAuthorize) *wire.Result {
	d := p.g.h.disk
	if d.revoked[a.Binding.PeerID] {
		return &wire.Result{Code: wire.StopNotAuthorized, Cause: wire.CauseRevoked}
	}
	p.serial = d.serial // of a look that found no fault: Save looks again where there was a later one
	p.c.wanted[a.Transport] = true
	if a.Resume {
		p.g.soon(p.recheck)
	}
	return nil
}

// recheck closes the sessions that the node has no right to any more.
func (p *peer) recheck() {
	if p.c.dead || p.g.h.disk.revoked[p.nodeID] {
		return
	}
	for _, s := range p.c.m.Sessions() {
		if !p.may(s.Network) {
			p.c.do(control.CloseSession{LocalID: s.LocalID, Result: administrative(wire.CauseNetworkRight)})
		}
	}
}

func (p *peer) may(network string) bool {
	return slices.Contains(p.g.h.disk.rights[p.nodeID], network)
}

func administrative(c wire.Cause) wire.Result {
	return wire.Result{Code: wire.CDNAdministrative, Cause: c}
}

func refusal(c wire.Cause) *wire.Result {
	r := administrative(c)
	return &r
}

// Grant decides about a session.
func (p *peer) Grant(a control.AskSession) (control.Grant, *wire.Result) {
	g := p.g
	n := g.network(a.Request.RemoteEnd)
	if n == nil {
		return control.Grant{}, refusal(wire.CauseUnknownNetwork)
	}
	if g.h.disk.revoked[p.nodeID] {
		return control.Grant{}, refusal(wire.CauseRevoked)
	}
	if len(a.Request.Ticket) > 0 {
		return p.rebuild(a.Request)
	}
	p.serial = g.h.disk.serial
	if r := g.drain.Refuses(wire.CDNNoFacilities, false); r != nil {
		return control.Grant{}, r
	}
	expires, r := n.policy.Answer(a.Request.Expires)
	if r != nil {
		return control.Grant{}, r
	}
	g.replace(n, p)
	if !p.may(n.name) {
		return control.Grant{}, refusal(wire.CauseNetworkRight)
	}
	if r := n.terms.Reauth; r > 0 && g.w.instant().Since(p.proven) >= r {
		return control.Grant{}, refusal(wire.CauseReauth)
	}
	id := g.w.newID()
	l, err := n.pool.Lease(id, p.node, g.h.wall())
	if err != nil {
		return control.Grant{}, &wire.Result{Code: wire.CDNNoFacilities, Error: wire.ErrorResources, Cause: wire.CausePoolExhausted}
	}
	g.w.ghost.granted(g, n, id, p.node, l.Addresses, a.Request.PublicKey)
	grant := g.grant(n, id, l.Addresses)
	grant.Expires = expires
	return grant, nil
}

// grant is what a session with these addresses gets.
func (g *gateway) grant(n *network, id session.ID, addresses []netip.Addr) control.Grant {
	var peers []netip.Addr
	for _, a := range n.pool.Gateway() {
		peers = append(peers, a.Addr())
	}
	return control.Grant{ID: id, PrivateKey: n.private, PublicKey: n.public, Addresses: addresses, Peers: peers,
		Routes: n.routes, MTU: 1420, Timers: n.timers, Lifetime: n.terms, Began: g.h.wall()}
}

// replace makes room for a node's new session.
func (g *gateway) replace(n *network, p *peer) {
	for _, m := range slices.Clone(g.members) {
		if m.n != n || m.p.nodeID != p.nodeID || m.p == p {
			continue
		}
		g.w.ghost.doom(m.id, "replaced")
		g.drop(m, "replaced")
		g.soon(func() {
			m.p.c.do(control.CloseSession{LocalID: m.local, Result: administrative(wire.CauseReplaced)})
		})
	}
}

// SetUp teaches the data plane the session.
func (p *peer) SetUp(s control.Session) *wire.Result {
	p.g.w.ghost.keyed(s)
	m := p.g.newMember(p, s)
	p.g.rebuilt(s.ID)
	if !p.g.w.healed && p.g.w.chance(40) {
		p.g.w.ghost.doom(s.ID, "no data plane")
		p.g.drop(m, "no data plane")
		return &wire.Result{Code: wire.CDNNoFacilities, Error: wire.ErrorResources, Cause: wire.CauseLocal}
	}
	return nil
}

// Arm has the data plane answer with the next key.
func (p *peer) Arm(control.Session) *wire.Result {
	if p.g.h.disk.revoked[p.nodeID] || p.g.w.chance(6) {
		return refusal(wire.CauseNetworkRight)
	}
	return nil
}

// Sign renews a certificate.
func (p *peer) Sign(a control.AskSign) ([]byte, *wire.Result) {
	if p.g.h.disk.revoked[p.nodeID] {
		return nil, &wire.Result{Code: wire.StopGeneral, Cause: wire.CauseRevoked}
	}
	return append([]byte("signed "), a.CSR...), nil
}

// Notify acts upon what happened.
func (p *peer) Notify(a control.Action) {
	g := p.g
	switch a := a.(type) {
	case control.Opened:
		p.provenNow()
		g.soon(func() { g.tidy(p.nodeID) })
	case control.Resumed:
		g.w.stats.resumes++
		p.provenNow()
		for _, m := range p.members() {
			g.offerAgain(m.id)
		}
	case control.SessionRefreshed:
		g.refreshed(a.Session)
		g.offerAgain(a.Session.ID)
	case control.TermsChanged:
		g.termsChanged(a)
		g.offerAgain(a.Session.ID)
	case control.ChangeRefused:
		g.changeRefused(a)
		if a.Remote {
			g.offerAgain(a.Session.ID)
		}
	case control.WasSuspended:
		p.suspendedNow()
		if g.w.chance(3) {
			g.h.after(g.w.between(0, 20*time.Second), p.c.parks)
		}
	case control.HoldChanged:
		if m := g.member(a.Session.ID); m != nil {
			m.held = a.Session.Held
			g.w.ghost.sessions[m.id].heldAt = g.w.now
			m.life.CheckAt = 0
		}
	case control.SessionExtended:
		g.extended(a.Session)
	case control.SessionUp:
		if m := g.member(a.Session.ID); m != nil {
			m.open = true
			g.w.ghost.sessions[m.id].up = true
			g.soon(func() { g.announce(m.n) })
		}
	case control.SessionDown:
		g.w.ghost.ended(p.c, a.Session, a.Result)
		if m := g.member(a.Session.ID); m != nil {
			g.drop(m, "down")
		} else if n := g.network(a.Session.Network); n != nil {
			n.pool.Cancel(a.Session.ID)
			delete(g.rebuilding, a.Session.ID)
			g.w.ghost.release(a.Session.ID, "never set up")
		}
	}
}

func (g *gateway) member(id session.ID) *member {
	for _, m := range g.members {
		if m.id == id {
			return m
		}
	}
	return nil
}

// drop takes a session off the data plane and frees its addresses.
func (g *gateway) drop(m *member, why string) {
	g.forgetMember(m)
	g.book.ended[m.id] = true
	g.withdraw(m)
	g.rest(m, m.id, m.addresses)
	g.w.ghost.release(m.id, why)
}

// tidy ends connections of a node that are suspended and hold no session.
func (g *gateway) tidy(node session.ID) {
	for _, p := range slices.Clone(g.peers) {
		if p.nodeID == node && p.c.m.State() == session.Suspended && len(p.c.m.Sessions()) == 0 {
			p.c.do(control.Stop{Result: wire.Result{Code: wire.StopGeneral, Cause: wire.CauseReplaced}})
		}
	}
}

// announce offers the sessions of a network its routes.
func (g *gateway) announce(n *network) {
	for _, m := range slices.Clone(g.members) {
		if m.n == n {
			m.offerRoutes()
		}
	}
}

// offerRoutes offers a session the routes that it has not; its machine refuses
// where another offer is open.
func (m *member) offerRoutes() {
	for _, s := range m.p.c.m.Sessions() {
		if s.ID == m.id && m.open && !slices.Equal(s.Routes, m.n.routes) {
			m.p.c.do(control.OfferChange{LocalID: m.local, Terms: control.Terms{HasRoutes: true, Routes: m.n.routes}})
		}
	}
}

// offerAgain offers what could not be offered before.
func (g *gateway) offerAgain(id session.ID) {
	g.soon(func() {
		if m := g.member(id); m != nil && !m.p.c.dead {
			m.offerRoutes()
		}
	})
}

// revoke takes a node's rights, for good.
func (g *gateway) revoke(node session.ID) {
	d := g.h.disk
	if err := d.commit(func() error { d.revoked[node] = true; d.serial++; return nil }); err != nil {
		return
	}
	g.w.logf("%s revokes %v", g.h.name, node)
	for _, m := range g.members {
		if m.p.nodeID == node {
			m.open = false
			g.w.ghost.doom(m.id, "revoked")
		}
	}
	for _, t := range g.book.tickets { // of sessions that were lost as well
		if t.nodeID == node {
			g.w.ghost.doom(t.id, "revoked")
		}
	}
	for _, r := range d.rows {
		if r.rec.PeerID == node {
			for _, s := range r.rec.Sessions {
				g.w.ghost.doom(s.ID, "revoked")
			}
		}
	}
	g.soon(g.cutRevoked)
}

// cutRevoked stops the connections of revoked nodes.
func (g *gateway) cutRevoked() {
	for _, p := range slices.Clone(g.peers) {
		if g.h.disk.revoked[p.nodeID] {
			p.c.do(control.Stop{Result: wire.Result{Code: wire.StopNotAuthorized, Cause: wire.CauseRevoked}})
		}
	}
}

var _ control.KeyHandler = (*peer)(nil)

// extended gives a session its longer life.
func (g *gateway) extended(s control.Session) {
	m := g.member(s.ID)
	if m == nil {
		return
	}
	if s.Extended > m.n.extend {
		broken("P5", "%s lets session %v live %v longer, its network allows %v", g.h.name, s.ID, s.Extended, m.n.extend)
	}
	g.w.ghost.sessions[s.ID].extended = s.Extended
	m.life.Terms = m.n.lifetimeOf(s)
	m.deadline()
}
