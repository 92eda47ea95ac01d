package api

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// fake is as much of a daemon as the tests inside this package need; whatever
// else it is asked panics. Package apitest, which imports this one, has more.
type fake struct {
	Manager
	upTakes time.Duration // longer than the caller waits, if negative

	mu    sync.Mutex // guards everything below
	asked []string
	next  chan Event
}

func (m *fake) note(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, what)
}

func (m *fake) heard() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked
}

func (m *fake) Version() Version { return Version{Version: "v1.2.3"} }

func (m *fake) Status(context.Context) (Status, error) {
	m.note("status")
	return Status{Node: "gw1"}, nil
}

func (m *fake) KillSession(context.Context, string, string) error { m.note("kill"); return nil }
func (m *fake) ReleaseSession(context.Context, string) error      { m.note("release"); return nil }

func (m *fake) Down(context.Context, string) error { m.note("down"); return nil }

func (m *fake) Up(ctx context.Context, name string, _ time.Duration) (Tunnel, error) {
	m.note("up")
	select {
	case <-time.After(m.upTakes):
		return Tunnel{Name: name, State: "established"}, nil
	case <-ctx.Done():
		return Tunnel{}, ctx.Err()
	}
}

// Events hands what its channel gives to one reader after the other.
func (m *fake) Events(ctx context.Context, _ bool) ([]Event, <-chan Event, error) {
	past := []Event{{Event: "daemon-started"}}
	if m.next == nil {
		return past, nil, nil
	}
	out := make(chan Event)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-m.next:
				out <- e
			}
		}
	}()
	return past, out, nil
}

// HandlerForTest answers requests as if root had sent them.
func HandlerForTest(s *server) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.ServeHTTP(w, r.WithContext(withPeer(r.Context(), &conn{peer: peer{uid: 0}})))
	})
}

// NewServerForTest is newServer.
var NewServerForTest = newServer
