package control

import (
	"time"

	"tunneld/internal/control/wire"
)

// TellDrain has an established responder tell the peer that it is about to go, or
// that it stays: docs/protocol.md, "Drain".
type TellDrain struct {
	Leaving  bool
	Gateways []string      // where to go; none: whatever the node has
	Delay    time.Duration // until the node should go
}

// Notices of gateways that send their nodes elsewhere.
type (
	// GatewayDrains: the peer is about to go, or stays after all.
	GatewayDrains struct {
		Leaving  bool
		Gateways []string
		Delay    time.Duration
	}
	// Retargeted: the peer did not take the set-up and names gateways that may.
	Retargeted struct{ Gateways []string }
)

func (TellDrain) event()      {}
func (GatewayDrains) action() {}
func (Retargeted) action()    {}

func (m *Machine) tellDrain(ev TellDrain) {
	d := &wire.Drain{Leaving: ev.Leaving}
	if ev.Leaving {
		d.Gateways, d.Delay = ev.Gateways, ev.Delay
	}
	if m.cfg.Role == Responder && m.peerCapabilities&CapDrain != 0 {
		m.tell(d)
	}
}

// drain takes DRN at the node.
func (m *Machine) drain(p *wire.Packet, d *wire.Drain) {
	if m.cfg.Role != Initiator {
		m.wrong(p, "only a gateway drains")
		return
	}
	m.do(GatewayDrains{d.Leaving, d.Gateways, d.Delay})
}

// retargeted tells of the gateways that a refusal of a set-up names.
func (m *Machine) retargeted(stop *wire.StopCCN) {
	if m.cfg.Role == Initiator && len(stop.Gateways) > 0 {
		m.do(Retargeted{stop.Gateways})
	}
}
