package tunnel

import (
	"encoding/json"
	"testing"
	"time"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

// TestStampsOutliveARestart: the gateway's engine goes on where it was after a
// restart, and a node that was restarted is told what was accepted from it.
func TestStampsOutliveARestart(t *testing.T) {
	gw, node := pair(t)
	text := established(t, gw, node)
	id, err := session.ParseID(text)
	if err != nil {
		t.Fatal(err)
	}
	accepted, sent := engine.Stamp{0x40, 11: 9}, engine.Stamp{0x40, 11: 5}
	for d, stats := range map[*daemon]engine.Stats{gw: {Accepted: accepted}, node: {Sent: sent, LastHandshake: time.Now()}} {
		if err := d.engine.Device("tnl0").SetStats(id, stats); err != nil {
			t.Fatal(err)
		}
	}
	gw.end()
	gw.run()
	wait(t, "the restarted gateway's data plane", func() bool {
		s, ok := gw.engine.Device("tnl0").Session(id)
		return ok && s.AcceptAbove == accepted
	})
	node.end()
	node.run()
	if s, _ := node.engine.Device("tnl0").Session(id); s.SendAbove != sent && s.SendAbove != accepted {
		t.Errorf("the restarted node sends above %x, want above its last stamp %x", s.SendAbove, sent)
	}
	wait(t, "the node is told what was accepted", func() bool {
		s, ok := node.engine.Device("tnl0").Session(id)
		return ok && s.SendAbove == accepted
	})
}

// TestCountersOfBefore: records without stamps are read as having none.
func TestCountersOfBefore(t *testing.T) {
	var c countersV1
	if err := json.Unmarshal([]byte(`{"Version":1,"RxBytes":3,"TxBytes":4}`), &c); err != nil || c != (countersV1{Version: 1, RxBytes: 3, TxBytes: 4}) {
		t.Errorf("decoded %+v, %v", c, err)
	}
	if b, err := json.Marshal(c); err != nil || string(b) != `{"Version":1,"RxBytes":3,"TxBytes":4}` {
		t.Errorf("encoded %s, %v; want nothing about stamps where there are none", b, err)
	}
	c.Accepted = engine.Stamp{1, 11: 2}
	b, err := json.Marshal(c)
	var again countersV1
	if err == nil {
		err = json.Unmarshal(b, &again)
	}
	if err != nil || again != c {
		t.Errorf("%s reads as %+v, %v", b, again, err)
	}
}
