package tunnel

import (
	"bufio"
	"context"
	"errors"
	"net"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/life"
)

// Parking. What a control connection is while it is suspended stands in the
// journal. Of one that has been suspended for a while the gateway keeps no more
// than its peerConn and, for `sessions`, deadlines and the data plane, a member
// for each session. After a restart all of them are parked. Whoever has
// something for a connection goes through the methods here, and they wake it:
// machine and goroutine come back from the record, as in the next process.

// parkAfter is how long a connection is suspended before it is parked: longer
// than most interruptions, and than a set-up may take.
const parkAfter = 30 * time.Second

// Do is that of [control.Conn].
func (p *peerConn) Do(ctx context.Context, ev control.Event) error {
	return p.with(func(c *control.Conn) error { return c.Do(ctx, ev) })
}

// Attach is that of [control.Conn].
func (p *peerConn) Attach(ctx context.Context, nc net.Conn, br *bufio.Reader, b control.Binding, first *wire.Packet) error {
	return p.with(func(c *control.Conn) error {
		_, err := c.Attach(ctx, nc, br, b, first)
		return err
	})
}

// View is that of [control.Conn].
func (p *peerConn) View() (v *control.View, err error) {
	err = p.with(func(c *control.Conn) error {
		v = c.View()
		return nil
	})
	return v, err
}

// with calls fn with the connection at work, again if it was parked meanwhile.
func (p *peerConn) with(fn func(*control.Conn) error) error {
	for {
		c, err := p.woken()
		if err != nil {
			return err
		}
		if err := fn(c); !errors.Is(err, control.ErrParked) {
			return err
		}
	}
}

// say gives the connection an event that is about its transport, which a parked
// one does not have.
func (p *peerConn) say(ctx context.Context, ev control.Event) {
	p.waking.Lock()
	c := p.conn
	p.waking.Unlock()
	if c != nil {
		c.Do(ctx, ev)
	}
}

// woken is the connection at work.
func (p *peerConn) woken() (*control.Conn, error) {
	p.waking.Lock()
	defer p.waking.Unlock()
	if p.conn != nil && p.conn.Parked() {
		p.parkLocked()
	}
	if p.conn == nil {
		if err := p.wakeLocked(); err != nil {
			p.g.m.log.Error("control connection not restored", event.KeyNode, p.node, event.KeyErr, err)
			return nil, err
		}
	}
	return p.conn, nil
}

// wakeLocked goes on from the record. The caller holds waking, so that nobody is
// first with something else.
func (p *peerConn) wakeLocked() error {
	g := p.g
	saved, err := g.m.journal.connection(p.id)
	if err != nil {
		return err
	}
	p.journalled = sessionsOf(saved.record)
	c := control.NewConn(control.Restore(g.config(p), saved.record), p, g.m.log.With(event.KeyNode, p.node))
	if err := g.launch(p, c); err != nil {
		return err
	}
	p.conn = c
	return c.Do(g.m.ctx, control.Started{Remaining: p.unparked(), At: time.Now()})
}

// unparked says that the connection is at work, and what is left of its grace.
func (p *peerConn) unparked() time.Duration {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	remaining := p.graceTo.Since(bootNow())
	p.graceTo = 0
	return max(0, remaining)
}

// sessionsOf are the sessions in a record.
func sessionsOf(r *control.Record) []session.ID {
	all := make([]session.ID, 0, len(r.Sessions))
	for _, s := range r.Sessions {
		all = append(all, s.ID)
	}
	return all
}

// park lets go of c, which was at rest and has ended, unless somebody was faster
// who needs the connection again.
func (p *peerConn) park(c *control.Conn) {
	p.waking.Lock()
	defer p.waking.Unlock()
	if p.conn == c {
		p.parkLocked()
	}
}

func (p *peerConn) parkLocked() {
	remaining := p.conn.Remaining()
	p.conn, p.journalled = nil, nil
	p.g.came.Add(1) // what it held is left behind
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	p.g.parkedLocked(p, remaining)
}

// parkedLocked watches over the grace of a parked connection.
func (g *gateway) parkedLocked(p *peerConn, remaining time.Duration) {
	p.graceTo = bootNow().Plus(remaining)
	g.graceNext = min(g.graceNext, p.graceTo)
}

// graceOverLocked are the parked connections whose grace is over at now: to be
// woken, they end by themselves.
func (g *gateway) graceOverLocked(now life.Instant) (over []*peerConn) {
	if now < g.graceNext {
		return nil
	}
	g.graceNext = life.Never
	for _, p := range g.conns {
		switch {
		case p.graceTo == 0: // at work
		case p.graceTo <= now:
			over = append(over, p)
			g.graceNext = min(g.graceNext, now.Plus(lookInterval)) // again, if the journal cannot be read now
		default:
			g.graceNext = min(g.graceNext, p.graceTo)
		}
	}
	return over
}
