package tunnel

import (
	"context"
	"crypto/x509"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tunneld/internal/auth"
	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/store"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/life"
)

// peerConn is a node's control connection at the gateway: it decides for the
// machine and keeps its journal (control.Handler).
type peerConn struct {
	g        *gateway
	id       uint32
	node     string
	nodeID   session.ID
	restored bool // it began in another process

	// waking guards conn, and is taken before gateway.mu.
	waking sync.Mutex
	conn   *control.Conn // nil: it is parked

	// Of the connection at work.
	serial     uint64       // of revocations, when its rights were last looked at
	journalled []session.ID // sessions in the record as it is on disk

	// gateway.mu guards these.
	graceTo  life.Instant // of a parked one: the end of its grace; 0: it is at work
	leaveAt  time.Time    // when its node should leave a gateway that goes
	at       netip.Addr   // where its node was last
	certTo   time.Time    // end of the node's newest certificate
	provenAt life.Instant // when its transport came to carry it

	remote     atomic.Pointer[string] // where its newest transport came from
	checkpoint atomic.Uint64          // where it stands, as journalled
}

// from is where the transport that carries the connection came from.
func (p *peerConn) from() string {
	if remote := p.remote.Load(); remote != nil {
		return *remote
	}
	return ""
}

// Save makes the record durable.
//
// A node that was revoked since its rights were last looked at gets nothing
// more: the transaction fails, and with it what it was for.
func (p *peerConn) Save(r *control.Record) error {
	ended, rests := p.endings(r.Sessions), p.rests()
	err := p.g.m.journal.saveConnection("", p.lastSeen(), r, func(tx store.Tx) error {
		if err := putEnds(tx, ended, rests); err != nil {
			return err
		}
		return auth.CheckGrant(tx, p.nodeID, p.serial)
	})
	if err == nil {
		p.saved(r.Sessions, ended)
		p.checkpoint.Store(r.Serial)
	}
	if errors.Is(err, auth.ErrRevoked) {
		return &control.Denied{Result: wire.Result{Code: wire.StopNotAuthorized, Cause: wire.CauseRevoked}, Err: err}
	}
	return err
}

// lastSeen is where its node was last.
func (p *peerConn) lastSeen() netip.Addr {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	return p.at
}

// Forget removes the record; its sessions are over.
func (p *peerConn) Forget() error {
	ended, rests := p.endings(nil), p.rests()
	err := p.g.m.journal.s.Update(func(tx store.Tx) error {
		if err := putEnds(tx, ended, rests); err != nil {
			return err
		}
		return tx.Delete(bucketConnections, connectionKey(p.id))
	})
	if err == nil {
		p.saved(nil, ended)
	}
	return err
}

// Authorize admits a node that is not revoked, for a new connection and at
// every resume alike.
func (p *peerConn) Authorize(a control.AskAuthorize) *wire.Result {
	serial := p.g.registry.RevocationSerial()
	if _, _, ok := p.g.registry.Rights(a.Binding.PeerID); !ok && !p.g.registry.Stranger(a.Binding.PeerID) {
		return &wire.Result{Code: wire.StopNotAuthorized, Cause: wire.CauseRevoked}
	}
	p.serial = serial
	if a.Resume {
		p.g.m.chores.add("rights "+connectionKey(p.id), p.recheck)
	}
	return nil
}

// recheck closes the sessions of a resumed connection that its node has no
// right to any more.
func (p *peerConn) recheck(ctx context.Context) {
	networks, advertise, ok := p.g.registry.Rights(p.nodeID)
	if !ok {
		return // revoked: all of it is being cut
	}
	v, err := p.View()
	if err != nil {
		return
	}
	for _, s := range v.Sessions {
		lost := !slices.Contains(networks, s.Network)
		for _, a := range s.Advertise {
			lost = lost || !slices.ContainsFunc(advertise, func(g prefix) bool { return covers(g, a) })
		}
		if lost {
			p.Do(ctx, control.CloseSession{LocalID: s.LocalID, Result: *refusal(wire.CauseNetworkRight,
				"node %q has lost its right to network %q", p.node, s.Network)})
		}
	}
}

// Grant decides about a session.
func (p *peerConn) Grant(a control.AskSession) (control.Grant, *wire.Result) {
	g := p.g
	n := g.network(a.Request.RemoteEnd)
	if n == nil {
		return control.Grant{}, refusal(wire.CauseUnknownNetwork, "there is no network %q here", a.Request.RemoteEnd)
	}
	grant, r := p.grant(n, a.Request)
	if r != nil {
		g.m.log.Warn("session refused", event.KeyNode, p.node, event.KeyNetwork, a.Request.RemoteEnd, event.KeyCause, r.Describe(wire.TypeCDN), event.Request(a.Request.RequestID))
		g.m.publish(event.Event{Kind: event.SessionRefused, Node: p.node, Network: a.Request.RemoteEnd, Cause: r.Describe(wire.TypeCDN), Request: a.Request.RequestID})
		return grant, r
	}
	for i := range a.Request.Advertise { // its own prefixes are no routes for it
		grant.Routes = slices.DeleteFunc(grant.Routes, func(r prefix) bool { return r == a.Request.Advertise[i] })
	}
	return grant, nil
}

