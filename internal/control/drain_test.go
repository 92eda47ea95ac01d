package control

import (
	"testing"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

func TestDrainIsTold(t *testing.T) {
	p := established(t)
	var told []GatewayDrains
	p.node.watch = func(_ Event, actions []Action) {
		for _, a := range actions {
			if d, ok := a.(GatewayDrains); ok {
				told = append(told, d)
			}
		}
	}
	p.gateway.step(TellDrain{Leaving: true, Gateways: []string{"gw-2.example:443"}, Delay: 3 * time.Second})
	p.carry(-1)
	p.gateway.step(TellDrain{Gateways: []string{"gw-2.example:443"}, Delay: 3 * time.Second}) // who stays sends nobody away
	p.carry(-1)
	if len(told) != 2 || !told[0].Leaving || told[0].Delay != 3*time.Second || len(told[0].Gateways) != 1 || told[1].Leaving || len(told[1].Gateways) != 0 {
		t.Errorf("the node was told %+v", told)
	}
	if n := p.node.m.Pending() + p.gateway.m.Pending(); n != 0 {
		t.Errorf("%d messages are kept, want none: it speaks of the moment", n)
	}
	p.wantUp()
}

// TestRetarget: a set-up that is refused, and where else to go.
func TestRetarget(t *testing.T) {
	p := newPair(t)
	p.connect()
	var named []string
	p.node.watch = func(_ Event, actions []Action) {
		for _, a := range actions {
			if r, ok := a.(Retargeted); ok {
				named = r.Gateways
			}
		}
	}
	stop := &wire.StopCCN{Result: wire.Result{Code: wire.StopError, Error: wire.ErrorTryNamed, Cause: wire.CauseDraining}, Gateways: []string{"gw-2.example:443"}}
	p.node.step(Received{1, &wire.Packet{ConnID: p.node.m.rec.LocalID, Nr: 1, Message: stop}})
	if len(named) != 1 || named[0] != "gw-2.example:443" || p.node.m.State() != session.Closed {
		t.Errorf("the node is %v and was sent to %v", p.node.m.State(), named)
	}
}
