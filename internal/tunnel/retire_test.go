package tunnel

import (
	"context"
	"testing"
	"time"

	"tunneld/internal/api"
)

// retires has a gateway retire and returns a channel that is closed when it has.
func (d *daemon) retires(ctx context.Context, wait time.Duration) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.m.Retire(ctx, wait)
	}()
	return done
}

func ended(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s: Retire does not return", what)
	}
}

func (d *daemon) drains() bool {
	d.t.Helper()
	st, err := d.m.Status(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	return st.Drain != nil
}

// TestRetire: a gateway waits for the nodes that can be told, and for nobody else,
// and no longer than it was said.
func TestRetire(t *testing.T) {
	gw, node := pair(t)
	established(t, gw, node)
	done := gw.retires(t.Context(), time.Hour)
	wait(t, "the node to be told", func() bool { return node.tunnel().Leaving != nil })
	if err := gw.m.Drain(t.Context(), api.DrainRequest{Cancel: true}); err != nil {
		t.Fatal(err)
	}
	ended(t, "the gateway stays after all", done)

	ctx, cancel := context.WithCancel(t.Context())
	done = gw.retires(ctx, time.Hour)
	wait(t, "the drain", gw.drains)
	cancel()
	ended(t, "the daemon ends", done)
	ended(t, "the time is over", gw.retires(t.Context(), time.Millisecond))

	done = gw.retires(t.Context(), time.Hour)
	wait(t, "the drain", gw.drains)
	node.end()
	ended(t, "the node is gone, and its session suspended", done)
	node.run()
	wait(t, "the node's return", func() bool { s := gw.sessions(); return len(s) == 1 && s[0].State == "established" })

	if err := node.m.Down(t.Context(), "office"); err != nil {
		t.Fatal(err)
	}
	wait(t, "the end of the session", func() bool { return len(gw.sessions()) == 0 })
	ended(t, "nobody is left", gw.retires(t.Context(), time.Hour))
	node.m.Retire(t.Context(), time.Hour) // a plain node has nobody to wait for
}
