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
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/redirect"
)

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
	g.beginDrain(ctx, newDrain(time.Duration(q.OverMillis)*time.Millisecond, q.To))
	return nil
}

// Retire has the nodes of this gateway leave before the daemon ends, which is to
// be at once or when wait is over. It returns when all have left that can be
// told, when somebody says that the gateway stays after all, or when ctx ends.
func (m *Manager) Retire(ctx context.Context, wait time.Duration) {
	g := m.gateway
	if g == nil || g.connected() == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	d := newDrain(wait/2, nil) // the rest is for those that are slow
	if before := g.drains(); before != nil {
		d.To = before.To
	}
	g.beginDrain(ctx, d)
	t := time.NewTicker(retireLook)
	defer t.Stop()
	for g.drains() == d && g.connected() > 0 {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// retireLook is how often it is seen whether all have left.
const retireLook = 50 * time.Millisecond

// connected is how many sessions the gateway has whose nodes can be told something.
func (g *gateway) connected() (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, mb := range g.members.byID {
		if mb.state != session.Suspended {
			n++
		}
	}
	return n
}

func newDrain(over time.Duration, to []string) *redirect.Drain {
	return &redirect.Drain{Since: time.Now(), Over: over, To: to, Random: rand.N[time.Duration]}
}

// beginDrain takes the place of the drain before, if there is one.
func (g *gateway) beginDrain(ctx context.Context, d *redirect.Drain) {
	g.mu.Lock()
	g.drain = d
	conns := g.connsInOrderLocked()
	for i, p := range conns {
		p.leaveAt = d.Slot(i, len(conns))
	}
	g.mu.Unlock()
	g.m.log.Info(string(event.DrainBegun), event.Request(api.RequestOf(ctx)))
	g.m.publish(event.Event{Kind: event.DrainBegun, Request: api.RequestOf(ctx)})
	for _, p := range conns {
		p.tellDrain(ctx)
	}
}

// connsInOrderLocked are the connections, in the order of their first session:
// those that have none yet before all.
func (g *gateway) connsInOrderLocked() (all []*peerConn) {
	first := map[*peerConn]time.Time{}
	for _, p := range g.conns {
		if members := g.members.byConn.list(p); len(members) > 0 {
			first[p] = members[0].began
		}
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
			p.leaveAt = d.Late(time.Now())
		}
		ev = control.TellDrain{Leaving: true, Gateways: d.To, Delay: max(0, time.Until(p.leaveAt)).Truncate(time.Millisecond)}
	} else {
		p.leaveAt = time.Time{}
	}
	g.mu.Unlock()
	p.say(ctx, ev)
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

// drains is nil if the gateway stays.
func (g *gateway) drains() *redirect.Drain {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.drain
}

// drainView is the drain as `status` shows it; the caller holds gateway.mu.
func (g *gateway) drainView() *api.Drain {
	if g.drain == nil {
		return nil
	}
	return &api.Drain{Since: g.drain.Since, To: notNil(g.drain.To), Sessions: len(g.members.byID)}
}
