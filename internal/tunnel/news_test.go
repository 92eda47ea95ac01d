package tunnel

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

// TestDataPathTells: what happens in the data plane reaches the control plane
// without anybody looking for it.
func TestDataPathTells(t *testing.T) {
	gw, node := newGatewayDaemon(t), newNodeDaemon(t, "alice")
	gw.book = &book{}
	for _, d := range []*daemon{gw, node} {
		d.run()
		t.Cleanup(d.end)
	}
	node.join(gw)
	id, err := session.ParseID(established(t, gw, node))
	if err != nil {
		t.Fatal(err)
	}

	// The gateway's engine hears of the node at two places.
	for _, at := range []string{"192.0.2.1:1", "192.0.2.2:2"} {
		stats := engine.Stats{Endpoint: netip.MustParseAddrPort(at), LastHandshake: time.Now()}
		if err := gw.engine.Device("tnl0").SetStats(id, stats); err != nil {
			t.Fatal(err)
		}
		wait(t, "the endpoint "+at, func() bool { return heardAt(gw, id) == stats.Endpoint })
	}
	if n := gw.happened("endpoint-moved", "from 192.0.2.1:1 to 192.0.2.2:2"); n != 1 {
		t.Errorf("%d events of the move, want 1", n)
	}

	// The node's engine gets no answer: the gateway is told so, once a minute.
	for range 3 {
		node.engine.Events().Tell(engine.Event{Kind: engine.NoAnswer, Session: id, At: time.Now()})
	}
	silent := func() int { return gw.book.count("peer's data path is silent") }
	wait(t, "the report at the gateway", func() bool { return silent() > 0 })
	if n := silent(); n != 1 {
		t.Errorf("the gateway was told %d times, want once a minute", n)
	}
}

// count is how many lines there are with that message.
func (b *book) count(message string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, line := range b.lines {
		if strings.Contains(string(line), message) {
			n++
		}
	}
	return n
}

// heardAt is where the gateway's manager believes a node to be.
func heardAt(gw *daemon, id session.ID) netip.AddrPort {
	g := gw.m.gateway
	g.mu.Lock()
	defer g.mu.Unlock()
	if mb := g.members.byID[id]; mb != nil {
		return mb.endpoint
	}
	return netip.AddrPort{}
}
