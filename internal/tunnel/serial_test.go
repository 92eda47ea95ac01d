package tunnel

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/config"
)

// isStale reports whether err refuses a wish for a session as it was before.
func isStale(err error) bool { return hasCode(err, api.Stale) }

// TestOneOfTwoWins: of several who ask for a change of a session that all of them
// have seen at the same serial, one has it done, whichever verbs they use and
// whichever way the session is named; the others are told of both serials.
func TestOneOfTwoWins(t *testing.T) {
	gw, node := timedPair(t, func(c *config.Timers) { c.Absolute, c.Extend = time.Hour, 90*time.Minute })
	for round := range 3 {
		id := established(t, gw, node)
		var seen *uint64
		wait(t, "a serial", func() bool { seen = node.tunnel().Serial; return seen != nil })
		ctx := api.WithIfSerial(t.Context(), *seen)
		verbs := map[string]func(context.Context) error{
			"suspend": func(ctx context.Context) error { return node.m.Suspend(ctx, "office") },
			"down":    func(ctx context.Context) error { return node.m.Down(ctx, "office") },
			"kill":    func(ctx context.Context) error { return node.m.KillSession(ctx, id, "test") },
			"extend":  func(ctx context.Context) error { _, err := node.m.Extend(ctx, "office", time.Minute); return err },
		}
		start := make(chan struct{})
		results := make(chan string, 2*len(verbs))
		var all sync.WaitGroup
		for name, verb := range verbs {
			for range 2 {
				all.Go(func() {
					<-start
					switch err := verb(ctx); {
					case err == nil:
						results <- name
					case !isStale(err) && !hasCode(err, api.NoSuch): // the latter: it is over
						results <- fmt.Sprintf("%s: %v", name, err)
					}
				})
			}
		}
		close(start)
		all.Wait()
		close(results)
		var won []string
		for r := range results {
			won = append(won, r)
		}
		if len(won) != 1 {
			t.Errorf("round %d: done or failed: %v, want one of them done and the others stale", round, won)
		}
		if err := node.m.Resume(t.Context(), "office"); err != nil {
			t.Fatal(err)
		}
		if _, err := node.m.Up(t.Context(), "office", patience); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStaleSays names the session, both serials and the way out, and has changed
// nothing; with the serial of now it is done.
func TestStaleSays(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	wait(t, "the gateway to have it, too", func() bool { return *gw.sessions()[0].Serial > 0 })
	now := *gw.sessions()[0].Serial
	err := gw.m.KillSession(api.WithIfSerial(t.Context(), now+5), id, "test")
	e, ok := errors.AsType[*api.Error](err)
	if !ok || e.Code != api.Stale {
		t.Fatalf("KillSession at another serial = %v, want it stale", err)
	}
	for _, says := range []string{id, fmt.Sprintf("serial %d", now), fmt.Sprintf("not %d", now+5)} {
		if !strings.Contains(e.Message, says) {
			t.Errorf("%q does not say %q", e.Message, says)
		}
	}
	if !strings.Contains(e.Hint, fmt.Sprintf("--if-serial %d", now)) {
		t.Errorf("hint = %q, want the way out", e.Hint)
	}
	if len(gw.sessions()) != 1 || node.tunnel().Session == nil {
		t.Fatal("the session has ended")
	}
	if d, err := gw.m.Session(t.Context(), id); err != nil || d.Serial == nil || *d.Serial != now {
		t.Errorf("session show = %+v, %v; want serial %d", d.Serial, err, now)
	}
	if err := gw.m.KillSession(api.WithIfSerial(t.Context(), now), id, "test"); err != nil {
		t.Errorf("KillSession at the serial of now = %v", err)
	}
	if err := node.m.Down(t.Context(), "office"); err != nil {
		t.Fatal(err)
	}
	if err := node.m.Suspend(api.WithIfSerial(t.Context(), 3), "office"); !isStale(err) {
		t.Errorf("Suspend of a session that is over = %v, want it stale", err)
	}
}

// TestHoldMovesTheSerial at both ends, over a restart too.
func TestHoldMovesTheSerial(t *testing.T) {
	gw, node := pair(t)
	established(t, gw, node)
	wait(t, "both to have one", func() bool { s := node.tunnel().Serial; return s != nil && *gw.sessions()[0].Serial > 0 })
	before := [2]uint64{*node.tunnel().Serial, *gw.sessions()[0].Serial}
	if err := node.m.Suspend(api.WithIfSerial(t.Context(), before[0]), "office"); err != nil {
		t.Fatal(err)
	}
	wait(t, "both serials to move", func() bool {
		return *node.tunnel().Serial > before[0] && *gw.sessions()[0].Serial > before[1]
	})
	if tn := node.tunnel(); !tn.Held {
		t.Error("the tunnel is not held")
	}
	at := *node.tunnel().Serial
	node.end()
	node.run()
	if got := node.tunnel().Serial; got == nil || *got != at {
		t.Errorf("serial after a restart = %v, want %d", got, at)
	}
}
