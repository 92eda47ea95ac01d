package tunnel

import (
	"errors"
	"testing"

	"tunneld/internal/api"
	"tunneld/internal/auth"
	"tunneld/internal/config"
	"tunneld/internal/tunnel/engine"
)

func TestLimitsNarrowed(t *testing.T) {
	for _, c := range []struct {
		of   limits
		by   auth.Limits
		want limits
	}{
		{limits{0, 0, "duplex"}, auth.Limits{}, limits{0, 0, "duplex"}},
		{limits{0, 8000, "duplex"}, auth.Limits{RateUp: 16000}, limits{16000, 8000, "duplex"}},
		{limits{16000, 8000, "duplex"}, auth.Limits{RateUp: 8000, RateDown: 16000}, limits{8000, 8000, "duplex"}},
		{limits{0, 0, "duplex"}, auth.Limits{Direction: "up"}, limits{0, 0, "up"}},
		{limits{0, 0, "up"}, auth.Limits{Direction: "duplex"}, limits{0, 0, "up"}},
		{limits{0, 0, "up"}, auth.Limits{Direction: "up"}, limits{0, 0, "up"}},
		{limits{0, 0, "up"}, auth.Limits{Direction: "down"}, limits{0, 0, nothingPasses}},
	} {
		if got := c.of.narrowed(c.by); got != c.want {
			t.Errorf("%+v narrowed by %+v = %+v, want %+v", c.of, c.by, got, c.want)
		}
	}
}

// limitedTo compares what the data plane of a gateway was told, and what
// `session show` says.
func (d *daemon) limitedTo(id string, direction engine.Direction, rx, tx uint64, shown string) {
	d.t.Helper()
	s := d.engineSession(id)
	if s.Direction != direction || s.RxRate.BytesPerSecond != rx || s.TxRate.BytesPerSecond != tx {
		d.t.Errorf("the data plane has direction %d, rates %d and %d; want %d, %d and %d", s.Direction, s.RxRate.BytesPerSecond, s.TxRate.BytesPerSecond, direction, rx, tx)
	}
	detail, err := d.m.Session(d.t.Context(), id)
	if err != nil || detail.Direction == nil || *detail.Direction != shown {
		d.t.Errorf("session show: direction %v, %v, want %s", detail.Direction, err, shown)
	}
	if up := detail.RateUp; rx == 0 && up != nil || rx > 0 && (up == nil || *up != rx*8) {
		d.t.Errorf("session show: rate_up %v, want %d bits a second", up, rx*8)
	}
}

// TestLimits: a session has the limits of its network and those of its node's
// invite, whichever are narrower; a changed configuration counts for those that
// exist.
func TestLimits(t *testing.T) {
	gw, node := newGatewayDaemon(t), newNodeDaemon(t, "alice")
	office := &gw.cfg.Networks[0]
	office.RateUp, office.RateDown = 80_000, 160_000
	gw.run()
	t.Cleanup(func() { gw.end() })
	node.run()
	t.Cleanup(node.end)
	invite, err := gw.m.Invite(t.Context(), api.InviteRequest{Node: "alice", TTLMillis: 60_000, RateUp: "64kbit", RateDown: "1Mbit"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := node.m.Join(t.Context(), api.JoinRequest{Code: invite.Code}); err != nil {
		t.Fatal(err)
	}
	id := established(t, gw, node)
	gw.limitedTo(id, engine.Duplex, 8_000, 20_000, "duplex")
	if nodes, err := gw.m.Nodes(t.Context()); err != nil || len(nodes) != 1 || nodes[0].RateUp == nil || *nodes[0].RateUp != 64_000 || *nodes[0].RateDown != 1_000_000 {
		t.Errorf("node list = %+v, %v, want the limits of the invite", nodes, err)
	}
	st, err := gw.m.Status(t.Context())
	if err != nil || *st.Networks[0].RateUp != 80_000 || *st.Networks[0].RateDown != 160_000 || *st.Networks[0].Direction != "duplex" {
		t.Errorf("networks = %+v, %v, want the limits of the configuration", st.Networks, err)
	}
	if detail, err := node.m.Session(t.Context(), id); err != nil || detail.Direction != nil || detail.RxDropped == nil {
		t.Errorf("the node's own session = %+v, %v, want drops, and limits it is not told", detail, err)
	}

	gw.end()
	office.RateUp, office.RateDown, office.Direction = 32_000, 0, config.DirectionDown
	gw.run()
	if got := established(t, gw, node); got != id {
		t.Fatalf("session %v after the restart, want %v", got, id)
	}
	gw.limitedTo(id, engine.SendOnly, 4_000, 125_000, "down")
	gw.end()
	office.Direction = config.DirectionUp
	gw.run()
	established(t, gw, node)
	gw.limitedTo(id, engine.ReceiveOnly, 4_000, 125_000, "up")
}

// TestLimitsThatExclude: nothing passes where the network is for one way and the
// node for the other, whoever said so last.
func TestLimitsThatExclude(t *testing.T) {
	gw, node := newGatewayDaemon(t), newNodeDaemon(t, "alice")
	gw.cfg.Networks[0].Direction = config.DirectionUp
	gw.run()
	t.Cleanup(func() { gw.end() })
	node.run()
	t.Cleanup(node.end)
	invite := func(direction string) (api.InviteReply, error) {
		return gw.m.Invite(t.Context(), api.InviteRequest{Node: "alice", TTLMillis: 60_000, Direction: direction})
	}
	for _, direction := range []string{"down", "sideways"} {
		if _, err := invite(direction); !isUsage(err) {
			t.Errorf("invite --direction %s: %v, want a mistake of usage", direction, err)
		}
	}
	for _, rate := range []string{"fast", "1kbit"} {
		if _, err := gw.m.Invite(t.Context(), api.InviteRequest{Node: "alice", TTLMillis: 60_000, RateDown: rate}); !isUsage(err) {
			t.Errorf("invite --rate-down %s: %v, want a mistake of usage", rate, err)
		}
	}
	code, err := invite("up")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := node.m.Join(t.Context(), api.JoinRequest{Code: code.Code}); err != nil {
		t.Fatal(err)
	}
	id := established(t, gw, node)
	gw.limitedTo(id, engine.ReceiveOnly, 0, 0, "up")

	gw.end()
	gw.cfg.Networks[0].Direction = config.DirectionDown
	gw.run()
	established(t, gw, node)
	if s := gw.engineSession(id); s.Gate != engine.Quarantined {
		t.Errorf("gate = %v, want one that lets nothing through", s.Gate)
	}
	gw.limitedTo(id, engine.Duplex, 0, 0, nothingPasses)
	if err := node.m.Down(t.Context(), "office"); err != nil {
		t.Fatal(err)
	}
	if _, err := node.m.Up(t.Context(), "office", patience); !isNotAllowed(err) {
		t.Errorf("up of a session through which nothing would pass: %v, want it refused by right", err)
	}
}

func isUsage(err error) bool { return hasCode(err, api.Usage) }

func isNotAllowed(err error) bool { return hasCode(err, api.NotAllowed) }

func hasCode(err error, code api.Code) bool {
	e, ok := errors.AsType[*api.Error](err)
	return ok && e.Code == code
}
