package sim

import (
	"slices"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/tunnel/redirect"
)

// drain is `tunnelctl drain` and `tunnelctl drain --cancel`.
func (w *world) drain() {
	g := w.anyGateway()
	if !g.h.runs() {
		return
	}
	if g.drain != nil {
		g.stays()
		return
	}
	var to []string
	for range w.rng.IntN(3) {
		to = append(to, w.anyGateway().h.name)
	}
	if w.chance(4) {
		to = slices.Insert(to, w.rng.IntN(len(to)+1), "nowhere")
	}
	over := 20 * time.Second
	if w.chance(2) {
		over = time.Second
	}
	g.goes(to, w.between(0, over))
}

// ring has all gateways go, each naming the next: a loop, or a chain to the last.
func (w *world) ring() {
	chain := w.chance(2)
	for i, g := range w.gateways {
		if g.h.runs() && !(chain && i == len(w.gateways)-1) {
			g.goes([]string{w.gateways[(i+1)%len(w.gateways)].h.name}, w.between(0, time.Second))
		}
	}
}

// goes announces that the gateway is about to go, as internal/tunnel does.
func (g *gateway) goes(to []string, over time.Duration) {
	w := g.w
	w.stats.drains++
	w.logf("%s is about to go: nodes to %v within %v", g.h.name, to, over)
	d := &redirect.Drain{Since: g.h.boottime(), Over: over, To: to, Random: func(n time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(n))) }}
	g.drain = d
	all := g.inOrder()
	last := d.Since
	for i, p := range all {
		p.leaveAt = d.Slot(i, len(all))
		if p.leaveAt.Before(last) || p.leaveAt.After(d.Since.Add(over)) {
			broken("drain", "%s lets node %d of %d go %v after the drain began, which takes %v, the one before %v", g.h.name, i, len(all), p.leaveAt.Sub(d.Since), over, last.Sub(d.Since))
		}
		last = p.leaveAt
	}
	for _, p := range all {
		p.tellDrain()
	}
}

// stays takes that back.
func (g *gateway) stays() {
	if g.drain == nil {
		return
	}
	g.w.logf("%s stays", g.h.name)
	g.drain = nil
	for _, p := range g.inOrder() {
		p.tellDrain()
	}
}

// inOrder are the connections, in the order of their first session: those that
// have none yet before all.
func (g *gateway) inOrder() (all []*peer) {
	for _, p := range g.peers {
		if len(p.members()) == 0 {
			all = append(all, p)
		}
	}
	for _, m := range g.members {
		if !slices.Contains(all, m.p) {
			all = append(all, m.p)
		}
	}
	return all
}

func (p *peer) tellDrain() {
	now := p.g.h.boottime()
	ev := control.TellDrain{}
	if d := p.g.drain; d != nil {
		if p.leaveAt.IsZero() { // it came back meanwhile
			p.leaveAt = d.Late(now)
		}
		ev = control.TellDrain{Leaving: true, Gateways: d.To, Delay: max(0, p.leaveAt.Sub(now)).Truncate(time.Millisecond)}
	} else {
		p.leaveAt = time.Time{}
	}
	p.c.do(ev)
}

// tellDrainSoon tells a node whose transport has just come.
func (p *peer) tellDrainSoon() {
	p.g.soon(func() {
		if p.g.drain != nil {
			p.tellDrain()
		}
	})
}

// refuse answers the first message of a transport.
func (g *gateway) refuse(e *end, first *wire.Packet, res wire.Result, gateways ...string) {
	q := first.Message.(*wire.SCCRQ)
	g.w.logf("%s refuses [%d] %s: %s %v", g.h.name, e.l.id, packet(first), res.Describe(wire.TypeStopCCN), gateways)
	b, err := (&wire.Packet{ConnID: q.AssignedID, Nr: 1, Message: &wire.StopCCN{Result: res, Gateways: gateways}}).Append(nil)
	if err != nil {
		panic(err) // a literal
	}
	e.send(b)
	e.drop()
}

// elsewhere is where a drained gateway's node should have gone; nil: it waits.
func (l *link) elsewhere(g *gateway) *gateway {
	named := g.drain.To
	if len(named) == 0 {
		named = names(l.gateways)
	}
	for _, name := range named {
		if o := g.w.named(name); o != nil && o != g && o != l.unjoined && slices.Contains(l.gateways, o) {
			return o
		}
	}
	return nil
}
