package tunnel

import (
	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
)

// keypairs are the live keypairs of the connection's sessions, for a node that
// knew another process of this gateway: where they are those that it uses the
// restart costs no handshake.
func (p *peerConn) keypairs() (all []wire.Keypair) {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	for _, mb := range p.g.members.byConn.list(p) {
		if mb.network.dev == nil {
			continue
		}
		indices, err := mb.network.dev.Keypairs(mb.id)
		if err != nil {
			p.g.m.log.Warn("keypairs not known", event.KeySession, mb.id, event.KeyErr, err)
		}
		for _, i := range indices {
			all = append(all, wire.Keypair{Session: mb.local, Index: i})
		}
	}
	return all
}

// keptOf are the indices of a session's keypairs among those that the gateway has.
func keptOf(s *control.Session, all []wire.Keypair) (indices []uint32) {
	for _, k := range all {
		if k.Session == s.RemoteID {
			indices = append(indices, k.Index)
		}
	}
	return indices
}
