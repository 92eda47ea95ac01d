package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"tunneld/internal/netlab"
)

// problem reports whether a daemon's status says that its disk cannot be
// written.
func (w *world) problem(d *netlab.Daemon) bool {
	w.t.Helper()
	s, err := d.Status(w.patience())
	w.check(err)
	return slices.ContainsFunc(s.Problems, func(p netlab.Problem) bool {
		return strings.Contains(p.What, "no space left on device") && strings.Contains(p.Mend, "make room")
	})
}

// invited are the names that hq knows.
func (w *world) invited() (names []string) {
	w.t.Helper()
	var nodes []struct{ Name string }
	w.check(json.Unmarshal([]byte(w.ctl(w.hq, "--json", "node", "list")), &nodes))
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	return names
}

// onDisk gives the gateway's state directory a disk of its own.
func (w *world) onDisk(size string) *netlab.Disk {
	w.t.Helper()
	w.check(w.hq.Process().Stop())
	disk, err := w.hq.OnDisk(w.patience(), size)
	w.check(err)
	w.start(w.hq)
	return disk
}

// TestFullDisk fills the gateway's disk under a session that lives: its packets
// pass, what is new is refused, what was acknowledged is there after a kill, and
// all goes on when there is room again.
func TestFullDisk(t *testing.T) {
	w := newOffice(t, roadPlan+branchPlan)
	disk := w.onDisk("6m")
	alice, branch := w.node("alice"), w.node("branch")
	w.ctl(branch, "down", office)
	before, _ := w.established(alice)
	p := w.probe("alice")

	w.check(disk.Fill())
	var stored []string
	refused := ""
	w.eventually("the disk to be full", func() bool {
		name := fmt.Sprintf("guest%d", len(stored))
		_, err := w.hq.Ctl(w.patience(), "invite", name)
		if err != nil {
			refused = name
			return true
		}
		stored = append(stored, name)
		return false
	})
	if !w.problem(w.hq) || !w.remembers(w.hq, "journal-failing") {
		t.Errorf("status on a full disk:\n%s", w.ctl(w.hq, "status"))
	}
	_, err := branch.Ctl(w.patience(), "up", office, "--wait", "3s")
	if err == nil || !strings.Contains(err.Error(), "the journal cannot be written there") {
		t.Errorf("up at a gateway whose disk is full: %v, want that said", err)
	}
	w.answered(p)
	w.check(w.hq.Process().Kill9())
	w.start(w.hq)
	w.answered(p)
	w.same(before, w.tunnel(alice))
	known := w.invited()
	for _, name := range stored {
		if !slices.Contains(known, name) {
			t.Errorf("%s was invited, and is forgotten after a kill", name)
		}
	}
	if slices.Contains(known, refused) {
		t.Errorf("%s was refused, and is there after a kill", refused)
	}

	w.check(disk.Empty())
	w.eventually("the end of the problem", func() bool { return !w.problem(w.hq) })
	w.ctl(branch, "up", office)
	after, _ := w.established(alice)
	w.same(before, after)
	w.answered(p)
}

// TestReadOnlyDisk: a gateway that is started on a disk which was mounted
// read-only says so and ends; once that is mended the session goes on.
func TestReadOnlyDisk(t *testing.T) {
	w := newOffice(t, roadPlan)
	disk := w.onDisk("6m")
	alice := w.node("alice")
	before, _ := w.established(alice)
	w.check(w.hq.Process().Kill9())
	w.check(disk.ReadOnly(w.patience(), true))
	w.check(w.hq.Start())
	if err := w.hq.Process().Wait(w.patience()); err == nil {
		t.Error("a daemon on a read-only disk ends with status 0")
	}
	log, err := os.ReadFile(w.hq.Dir() + ".log")
	w.check(err)
	if !strings.Contains(string(log), "read-only file system: state_dir must be a directory that this user may write") {
		t.Errorf("log of a daemon on a read-only disk:\n%s", log)
	}
	w.check(disk.ReadOnly(w.patience(), false))
	w.start(w.hq)
	after, _ := w.established(alice)
	w.same(before, after)
	w.ping("alice", server)
}
