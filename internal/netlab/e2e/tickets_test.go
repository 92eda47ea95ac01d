package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tunneld/internal/netlab"
)

// loseState kills hq and takes away what is below those names of its directory.
func (w *world) loseState(names ...string) {
	w.t.Helper()
	w.check(w.hq.Process().Kill9())
	for _, n := range names {
		w.check(os.RemoveAll(filepath.Join(w.hq.Dir(), n)))
	}
	w.start(w.hq)
}

// events are the kinds and causes that a daemon remembers.
func (w *world) events(d *netlab.Daemon) (all []string) {
	w.t.Helper()
	for line := range strings.Lines(w.ctl(d, "--json", "events")) {
		var e struct{ Event, Cause string }
		w.check(json.Unmarshal([]byte(line), &e))
		all = append(all, e.Event+": "+e.Cause)
	}
	return all
}

// remembers reports whether one of a daemon's events says what.
func (w *world) remembers(d *netlab.Daemon, what string) bool {
	w.t.Helper()
	return strings.Contains(strings.Join(w.events(d), "\n"), what)
}

// TestStateLost takes the gateway's state directory away, twice: each time the
// session goes on, with the same UUID and addresses and in a later key epoch, and
// nobody else notices either.
func TestStateLost(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	before, _ := w.established(alice)
	w.ping("alice", server)
	for range 2 {
		epoch := w.tunnel(alice).KeyEpoch
		w.loseState("state")
		after, atGateway := w.established(alice)
		w.same(before, after)
		if after.KeyEpoch <= epoch || atGateway.KeyEpoch != after.KeyEpoch {
			t.Errorf("key epoch %d at the node, %d at the gateway, after %d: want a later one", after.KeyEpoch, atGateway.KeyEpoch, epoch)
		}
		w.ping("alice", server, server6)
		if !w.remembers(w.hq, "state-rebuilt") || !w.remembers(w.hq, "session-rebuilt: from its ticket") || !w.remembers(alice, "session-rebuilt") {
			t.Errorf("events of the gateway %q, of the node %q", w.events(w.hq), w.events(alice))
		}
	}
	if !strings.Contains(w.ctl(w.hq, "node", "list"), "alice") {
		t.Error("the gateway has lost its nodes")
	}
	w.ctl(alice, "down", office)
	w.ctl(alice, "up", office)
	renewed, _ := w.established(alice)
	w.renewed(before, renewed)
}

// TestBookLost takes the book of nodes as well: the session is rebuilt, and
// nothing passes it until the book is back.
func TestBookLost(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	before, _ := w.established(alice)
	p := w.probe("alice")
	book := filepath.Join(w.hq.Dir(), "state-tickets", "book")
	w.check(w.hq.Process().Kill9())
	w.check(os.Rename(book, book+".backup"), os.RemoveAll(filepath.Join(w.hq.Dir(), "state")))
	w.start(w.hq)
	after, _ := w.established(alice)
	w.same(before, after)
	w.silent(p)
	if !w.remembers(w.hq, "quarantined") || !strings.Contains(w.ctl(w.hq, "status"), "the book of nodes is lost") {
		t.Errorf("events of the gateway: %q", w.events(w.hq))
	}
	w.ctl(alice, "down", office) // a new session is for those who have a right to it
	_, err := alice.Ctl(w.patience(), "up", office, "--wait", "2s")
	if err == nil || !strings.Contains(err.Error(), "lost its book of nodes") {
		t.Errorf("up of a new session: %v, want an error that names the book", err)
	}

	w.check(w.hq.Process().Kill9())
	w.check(os.RemoveAll(book), os.Rename(book+".backup", book))
	w.start(w.hq)
	w.ctl(alice, "up", office)
	w.answered(p)
}

// TestRelease lets a session out of quarantine whose node an administrator
// answers for: it goes on, over a kill too, and the node has its rights again.
func TestRelease(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	before, _ := w.established(alice)
	p := w.probe("alice")
	w.loseState("state", filepath.Join("state-tickets", "book"))
	after, _ := w.established(alice)
	w.same(before, after)
	w.silent(p)
	w.refused(alice, 1, "session", "release", before.Session)
	w.ctl(w.hq, "session", "release", before.Session)
	w.answered(p)
	w.refused(w.hq, 1, "session", "release", before.Session) // once is enough
	if !strings.Contains(w.ctl(w.hq, "session", "show", before.Session), "let out of quarantine  request ") {
		t.Errorf("its story:\n%s", w.ctl(w.hq, "session", "show", before.Session))
	}
	w.check(w.hq.Process().Kill9())
	w.start(w.hq)
	w.answered(p)
	w.ctl(alice, "down", office)
	w.ctl(alice, "up", office)
	renewed, _ := w.established(alice)
	w.renewed(before, renewed)
}

// TestRevokedIsNotRebuilt: revocations outlive the state directory.
func TestRevokedIsNotRebuilt(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	before, _ := w.established(alice)
	w.net.Wires["nat.wan"].Cut()
	w.ctl(w.hq, "node", "revoke", "alice")
	w.loseState("state")
	w.net.Wires["nat.wan"].Restore()
	w.eventually("words about the revocation", func() bool { return strings.Contains(w.tunnel(alice).LastError, "revoked") })
	w.over(before.Session)
}

// copyState copies a state directory, with the rights that its key must have.
func (w *world) copyState(from, to string) {
	w.t.Helper()
	w.check(os.CopyFS(to, os.DirFS(from)), os.Chmod(filepath.Join(to, "seal.key"), 0o600))
}

// TestUsedTicket: a copy of a node's state from before a rebuild gets another
// session, and the gateway says that there may be two of the node.
func TestUsedTicket(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	before, _ := w.established(alice)
	w.check(alice.Process().Stop())
	state := filepath.Join(alice.Dir(), "state")
	w.copyState(state, state+".copy")
	w.start(alice)
	w.established(alice)
	w.check(alice.Process().Kill9())
	w.loseState("state")
	w.copyState(state, state+".used")
	w.start(alice)
	after, _ := w.established(alice)
	w.same(before, after)

	w.check(alice.Process().Kill9())
	w.check(os.RemoveAll(state), os.Rename(state+".used", state))
	w.start(alice)
	renewed, _ := w.established(alice)
	w.renewed(before, renewed)
	if !w.remembers(w.hq, "cloned-state") {
		t.Errorf("events of the gateway: %q, want cloned-state", w.events(w.hq))
	}
	if !w.recorded(alice, "session-closed", before.Session, "the ticket was used before") {
		t.Errorf("events of the node: %q", w.events(alice))
	}

	w.check(alice.Process().Kill9()) // and one whose ticket was replaced by another before the gateway lost anything
	w.loseState("state")
	w.check(os.RemoveAll(state), os.Rename(state+".copy", state))
	w.start(alice)
	w.eventually("another session", func() bool {
		s := w.tunnel(alice)
		return s.State == netlab.Established && s.Session != before.Session && s.Session != renewed.Session
	})
	if !w.recorded(alice, "session-closed", before.Session, "ticket") {
		t.Errorf("events of the node: %q", w.events(alice))
	}
}
