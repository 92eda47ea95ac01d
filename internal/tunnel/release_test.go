package tunnel

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/auth"
	"tunneld/internal/session"
	"tunneld/internal/store/storetest"
	"tunneld/internal/tunnel/engine"
)

// keptPair is a pair whose gateway keeps its book of nodes elsewhere; the node has
// a ticket for its session.
func keptPair(t *testing.T) (gw, node *daemon, id string) {
	t.Helper()
	gw, node = newGatewayDaemon(t), newNodeDaemon(t, "alice")
	gw.keep = auth.Keep{Keys: storetest.New(t), Book: storetest.New(t)}
	gw.run()
	t.Cleanup(func() { gw.end() })
	node.run()
	t.Cleanup(node.end)
	node.join(gw)
	id = established(t, gw, node)
	wait(t, "a ticket", func() bool {
		node.m.mu.Lock()
		conn := node.m.tunnels[0].link.conn
		node.m.mu.Unlock()
		own := conn.View().Sessions
		return len(own) == 1 && !own[0].Ticket.IsZero()
	})
	return gw, node, id
}

// bookless is a pair whose gateway has lost its state and its book of nodes; the
// session is rebuilt and quarantined.
func bookless(t *testing.T) (gw, node *daemon, id string) {
	t.Helper()
	gw, node, id = keptPair(t)
	gw.end()
	gw.store, gw.keep.Book = storetest.New(t), storetest.New(t)
	gw.run()
	if got := established(t, gw, node); got != id {
		t.Fatalf("session %v was rebuilt, want %v", got, id)
	}
	if s := gw.sessions()[0]; !s.Quarantined || gw.engineSession(id).Gate != engine.Quarantined {
		t.Fatalf("session %+v with gate %v, want it quarantined", s, gw.engineSession(id).Gate)
	}
	return gw, node, id
}

// TestRelease: a session whose node an administrator answers for goes on, over
// restarts too, and the node has the rights that its session made use of.
func TestRelease(t *testing.T) {
	gw, node, id := bookless(t)
	request := session.NewID()
	if err := gw.m.ReleaseSession(api.WithRequest(t.Context(), request), id[:8]); err != nil {
		t.Fatal(err)
	}
	open := func(when string) {
		t.Helper()
		if s := gw.sessions()[0]; s.Quarantined || gw.engineSession(id).Gate != engine.Open {
			t.Errorf("%s: session %+v with gate %v, want it open", when, s, gw.engineSession(id).Gate)
		}
	}
	open("released")
	detail, err := gw.m.Session(t.Context(), id)
	told := func(e api.Event) bool {
		return e.Event == "quarantine-lifted" && e.Request != nil && *e.Request == request.String()
	}
	if err != nil || !slices.ContainsFunc(detail.History, told) || !gw.recorded("quarantine-lifted", id, "") {
		t.Errorf("its story = %+v, %v, want who let it out", detail.History, err)
	}
	if err := gw.m.ReleaseSession(t.Context(), id); !hasCode(err, api.Failed) || !strings.Contains(err.Error(), "not quarantined") {
		t.Errorf("released again: %v, want it refused", err)
	}
	gw.end()
	gw.run()
	established(t, gw, node)
	open("restarted")
	nodes, err := gw.m.Nodes(t.Context())
	if err != nil || len(nodes) != 1 || nodes[0].Name != "alice" || nodes[0].State != "enrolled" || !slices.Equal(nodes[0].Networks, []string{"office"}) {
		t.Errorf("node list = %+v, %v, want alice with the right to the office", nodes, err)
	}
	if err := node.m.Down(t.Context(), "office"); err != nil {
		t.Fatal(err)
	}
	if _, err := node.m.Up(t.Context(), "office", 0); err != nil {
		t.Fatal(err)
	}
	if renewed := established(t, gw, node); renewed == id {
		t.Error("no new session")
	}
	if err := gw.m.RevokeNode(t.Context(), "alice"); err != nil {
		t.Errorf("the node that was accepted cannot be revoked: %v", err)
	}
}

// TestReleaseRefused: what is not quarantined is not released, and nobody gets
// a name that has another owner.
func TestReleaseRefused(t *testing.T) {
	gw, node, id := bookless(t)
	if err := node.m.ReleaseSession(t.Context(), id); !hasCode(err, api.Failed) {
		t.Errorf("release at the node: %v, want it refused", err)
	}
	if err := gw.m.ReleaseSession(t.Context(), "ffffffff"); !hasCode(err, api.NoSuch) {
		t.Errorf("release of no session: %v, want that there is none", err)
	}
	if _, err := gw.m.Invite(t.Context(), api.InviteRequest{Node: "alice", TTLMillis: 60_000}); err != nil {
		t.Fatal(err)
	}
	err := gw.m.ReleaseSession(t.Context(), id)
	if e, ok := errors.AsType[*api.Error](err); !ok || !strings.Contains(e.Message, "invited anew") || e.Hint == "" {
		t.Errorf("release of a node whose name is invited anew: %v, want it refused with the way out", err)
	}
	if err := gw.m.RevokeNode(t.Context(), "alice"); err != nil { // takes the invite back
		t.Fatal(err)
	}
	if err := gw.m.ReleaseSession(t.Context(), id); err != nil {
		t.Errorf("release after that: %v", err)
	}
}

// TestReleaseOfOneRevoked: a book that comes back after all is believed.
func TestReleaseOfOneRevoked(t *testing.T) {
	gw, node, id := keptPair(t)
	gw.end()
	old := gw.keep.Book
	gw.store, gw.keep.Book = storetest.New(t), storetest.New(t)
	revokeIn(t, auth.Keep{Keys: gw.keep.Keys, Book: old}, "alice")
	gw.run()
	established(t, gw, node)
	if err := gw.m.ReleaseSession(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	gw.end()
	gw.keep.Book = old
	gw.run()
	wait(t, "the end of the revoked node's session", func() bool { return len(gw.sessions()) == 0 })
	wait(t, "the node to hear of it", func() bool {
		tn := node.tunnel()
		return tn.LastError != nil && strings.Contains(*tn.LastError, "revoked")
	})
}

// revokeIn revokes a node in a book, as another life of the gateway did.
func revokeIn(t *testing.T, k auth.Keep, name string) {
	t.Helper()
	st := storetest.New(t)
	if _, err := k.Reconcile(st); err != nil {
		t.Fatal(err)
	}
	r, err := auth.OpenRegistry(k.Mirror(st))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Revoke(name, time.Now()); err != nil {
		t.Fatal(err)
	}
}
