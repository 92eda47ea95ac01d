package tunnel

import (
	"context"
	"fmt"
	"slices"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
)

// leaving is what a node does about a gateway that is about to go: it moves to
// another one of its own, or waits.
type leaving struct {
	to string // HOST:PORT; empty: there is no other, it waits
	at time.Time

	failures int
}

// maxHops is how often in a row a node lets itself be sent on before it takes its
// own order again: two gateways may name each other.
const maxHops = 4

// allowedLocked is the first of those gateways that this link may go to: one that its
// tunnels name and that this node has joined, so that it is known who must answer
// there. With none given, any of its own will do. The caller holds Manager.mu.
func (l *link) allowedLocked(named []string) string {
	if len(named) == 0 {
		named = l.gateways
	}
	for _, g := range named {
		if g == l.reached || !slices.Contains(l.gateways, g) {
			continue
		}
		if _, _, err := l.m.whoAnswers(g); err == nil {
			return g
		}
	}
	return ""
}

// drainsLocked takes what the gateway says of its going.
func (l *link) drainsLocked(a control.GatewayDrains) {
	e := event.Event{Kind: event.GatewayDrains, Node: l.m.cfg.Node.Name, Cause: "it stays"}
	l.leave = nil
	if a.Leaving {
		l.leave = &leaving{to: l.allowedLocked(a.Gateways), at: time.Now().Add(a.Delay)}
		e.Cause = "no other gateway: waits for it"
		if l.leave.to != "" {
			e.Cause = "moves to " + l.leave.to
		}
	}
	l.m.log.Info(string(e.Kind), event.KeyPeer, l.reached, event.KeyCause, e.Cause)
	l.m.publish(e)
}

// retargetedLocked remembers where a gateway that took no set-up sent this node.
func (l *link) retargetedLocked(named []string) {
	if l.hops++; l.hops > maxHops {
		l.prefer = ""
		return
	}
	l.prefer = l.allowedLocked(named)
}

// nextLocked is the gateway to be tried after those: where this node was sent,
// then the one that has the connection, then the others in the order of the
// configuration. Empty: none is left.
func (l *link) nextLocked(tried []string) string {
	order := []string{l.prefer, l.homeLocked()}
	for _, g := range append(order, l.gateways...) {
		if g != "" && !slices.Contains(tried, g) {
			return g
		}
	}
	return ""
}

// homeLocked is the address of the gateway that has the connection; empty if
// there is none.
func (l *link) homeLocked() string {
	if l.conn == nil || len(l.gateways) == 1 {
		return ""
	}
	id := l.conn.View().PeerID
	for _, g := range l.gateways {
		if gw, _, err := l.m.whoAnswers(g); err == nil && gw.ID == id && !id.IsZero() {
			return g
		}
	}
	return ""
}

// dueToLeave is where to move now; empty: nowhere, but look again after wait.
func (l *link) dueToLeave() (to string, wait time.Duration) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if !l.up || l.leave == nil || l.leave.to == "" {
		return "", idleWait
	}
	if left := time.Until(l.leave.at); left > 0 {
		return "", left
	}
	return l.leave.to, 0
}

// move takes the tunnels of the link to another gateway. That one must answer
// before the present one is given up.
func (l *link) move(ctx context.Context, to string) time.Duration {
	t, err := l.reach(ctx, to)
	if err != nil {
		l.m.log.Warn("other gateway not reached", event.KeyPeer, to, event.KeyErr, err)
		l.m.mu.Lock()
		defer l.m.mu.Unlock()
		if l.leave == nil {
			return idleWait
		}
		l.leave.failures++
		wait := control.Backoff(l.leave.failures)
		l.leave.at = time.Now().Add(wait)
		return wait
	}
	l.m.mu.Lock()
	conn := l.conn
	l.leave, l.prefer = nil, to
	l.m.mu.Unlock()
	if conn != nil {
		conn.Do(ctx, control.Stop{Result: wire.Result{Code: wire.StopShuttingDown, Cause: wire.CauseDraining}})
	}
	l.m.publish(event.Event{Kind: event.TunnelMoved, Node: l.m.cfg.Node.Name, Cause: "to " + to})
	if err := l.carry(ctx, to, t); err != nil {
		return l.failed(fmt.Errorf("gateway %s: %w", to, err))
	}
	l.nudge()
	return idleWait
}

// view is what `status` shows of it; the caller holds Manager.mu.
func (v *leaving) view() *api.Leaving {
	if v == nil {
		return nil
	}
	return &api.Leaving{To: maybe(v.to), At: instant(v.at)}
}
