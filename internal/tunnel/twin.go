package tunnel

import (
	"fmt"

	"tunneld/internal/session"
)

// twinLocked is the tunnel that has, or asks for, this node's session in the
// network that t leads to, whatever addresses of the gateway the two dial. The
// gateway would take a session of t for the successor of a lost one, and end
// that of the other, which would do the same to t's.
func (l *link) twinLocked(t *dialled, gateway session.ID) *dialled {
	for _, other := range l.m.tunnels {
		if other == t || other.cfg.Network != t.cfg.Network || other.session == nil && other.state != session.WaitReply {
			continue
		}
		if o := other.link; o == l || o.conn != nil && o.conn.View().PeerID == gateway {
			return other
		}
	}
	return nil
}

// twinError is why a tunnel is not begun while another leads to its network.
type twinError struct{ tunnel, network string }

func (e *twinError) Error() string {
	return fmt.Sprintf("a node has one session in a network, and tunnel %q has that in %q", e.tunnel, e.network)
}
