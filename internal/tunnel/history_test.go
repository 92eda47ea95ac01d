package tunnel

import (
	"bytes"
	"encoding/json"
	"slices"
	"sync"
	"testing"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/event"
	"tunneld/internal/session"
)

// book keeps the lines of a daemon's log.
type book struct {
	mu    sync.Mutex // guards everything below
	lines [][]byte
}

func (b *book) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, bytes.Clone(line))
	return len(line), nil
}

// page is a line about a session.
type page struct{ Level, Msg, Session, State, Cause, Request, From string }

// of are the Info lines about a session, oldest first.
func (b *book) of(t *testing.T, id string) (all []page) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, line := range b.lines {
		var p page
		if err := json.Unmarshal(line, &p); err != nil {
			t.Fatalf("log line %s: %v", line, err)
		}
		if p.Level == "INFO" && p.Session == id {
			all = append(all, p)
		}
	}
	return all
}

// retold is what a session has become, as its log tells; it fails on a line that
// cannot follow those before it, so a change told twice or not at all.
func retold(t *testing.T, who string, pages []page) (state string, held bool) {
	t.Helper()
	for i, p := range pages {
		ok := state == "established"
		switch event.Kind(p.Msg) {
		case event.SessionEstablished:
			ok, state = state == "", "established"
		case event.SessionSuspended:
			state = "suspended"
		case event.SessionResumed:
			ok, state = state == "suspended" && p.From != "", "established"
		case event.SessionHeld:
			ok, held = state != "" && state != "closed" && !held, true
		case event.SessionReleased:
			ok, held = state != "closed" && held, false
		case event.SessionClosed:
			ok, state = state != "" && state != "closed" && p.Cause != "", "closed"
		default: // no change of state
			ok = state != "" && state != "closed"
		}
		if !ok {
			t.Errorf("%s: line %d does not follow those before it: %+v", who, i, pages)
		}
	}
	return state, held
}

// TestTheLogIsTheHistory reads both ends' logs of a session that lived through
// everything, and wants each change once, with the ids of the wishes behind
// them, and the story that `session show` tells alike.
func TestTheLogIsTheHistory(t *testing.T) {
	gw, node := newGatewayDaemon(t), newNodeDaemon(t, "alice")
	gw.book, node.book = &book{}, &book{}
	node.cfg.Data.Rekey = 100 * time.Millisecond
	gw.run()
	t.Cleanup(func() { gw.end() })
	node.run()
	t.Cleanup(func() { node.end() })
	node.join(gw)
	id := established(t, gw, node)
	wishes := map[string]session.ID{}
	wish := func(what string, fn func() error) {
		t.Helper()
		if err := fn(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	ask := func(what string, fn func(id session.ID) error) {
		t.Helper()
		wishes[what] = session.NewID()
		wish(what, func() error { return fn(wishes[what]) })
	}
	told := func(d *daemon, kind event.Kind, n int) func() bool {
		return func() bool {
			return len(slices.DeleteFunc(d.book.of(t, id), func(p page) bool { return p.Msg != string(kind) })) >= n
		}
	}
	for _, d := range []*daemon{gw, node} {
		wait(t, "a change of keys", told(d, event.SessionRekeyed, 1))
	}
	ask("session-held", func(id session.ID) error { return node.m.Suspend(api.WithRequest(t.Context(), id), "office") })
	wait(t, "the hold at the gateway", told(gw, event.SessionHeld, 1))
	ask("session-released", func(id session.ID) error { return node.m.Resume(api.WithRequest(t.Context(), id), "office") })
	wait(t, "the release at the gateway", told(gw, event.SessionReleased, 1))
	gw.end()
	wait(t, "the node to notice", told(node, event.SessionSuspended, 1))
	gw.run()
	established(t, gw, node)
	node.end()
	wait(t, "the gateway to notice", told(gw, event.SessionSuspended, 2))
	node.run()
	established(t, gw, node)
	for _, d := range []*daemon{gw, node} {
		state, held := retold(t, d.cfg.Node.Name, d.book.of(t, id))
		if state != "established" || held {
			t.Errorf("%s: the log says %s, held %v", d.cfg.Node.Name, state, held)
		}
	}
	wait(t, "both ends at one checkpoint", func() bool {
		g, gerr := gw.m.Session(t.Context(), id)
		n, nerr := node.m.Session(t.Context(), id)
		return gerr == nil && nerr == nil && *g.Checkpoint == *n.Checkpoint && *g.Checkpoint > 6
	})
	ask("session-closed", func(wish session.ID) error {
		return gw.m.KillSession(api.WithRequest(t.Context(), wish), id, "test")
	})
	wait(t, "the end at the node", told(node, event.SessionClosed, 1))

	for _, d := range []*daemon{gw, node} {
		name := d.cfg.Node.Name
		pages := d.book.of(t, id)
		if state, _ := retold(t, name, pages); state != "closed" {
			t.Errorf("%s: the log says %s after the end", name, state)
		}
		for _, p := range pages {
			if want, ok := wishes[p.Msg]; ok && p.Request != want.String() {
				t.Errorf("%s: %s has request %q, want %v", name, p.Msg, p.Request, want)
			}
		}
		d.wantStory(id, pages)
	}
	if g, n := gw.book.of(t, id)[0], node.book.of(t, id)[0]; g.Request == "" || g.Request != n.Request {
		t.Errorf("the session began by request %q at the gateway and %q at the node", g.Request, n.Request)
	}
	gw.end()
	gw.run()
	gw.wantStory(id, gw.book.of(t, id))
}

// wantStory compares the story of a session that is over with its log.
func (d *daemon) wantStory(id string, pages []page) {
	d.t.Helper()
	detail, err := d.m.Session(d.t.Context(), id)
	if err != nil || detail.State != "closed" {
		d.t.Fatalf("%s: Session(%v) = %+v, %v; want it closed", d.cfg.Node.Name, id, detail, err)
	}
	var logged, story []string
	for _, p := range pages {
		logged = append(logged, p.Msg+" "+p.Cause+" "+p.Request+" "+p.From)
	}
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	for _, e := range detail.History {
		story = append(story, e.Event+" "+text(e.Cause)+" "+text(e.Request)+" "+text(e.From))
	}
	if !slices.Equal(logged, story) {
		d.t.Errorf("%s: the story\n%q\nis not the log\n%q", d.cfg.Node.Name, story, logged)
	}
	if last := detail.History[len(detail.History)-1]; last.RxBytes == nil || last.TxBytes == nil {
		d.t.Errorf("%s: the end has no counters: %+v", d.cfg.Node.Name, last)
	}
}
