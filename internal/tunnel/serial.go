package tunnel

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"tunneld/internal/api"
	"tunneld/internal/control"
	"tunneld/internal/session"
)

// A verb may say at which serial of a session it is meant: docs/protocol.md,
// "Tokens". The control machine compares, in the step that does what is wished.

// outdated are the wishes that machines have refused and whose callers have not
// been told yet. The zero outdated is ready to use.
type outdated struct {
	mu sync.Mutex // guards the map
	at map[session.ID]uint64
}

// note is for the handlers.
func (o *outdated) note(a control.Outdated) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.at == nil {
		o.at = map[session.ID]uint64{}
	}
	o.at[a.RequestID] = a.Session.Changes
}

func (o *outdated) take(request session.ID) (at uint64, refused bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	at, refused = o.at[request]
	delete(o.at, request)
	return at, refused
}

// doIf does what somebody wishes of a session; what names it for him.
func (m *Manager) doIf(ctx context.Context, conn doer, wish control.Event, request session.ID, what string) error {
	err := conn.Do(ctx, wish)
	at, refused := m.outdated.take(request)
	switch want := api.IfSerialOf(ctx); {
	case refused:
		return stale(what, want, at)
	case want != 0 && errors.Is(err, control.ErrClosed):
		return stale(what, want, 0)
	case err != nil:
		return failed(err)
	}
	return nil
}

// stale says that the session is not at the serial that somebody has seen; at 0:
// it is over.
func stale(what string, want, at uint64) error {
	if at == 0 {
		return &api.Error{Code: api.Stale, Message: fmt.Sprintf("%s is over, and was wanted at serial %d", what, want), Hint: "look at `tunnelctl status` or `sessions` before you ask again"}
	}
	return &api.Error{
		Code:    api.Stale,
		Message: fmt.Sprintf("%s is at serial %d, not %d: somebody has changed it", what, at, want),
		Hint:    fmt.Sprintf("look at it again (`tunnelctl session show`), and if you still wish that ask with --if-serial %d", at),
	}
}

// wishOf is the id of a request, made where it has none.
func wishOf(ctx context.Context) session.ID {
	if id := api.RequestOf(ctx); !id.IsZero() {
		return id
	}
	return session.NewID()
}

// sessionName names a session for people.
func sessionName(id session.ID) string { return fmt.Sprintf("session %v", id) }

// serialOf is the serial of a session of the connection; nil: it has none.
func serialOf(c *control.Conn, id session.ID) *uint64 {
	if c == nil {
		return nil
	}
	for _, s := range c.View().Sessions {
		if s.ID == id {
			return &s.Changes
		}
	}
	return nil
}
