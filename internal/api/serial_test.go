package api

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// picky is a daemon whose one session is at a serial.
type picky struct {
	fake
	serial uint64
}

func (m *picky) change(ctx context.Context) error {
	if want := IfSerialOf(ctx); want != 0 && want != m.serial {
		return &Error{Code: Stale, Message: fmt.Sprintf("at serial %d, not %d", m.serial, want), Hint: "look again"}
	}
	m.serial++
	return nil
}

func (m *picky) Suspend(ctx context.Context, _ string) error        { return m.change(ctx) }
func (m *picky) Resume(ctx context.Context, _ string) error         { return m.change(ctx) }
func (m *picky) Down(ctx context.Context, _ string) error           { return m.change(ctx) }
func (m *picky) Leave(ctx context.Context, _ string) error          { return m.change(ctx) }
func (m *picky) KillSession(ctx context.Context, _, _ string) error { return m.change(ctx) }
func (m *picky) Extend(ctx context.Context, _ string, _ time.Duration) (Tunnel, error) {
	return Tunnel{}, m.change(ctx)
}

// TestTwoClientsOneWins: both have read the same serial; whatever the two verbs
// are, the second is refused with a code of its own, and a third without a
// condition is not.
func TestTwoClientsOneWins(t *testing.T) {
	verbs := map[string]func(*Client, context.Context) error{
		"suspend": func(c *Client, ctx context.Context) error { return c.Suspend(ctx, "home") },
		"resume":  func(c *Client, ctx context.Context) error { return c.Resume(ctx, "home") },
		"down":    func(c *Client, ctx context.Context) error { return c.Down(ctx, "home") },
		"leave":   func(c *Client, ctx context.Context) error { return c.Leave(ctx, "home") },
		"kill":    func(c *Client, ctx context.Context) error { return c.KillSession(ctx, "1234", "") },
		"extend":  func(c *Client, ctx context.Context) error { _, err := c.Extend(ctx, "home", time.Hour); return err },
	}
	m := &picky{serial: 41}
	path, stop := serveFake(t, m)
	defer stop()
	one, two := Dial(path), Dial(path)
	for name, verb := range verbs {
		seen := WithIfSerial(t.Context(), m.serial)
		if err := verb(one, seen); err != nil {
			t.Errorf("%s: the first = %v", name, err)
		}
		err := verb(two, seen)
		if e, ok := errors.AsType[*Error](err); !ok || e.Code != Stale || e.Hint != "look again" {
			t.Errorf("%s: the second = %v, want it stale", name, err)
		}
		if err := verb(two, t.Context()); err != nil {
			t.Errorf("%s: without a condition = %v", name, err)
		}
	}
}