// grant gives a new session, or one that is rebuilt.
func (p *peerConn) grant(n *network, q *wire.ICRQ) (control.Grant, *wire.Result) {
	g := p.g
	if g.m.unwritable() != nil {
		return control.Grant{}, &wire.Result{Code: wire.CDNNoFacilities, Error: wire.ErrorResources, Cause: wire.CauseStore}
	}
	if len(q.Ticket) > 0 {
		return p.rebuild(q)
	}
	serial := g.registry.RevocationSerial()
	networks, advertise, ok := g.registry.Rights(p.nodeID)
	switch {
	case g.registry.Stranger(p.nodeID):
		return control.Grant{}, &wire.Result{Code: wire.CDNNoFacilities, Error: wire.ErrorVendor, Cause: wire.CauseLocal, Text: "the gateway has lost its book of nodes"}
	case !ok:
		return control.Grant{}, refusal(wire.CauseRevoked, "node %q is revoked", p.node)
	}
	p.serial = serial
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.drain.Refuses(wire.CDNNoFacilities, false); r != nil {
		return control.Grant{}, r
	}
	if r := n.admitLocked(p, q, networks, advertise); r != nil {
		return control.Grant{}, r
	}
	g.replaceLocked(n, p)
	return n.grantLocked(p, q)
}

// replaceLocked makes room for a node's new session: the one it had in that
// network under another connection is of a node that lost its state.
func (g *gateway) replaceLocked(n *network, p *peerConn) {
	for _, mb := range g.members.byNode.list(p.nodeID) {
		if mb.network != n || mb.conn == p {
			continue
		}
		old := mb.conn
		g.dropLocked(mb, event.Event{Cause: "replaced by a new session of the same node"})
		g.m.chores.add("replaced "+mb.id.String(), func(ctx context.Context) {
			old.Do(ctx, control.CloseSession{LocalID: mb.local, Result: *refusal(wire.CauseReplaced, "replaced by a new session")})
		})
	}
}

// SetUp teaches the data plane the session, in quarantine until ICCN: the node
// starts its handshake at the same moment as it sends that, and what comes
// first must not be refused.
func (p *peerConn) SetUp(s control.Session) *wire.Result {
	g := p.g
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.network(s.Network)
	mb := g.newMember(n, p, s)
	mb.state = session.WaitConnect
	g.rebuiltLocked(mb)
	if err := n.dev.Add(mb.engineSession(engine.Quarantined)); err != nil {
		g.m.log.Error("session has no data plane", event.KeySession, s.ID, event.KeyErr, err)
		g.dropLocked(mb, event.Event{Cause: "no data plane", Request: s.RequestID})
		return &wire.Result{Code: wire.CDNNoFacilities, Error: wire.ErrorResources, Cause: wire.CauseLocal, Text: "the gateway's data plane refused the session"}
	}
	return nil
}

// Sign renews the node's certificate.
func (p *peerConn) Sign(a control.AskSign) ([]byte, *wire.Result) {
	der, err := p.g.registry.Renew(auth.Peer{Deployment: p.g.registry.Deployment(), ID: p.nodeID, Name: p.node, Role: auth.Node}, a.CSR, time.Now())
	if err != nil {
		cause := wire.CauseCertificate
		if errors.Is(err, auth.ErrRevoked) {
			cause = wire.CauseRevoked
		}
		p.g.m.log.Warn("certificate not renewed", event.KeyNode, p.node, event.KeyErr, err)
		return nil, &wire.Result{Code: wire.StopGeneral, Cause: cause}
	}
	if cert, err := x509.ParseCertificate(der); err == nil {
		p.certificateTo(cert.NotAfter)
	}
	p.g.m.log.Info("certificate renewed", event.KeyNode, p.node)
	p.g.m.publish(event.Event{Kind: event.NodeRenewed, Node: p.node})
	return der, nil
}

// Notify records what happened and acts upon it.
func (p *peerConn) Notify(a control.Action) {
	g := p.g
	log := g.m.log.With(event.KeyNode, p.node)
	switch a := a.(type) {
	case control.Opened:
		log.Info("control connection established")
		p.proven(false)
		g.m.chores.add("tidy "+p.node, func(ctx context.Context) { g.tidy(ctx, p.nodeID) })
	case control.SessionUp:
		p.sessionUp(a.Session)
	case control.SessionDown:
		p.sessionDown(a)
	case control.WasSuspended:
		p.setStates(session.Suspended, event.Event{Kind: event.SessionSuspended, Cause: cause(a.Err)})
		p.suspended()
	case control.Resumed:
		p.setStates(session.Established, event.Event{Kind: event.SessionResumed, Cause: restartedCause(a.PeerRestarted), From: p.from()})
		p.proven(a.PeerRestarted)
	case control.HoldChanged:
		p.holdChanged(a)
	case control.SessionExtended:
		p.extended(a)
	case control.TermsChanged:
		p.termsChanged(a)
	case control.SessionRefreshed:
		p.refreshed(a)
	case control.Outdated:
		g.m.outdated.note(a)
	case control.ChangeRefused:
		p.changeRefused(a)
	case control.SessionRekeyed, control.RekeyFailed:
		p.keyNotice(a)
	case control.TroubleReported:
		log.Warn("peer's data path is silent", event.KeySession, a.Session.ID)
	case control.Cloned:
		log.Warn("resume with a spent proof", event.KeyCause, "the node's state may have been cloned")
		g.m.publish(event.Event{Kind: event.ClonedState, Node: p.node})
	case control.Ended:
		log.Info("control connection closed", event.KeyCause, a.Result.Describe(wire.TypeStopCCN), event.KeyErr, a.Err, event.Request(a.RequestID))
	}
}

