package tunnel

import (
	"context"
	"testing"

	"tunneld/internal/event"
)

// TestEventsBeforeTheEnd: a reader that follows gets all that happened before
// its end, or the daemon's.
func TestEventsBeforeTheEnd(t *testing.T) {
	gw := newGatewayDaemon(t)
	gw.run()
	t.Cleanup(gw.end)
	const n = 10
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		_, next, err := gw.m.Events(ctx, true)
		if err != nil {
			t.Fatal(err)
		}
		for range n {
			gw.m.publish(event.Event{Kind: event.NodeInvited, Node: "alice"})
		}
		cancel()
		got := 0
		for range next {
			got++
		}
		if got != n {
			t.Fatalf("%d events came, want the %d before the end", got, n)
		}
	}
}
