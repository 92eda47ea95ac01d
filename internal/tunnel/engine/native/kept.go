package native

import (
	"slices"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine/noise"
)

// Keypairs implements [engine.Device].
func (d *Device) Keypairs(id session.ID) (indices []uint32, err error) {
	p, err := d.find(id)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	t := now()
	for _, pair := range [...]*noise.Keypair{p.ring.Current, p.ring.Next, p.ring.Previous[0], p.ring.Previous[1]} {
		if pair != nil && pair.MayReceive(t) {
			indices = append(indices, pair.Local)
		}
	}
	return indices, nil
}

// PeerRestarted implements [engine.Device].
func (d *Device) PeerRestarted(id session.ID, kept []uint32) error {
	p, err := d.find(id)
	if err != nil {
		return err
	}
	p.mu.Lock()
	pair := p.ring.Current
	known := pair != nil && pair.MaySend(now()) && slices.Contains(kept, pair.Remote)
	p.mu.Unlock()
	if known {
		return nil
	}
	return d.Handshake(id, true)
}
