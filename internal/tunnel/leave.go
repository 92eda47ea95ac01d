package tunnel

import (
	"context"
	"fmt"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
)

// drainsLocked takes what the gateway says of its going.
func (l *link) drainsLocked(a control.GatewayDrains) {
	e := event.Event{Kind: event.GatewayDrains, Node: l.m.cfg.Node.Name, Cause: "it stays"}
	l.way.Drains(a.Leaving, a.Gateways, time.Now().Add(a.Delay))
	if leave := l.way.Leave(); leave != nil {
		e.Cause = "no other gateway: waits for it"
		if leave.To != "" {
			e.Cause = "moves to " + leave.To
		}
	}
	l.m.log.Info(string(e.Kind), event.KeyPeer, l.way.At(), event.KeyCause, e.Cause)
	l.m.publish(e)
}

// homeLocked is the address of the gateway that has the connection; empty if
// there is none.
func (l *link) homeLocked() string {
	if l.conn == nil || len(l.way.Gateways) == 1 {
		return ""
	}
	id := l.conn.View().PeerID
	for _, g := range l.way.Gateways {
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
	if !l.up {
		return "", idleWait
	}
	if to, wait = l.way.Due(time.Now()); to == "" && wait == 0 {
		wait = idleWait
	}
	return to, wait
}

// isUseless reports whether the connection, with so many sessions, is to be given
// up for one with another gateway.
func (l *link) isUseless(sessions int) bool {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	return l.way.Useless(sessions)
}

// move takes the tunnels of the link to another gateway. That one must answer
// before the present one is given up.
func (l *link) move(ctx context.Context, to string) time.Duration {
	t, err := l.reach(ctx, to)
	if err != nil {
		l.m.log.Warn("other gateway not reached", event.KeyPeer, to, event.KeyErr, err)
		l.m.mu.Lock()
		defer l.m.mu.Unlock()
		if l.way.Leave() != nil {
			l.way.NotMoved(time.Now(), control.Backoff)
		}
		return 0
	}
	l.m.mu.Lock()
	conn := l.conn
	if leave := l.way.Leave(); leave == nil || leave.To != to { // it stays after all
		l.m.mu.Unlock()
		t.Close()
		return 0
	}
	l.way.Moves()
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

// leavingView is what `status` shows of a gateway's going; the caller holds
// Manager.mu.
func (l *link) leavingView() *api.Leaving {
	leave := l.way.Leave()
	if leave == nil {
		return nil
	}
	return &api.Leaving{To: maybe(leave.To), At: instant(leave.At)}
}

// joined reports whether it is known who must answer at a gateway's address.
func (m *Manager) joined(gateway string) bool {
	_, _, err := m.whoAnswers(gateway)
	return err == nil
}
