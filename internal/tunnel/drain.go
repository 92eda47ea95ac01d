package tunnel

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/config"
	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
)

// draining is a gateway about to go: docs/protocol.md, "Drain". It is forgotten
// with the process.
type draining struct {
	since time.Time
	over  time.Duration // in which the nodes are to leave, one after the other
	to    []string
}

// maxOther bounds how many other gateways nodes are told of.
const maxOther = 16

// Drain announces that this gateway goes, or that it stays after all: nothing new
// begins here, and every node is told when to leave, in the order in which they
// came. Asked for again, it takes the place of the wish before.
func (m *Manager) Drain(ctx context.Context, q api.DrainRequest) error {
	g := m.gateway
	if g == nil {
		return m.errNoGateway("drain")
	}
	if q.Cancel {
		g.undrain(ctx)
		return nil
	}
	for _, to := range q.To {
		if err := config.CheckHostPort(to); err != nil {
			return &api.Error{Code: api.Usage, Message: fmt.Sprintf("--to %v", err)}
		}
	}
	if len(q.To) > maxOther {
		return &api.Error{Code: api.Usage, Message: fmt.Sprintf("%d other gateways, at most %d can be told", len(q.To), maxOther)}
	}
	d := &draining{since: time.Now(), over: time.Duration(q.OverMillis) * time.Millisecond, to: q.To}
	g.mu.Lock()
	g.drain = d
	conns := g.connsInOrderLocked()
	for i, p := range conns {
		p.leaveAt = d.since.Add(slot(d.over, i, len(conns)))
	}
	g.mu.Unlock()
	m.log.Info(string(event.DrainBegun), event.Request(api.RequestOf(ctx)))
	m.publish(event.Event{Kind: event.DrainBegun, Request: api.RequestOf(ctx)})
	for _, p := range conns {
		p.tellDrain(ctx)
	}
	return nil
}

// slot is when the i-th of n nodes is to leave: its part of the time, and a random
// instant in that.
func slot(over time.Duration, i, n int) time.Duration {
	part := over / time.Duration(max(n, 1))
	return part*time.Duration(i) + rand.N(part+1)
}

// connsInOrderLocked are the connections that have a session, in the order of
// their first.
func (g *gateway) connsInOrderLocked() (all []*peerConn) {
	first := map[*peerConn]time.Time{}
	for p := range g.members.byConn {
		first[p] = g.members.byConn.list(p)[0].began
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *peerConn) int { return first[a].Compare(first[b]) })
	return all
}

func (g *gateway) undrain(ctx context.Context) {
	g.mu.Lock()
	was := g.drain
	g.drain = nil
	conns := g.connsInOrderLocked()
	g.mu.Unlock()
	if was == nil {
		return
	}
	g.m.log.Info(string(event.DrainOver), event.Request(api.RequestOf(ctx)))
	g.m.publish(event.Event{Kind: event.DrainOver, Request: api.RequestOf(ctx)})
	for _, p := range conns {
		p.tellDrain(ctx)
	}
}

// tellDrain tells a node whether this gateway goes, and when the node should.
func (p *peerConn) tellDrain(ctx context.Context) {
	g := p.g
	g.mu.Lock()
	d, ev := g.drain, control.TellDrain{}
	if d != nil {
		if p.leaveAt.IsZero() { // it came back meanwhile
			p.leaveAt = time.Now().Add(rand.N(d.over + 1))
		}
		ev = control.TellDrain{Leaving: true, Gateways: d.to, Delay: max(0, time.Until(p.leaveAt)).Truncate(time.Millisecond)}
	} else {
		p.leaveAt = time.Time{}
	}
	g.mu.Unlock()
	p.conn.Do(ctx, ev)
}

// tellDrainLater tells a node whose transport has just come. The caller may hold
// gateway.mu.
func (p *peerConn) tellDrainLater() {
	p.g.m.chores.add("drain "+connectionKey(p.id), func(ctx context.Context) {
		if p.g.drains() != nil {
			p.tellDrain(ctx)
		}
	})
}

func (g *gateway) drains() *draining {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.drain
}

// elsewhere is what somebody is told who asks a gateway that goes for something
// new.
func (d *draining) elsewhere(code wire.ResultCode) wire.Result {
	r := wire.Result{Code: code, Error: wire.ErrorTryAnother, Cause: wire.CauseDraining}
	if len(d.to) > 0 {
		r.Error = wire.ErrorTryNamed
	}
	return r
}

// drainView is the drain as `status` shows it; the caller holds gateway.mu.
func (g *gateway) drainView() *api.Drain {
	if g.drain == nil {
		return nil
	}
	return &api.Drain{Since: g.drain.since, To: notNil(g.drain.to), Sessions: len(g.members.byID)}
}
