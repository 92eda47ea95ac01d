package native

import (
	"net/netip"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/udp"
)

var (
	_ engine.Switchable = (*Device)(nil)
	_ engine.Receiving  = (*Engine)(nil)
)

// SetCarrier has a session sent through c from the next batch on; nil: by UDP.
func (d *Device) SetCarrier(id session.ID, c engine.Carrier) error {
	p, err := d.find(id)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.endpoint.Load()
	if c == nil && (at == nil || at.Carrier == nil) {
		return nil
	}
	if at == nil || at.Carrier == nil {
		p.parked, p.parkedDoubt = at, p.doubted.Load()
	}
	if c == nil {
		p.budget.Store(0)
		p.doubted.Store(p.parkedDoubt)
		p.endpoint.Store(p.parked)
		p.parked = nil
	} else {
		p.doubted.Store(false) // whoever set it up has shown to be there
		p.endpoint.Store(udp.NewCarried(c))
	}
	p.arrivedLocked(at == nil, now())
	return nil
}

// Receive returns what the reader of c gives its datagrams to.
func (e *Engine) Receive(c engine.Carrier) func(datagrams ...[]byte) {
	in := &inbound{e: e, via: udp.NewCarried(c)}
	return func(datagrams ...[]byte) {
		in.now = now()
		in.coalescer.reset()
		for _, b := range datagrams {
			in.message(&message{Arrival: udp.Arrival{Size: len(b)}, data: b})
		}
		in.write()
		in.device, in.owner, in.src = nil, nil, netip.Addr{}
	}
}

// carry sends the datagrams of a run through its carrier.
func (s *sender) carry(r *run) {
	for at := r.start; at < r.end; at += r.size {
		if !r.to.Carrier.Send(s.arena[at:min(at+r.size, r.end)]) {
			s.lost(r, 1)
		}
	}
}
