package api

import (
	"fmt"
	"sync"

	"tunneld/internal/session"
)

// Two callers do not change one thing at the same time: the second is told who is
// at it, and decides for himself whether to ask again. So nobody's change is made
// on top of one he did not see. A request that is repeated is no second one, see
// once; `up`, which waits, is ended by `down` and locks nothing.

// changer is a request that changes one thing, which it names.
type changer interface{ changes() string }

func (r KillRequest) changes() string    { return "session " + quoted(r.Session) }
func (r ReleaseRequest) changes() string { return "session " + quoted(r.Session) }
func (r RevokeRequest) changes() string  { return "node " + quoted(r.Node) }
func (r InviteRequest) changes() string  { return "node " + quoted(r.Node) }
func (r JoinRequest) changes() string    { return "the tunnels of this node" }
func (r TunnelRequest) changes() string  { return "tunnel " + quoted(r.Tunnel) }
func (r ExtendRequest) changes() string  { return "tunnel " + quoted(r.Tunnel) }

func quoted(name string) string { return fmt.Sprintf("%q", name) }

// A holder changes something.
type holder struct {
	user, verb string
	request    session.ID
}

// locks are the things that are being changed. The zero locks are ready to use.
type locks struct {
	mu sync.Mutex // guards everything below
	by map[string]holder
}

// take gives the thing to h until free is called, or says who has it.
func (l *locks) take(thing string, h holder) (free func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if other, taken := l.by[thing]; taken {
		return nil, &Error{
			Code:    Failed,
			Message: fmt.Sprintf("%s is being changed by %s (%s, request %v)", thing, other.user, other.verb, other.request),
			Hint:    "ask again when that is done",
		}
	}
	if l.by == nil {
		l.by = map[string]holder{}
	}
	l.by[thing] = h
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.by, thing)
	}, nil
}
