package tunnel

import (
	"context"
	"slices"
	"sync"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
)

// found is what is to be done about the connections of the last process before
// anybody comes in.
type found struct {
	killed  []uint32  // suspended by the end of the process, and not noted so
	orphans []closing // sessions without a network, or without an address
}

// A survivor is a connection of the last process while it is being restored.
type survivor struct {
	*peerConn
	newest time.Time // when the youngest of its sessions began
	killed bool      // it was in use when the process ended
}

// restore makes a parked connection of each record, and members of the sessions
// in it. Sessions of networks that are not offered any more are closed.
func (g *gateway) restore() error {
	counters, err := g.m.journal.counters()
	if err != nil {
		return err
	}
	certificates, err := g.certificates()
	if err != nil {
		return err
	}
	var all []survivor
	err = g.m.journal.eachConnection(control.Responder, func(c savedConnection) {
		all = append(all, g.survive(c, certificates[c.record.PeerID], counters))
	})
	if err != nil {
		return err
	}
	// Killed between the beginning of a node's new session and the end of the
	// one it replaces, both are there: the newer one keeps the addresses.
	slices.SortStableFunc(all, func(a, b survivor) int { return b.newest.Compare(a.newest) })
	for _, s := range all {
		g.leaseAgain(s)
	}
	for _, n := range g.networks {
		if err := n.restoreRests(); err != nil {
			return err
		}
	}
	return nil
}

// survive restores a connection and its members, which have no addresses yet.
func (g *gateway) survive(c savedConnection, certTo time.Time, counters map[session.ID]countersV1) survivor {
	r := c.record
	p := &peerConn{g: g, id: r.LocalID, node: r.PeerName, nodeID: r.PeerID, certTo: certTo, restored: true}
	p.checkpoint.Store(r.Serial)
	v := survivor{p, c.newest(), r.SuspendedAt.IsZero()}
	if v.killed {
		g.found.killed = append(g.found.killed, p.id)
	}
	remaining := graceLeft(r, time.Now())
	for _, s := range r.Sessions {
		n := g.network(s.Network)
		if n == nil {
			g.orphan(p, s.LocalID)
			continue
		}
		mb := g.newMember(n, p, s)
		mb.base = counters[s.ID]
		mb.restoreLife(remaining)
		mb.offer = s.Offer
	}
	g.addLocked(p)
	g.parkedLocked(p, remaining)
	g.seeLocked(p, c.seen)
	return v
}

// leaseAgain gives the sessions of a connection the addresses they had.
func (g *gateway) leaseAgain(v survivor) {
	for _, mb := range g.members.byConn.list(v.peerConn) {
		killed := v.killed && mb.state == session.Established
		mb.state, mb.since = session.Suspended, time.Now()
		if err := mb.network.pool.Restore(mb.lease()); err != nil {
			g.m.log.Warn("session not restored", event.KeySession, mb.id, event.KeyErr, err)
			g.members.remove(mb)
			g.orphan(v.peerConn, mb.local)
			continue
		}
		g.restoreOffer(mb)
		if killed {
			g.record(mb, event.Event{Kind: event.SessionSuspended, Cause: killedCause})
		}
	}
}

// orphan has a session closed at start.
func (g *gateway) orphan(p *peerConn, local uint32) {
	g.found.orphans = append(g.found.orphans, closing{p, control.CloseSession{LocalID: local, Result: wire.Result{
		Code: wire.CDNAdministrative, Cause: wire.CauseConfiguration, Text: "the network is not offered any more"}}})
}

// settleFound does what was found to be done.
func (g *gateway) settleFound(ctx context.Context) {
	if err := g.m.journal.suspended(g.found.killed, time.Now()); err != nil {
		g.m.log.Error("journal not written", event.KeyErr, err) // the grace begins anew with the next process
	}
	var closed sync.WaitGroup // together, so that they share writes to disk
	for _, o := range g.found.orphans {
		closed.Go(func() { o.conn.Do(ctx, o.CloseSession) })
	}
	closed.Wait()
	g.found = found{}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.came.Store(int64(len(g.conns))) // reading them leaves as much behind
}

// graceLeft is how long a restored connection may stay suspended: the shorter
// of what its wall clock says and the whole grace.
func graceLeft(r *control.Record, now time.Time) time.Duration {
	if r.SuspendedAt.IsZero() {
		return r.Timers.Grace
	}
	return max(0, min(r.Timers.Grace, r.Timers.Grace-now.Sub(r.SuspendedAt)))
}
