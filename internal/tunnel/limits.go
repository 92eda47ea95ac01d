package tunnel

import (
	"fmt"

	"tunneld/internal/api"
	"tunneld/internal/auth"
	"tunneld/internal/config"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

// limits bound what passes a session at its gateway, as the node sees it: up is
// what it sends. The data plane keeps them, and drops what goes beyond.
type limits struct {
	up, down  config.Rate
	direction string // of config's names
}

// nothingPasses is the direction of a session whose network and node exclude
// each other's.
const nothingPasses = "none"

// limits are those of the network alone.
func (n *network) limits() limits {
	l := limits{n.cfg.RateUp, n.cfg.RateDown, n.cfg.Direction}
	if l.direction == "" {
		l.direction = config.DirectionDuplex
	}
	return l
}

// limitsOf are those of a node's sessions in the network: of what the
// configuration says and what the node's invite said, the narrower.
func (n *network) limitsOf(node session.ID) limits {
	return n.limits().narrowed(n.g.registry.Limits(node))
}

func (l limits) narrowed(by auth.Limits) limits {
	l.up, l.down = narrower(l.up, config.Rate(by.RateUp)), narrower(l.down, config.Rate(by.RateDown))
	switch d := by.Direction; {
	case d == "" || d == config.DirectionDuplex || d == l.direction:
	case l.direction == config.DirectionDuplex:
		l.direction = d
	default:
		l.direction = nothingPasses
	}
	return l
}

// narrower is the smaller of two rates, of which zero is no bound.
func narrower(a, b config.Rate) config.Rate {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// engine is what the data plane is told, which sees them from the gateway.
func (l limits) engine() (d engine.Direction, rx, tx engine.Rate) {
	switch l.direction {
	case config.DirectionUp:
		d = engine.ReceiveOnly
	case config.DirectionDown:
		d = engine.SendOnly
	}
	return d, engine.Rate{BytesPerSecond: uint64(l.up / 8)}, engine.Rate{BytesPerSecond: uint64(l.down / 8)}
}

// limits are those of the session now.
func (mb *member) limits() limits { return mb.network.limitsOf(mb.nodeID) }

// view is how they are shown.
func (l limits) view() api.Limits {
	return api.Limits{RateUp: bound(l.up), RateDown: bound(l.down), Direction: &l.direction}
}

// limitsView are the limits of a node, whatever the network.
func limitsView(l auth.Limits) api.Limits {
	return limits{direction: config.DirectionDuplex}.narrowed(l).view()
}

func bound(r config.Rate) *uint64 {
	if r == 0 {
		return nil
	}
	n := uint64(r)
	return &n
}

// inviteLimits are those that an invite gives its node, in networks whose own
// direction does not exclude them.
func (g *gateway) inviteLimits(q api.InviteRequest, networks []string) (l auth.Limits, err error) {
	up, err := config.CheckRate(q.RateUp)
	if err != nil {
		return l, usage("--rate-up %v", err)
	}
	down, err := config.CheckRate(q.RateDown)
	if err != nil {
		return l, usage("--rate-down %v", err)
	}
	if q.Direction != "" {
		if err := config.CheckDirection(q.Direction); err != nil {
			return l, usage("--direction %v", err)
		}
	}
	l = auth.Limits{RateUp: uint64(up), RateDown: uint64(down), Direction: q.Direction}
	for _, name := range networks {
		if n := g.network(name).limits(); n.narrowed(l).direction == nothingPasses {
			return l, usage("--direction %s and network %q, which is for %s alone: nothing would pass", q.Direction, name, n.direction)
		}
	}
	return l, nil
}

// usage is a mistake in a request.
func usage(format string, args ...any) *api.Error {
	return &api.Error{Code: api.Usage, Message: fmt.Sprintf(format, args...)}
}

// dropsView are the packets that were dropped, by cause.
func dropsView(d engine.Drops) *api.Drops {
	return &api.Drops{
		Gate: d[engine.CauseGate], Deadline: d[engine.CauseDeadline], Direction: d[engine.CauseDirection], Rate: d[engine.CauseRate],
		Source: d[engine.CauseSource], NoKey: d[engine.CauseNoKey], Congested: d[engine.CauseCongested], Unsent: d[engine.CauseUnsent],
	}
}