func cause(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func restartedCause(restarted bool) string {
	if restarted {
		return "peer was restarted"
	}
	return ""
}

// sessionUp opens the gate; routes go into the host, and to the other nodes.
func (p *peerConn) sessionUp(s control.Session) {
	g := p.g
	g.mu.Lock()
	defer g.mu.Unlock()
	mb := g.members.byID[s.ID]
	if mb == nil {
		return
	}
	n := mb.network
	if err := n.dev.SetGate(s.ID, mb.gate()); err != nil {
		g.m.log.Error("gate not opened", event.KeySession, s.ID, event.KeyErr, err)
	}
	mb.state, mb.since = session.Established, time.Now()
	if len(mb.advertise) > 0 {
		if err := n.setHostRoutes(); err != nil {
			g.m.log.Error("routes not set", event.KeySession, s.ID, event.KeyErr, err)
		}
		g.announceLater(n)
	}
	if !samePrefixes(n.routesFor(mb), mb.terms.Routes) { // they changed while it was set up
		p.offerLater()
	}
	e := mb.upEvent()
	e.Request = s.RequestID
	g.record(mb, e)
}

// record logs a change of a session's state, once, since the log is the history,
// publishes it and adds it to the session's story.
func (g *gateway) record(mb *member, e event.Event) {
	e.Session, e.Node, e.Network = mb.id, mb.node, mb.network.cfg.Name
	g.m.log.Info(string(e.Kind), event.KeySession, mb.id, event.KeyNode, mb.node, event.KeyNetwork, e.Network,
		event.KeyState, mb.state, event.KeyCause, e.Cause, event.Request(e.Request), event.From(e.From), event.Bytes(e.Counters))
	g.m.publish(e)
}

// setStates follows the control connection with the states of its sessions.
func (p *peerConn) setStates(to session.State, e event.Event) {
	g := p.g
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, mb := range g.members.byConn.list(p) {
		if mb.state == session.WaitConnect {
			continue
		}
		mb.state, mb.since = to, time.Now()
		if e.Kind == event.SessionResumed {
			mb.resumes++
		}
		g.record(mb, e)
	}
}

// sessionDown takes a session off the data plane and frees its addresses.
func (p *peerConn) sessionDown(a control.SessionDown) {
	g := p.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if mb := g.members.byID[a.Session.ID]; mb != nil {
		g.dropLocked(mb, event.Event{Cause: a.Result.Describe(wire.TypeCDN), Request: a.RequestID})
	} else if n := g.network(a.Session.Network); n != nil {
		n.pool.Cancel(a.Session.ID) // granted, and never set up
		delete(g.rebuilding, a.Session.ID)
	}
}

// dropLocked ends a session here: gate and keys, routes, addresses, record.
func (g *gateway) dropLocked(mb *member, e event.Event) {
	n := mb.network
	final := g.countersLocked(mb)
	g.finalLocked(mb, e, final)
	if err := n.dev.Remove(mb.id); err != nil {
		g.m.log.Error("session not removed from the data plane", event.KeySession, mb.id, event.KeyErr, err)
	}
	g.withdrawLocked(mb)
	g.members.remove(mb)
	g.ticketEndedLocked(mb.id)
	g.gone = append(g.gone, mb.id)
	mb.state, mb.since = session.Closed, time.Now()
	if len(mb.advertise) > 0 {
		if err := n.setHostRoutes(); err != nil {
			g.m.log.Error("routes not set", event.KeySession, mb.id, event.KeyErr, err)
		}
		g.announceLater(n)
	}
	g.freeLocked(mb)
	counters := final.event()
	e.Kind, e.Counters = event.SessionClosed, &counters
	g.record(mb, e)
}

var _ control.Handler = (*peerConn)(nil)

// closeGates stops the packets of a node's sessions, with effect from the next
// batch.
func (g *gateway) closeGates(node string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, mb := range g.members.byID {
		if mb.node != node {
			continue
		}
		if err := mb.network.dev.SetGate(mb.id, engine.Closed); err != nil {
			g.m.log.Error("gate not closed", event.KeySession, mb.id, event.KeyErr, err)
		}
	}
}
