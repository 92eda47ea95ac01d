package tunnel

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tunneld/internal/api"
	"tunneld/internal/store"
	"tunneld/internal/store/storetest"
)

// full fails every Update at its commit while err is set, as a disk without room
// does.
type full struct {
	*storetest.Mem
	err error
}

func (f *full) Update(fn func(store.Tx) error) error {
	if f.err == nil {
		return f.Mem.Update(fn)
	}
	f.FailUpdates(1)
	defer f.FailUpdates(0)
	if err := f.Mem.Update(fn); !errors.Is(err, storetest.ErrInjected) {
		return err
	}
	return f.err
}

func notStored(errno syscall.Errno) error {
	return fmt.Errorf("%w: state.db: %w", store.ErrNotStored, errno)
}

// TestDiskIsWatched: what failed is known until a probe succeeds, what a function
// refuses is not the disk's fault, and each change is told once.
func TestDiskIsWatched(t *testing.T) {
	var told []string
	f := &full{Mem: storetest.New(t)}
	d := &disk{Store: f, dir: "/state", changed: func(_ *disk, err error) { told = append(told, fmt.Sprint(err == nil)) }}
	put := func() error { return d.Update(func(tx store.Tx) error { return tx.Put("a", "1", []byte("x")) }) }
	failing := func() bool { _, err := d.failing(); return err != nil }
	if err := put(); err != nil || failing() {
		t.Fatalf("Put = %v, failing = %v", err, failing())
	}
	f.err = notStored(syscall.ENOSPC)
	refused := fmt.Errorf("refused: %w", store.ErrNotStored) // as of another store that it mirrors
	if err := d.Update(func(store.Tx) error { return refused }); err != refused || failing() {
		t.Errorf("what the function refused: %v, failing = %v", err, failing())
	}
	for range 2 {
		if err := put(); err != f.err || !failing() {
			t.Errorf("Put on the full disk = %v, failing = %v", err, failing())
		}
		d.probe()
	}
	f.err = nil
	if err := put(); err != nil || !failing() {
		t.Errorf("something small finds room: %v, failing = %v, want that nothing is known yet", err, failing())
	}
	d.probe()
	if failing() || !slices.Equal(told, []string{"false", "true"}) {
		t.Errorf("failing = %v, told %q, want one failure and one recovery", failing(), told)
	}
	if err := f.View(func(tx store.Tx) error { _, err := tx.Get(bucketProbe, "probe"); return err }); err != store.ErrNotFound {
		t.Errorf("what the probe wrote: %v, want it gone", err)
	}
}

func TestDiskMend(t *testing.T) {
	d := &disk{dir: "/srv/state"}
	for want, err := range map[string]error{
		"make room": notStored(syscall.ENOSPC), "remount,rw": notStored(syscall.EROFS), "dmesg": notStored(syscall.EIO),
		"systemctl restart": fmt.Errorf("%w: %w", notStored(syscall.EIO), store.ErrUntilRestart),
	} {
		if got := d.mend(err); !strings.Contains(got, want) || !strings.Contains(got, d.dir) {
			t.Errorf("mend(%v) = %q, want %q and the directory in it", err, got, want)
		}
	}
	if got := reason(notStored(syscall.ENOSPC)); got != syscall.ENOSPC {
		t.Errorf("reason = %v, want the kernel's alone", got)
	}
}

// TestFullDiskRefusesWhatIsNew: the session that lives is not touched, another
// is refused with its own cause, status says so, and all of it ends by itself.
func TestFullDiskRefusesWhatIsNew(t *testing.T) {
	gw, alice := pair(t)
	id := established(t, gw, alice)
	bob := newNodeDaemon(t, "bob")
	bob.run()
	t.Cleanup(bob.end)
	bob.join(gw)
	wait(t, "bob's session", func() bool { return bob.tunnel().State == "established" })
	if err := bob.m.Down(t.Context(), "office"); err != nil {
		t.Fatal(err)
	}
	wait(t, "its end at the gateway", func() bool { return len(gw.sessions()) == 1 })
	gw.m.disks[0].set(notStored(syscall.ENOSPC))
	gw.store.FailUpdates(1 << 30)
	if _, err := bob.m.Up(t.Context(), "office", 0); err != nil {
		t.Fatal(err)
	}
	wait(t, "bob's refusal", func() bool {
		why := bob.tunnel().LastError
		return why != nil && strings.Contains(*why, "the journal cannot be written there")
	})
	if s := gw.sessions(); len(s) != 1 || s[0].Session != id {
		t.Errorf("sessions = %+v, want %s alone", s, id)
	}
	problem := func() bool {
		st, err := gw.m.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(st.Problems, func(p api.Problem) bool { return strings.Contains(p.What, "cannot be written since") })
	}
	if !problem() {
		t.Error("status names no problem")
	}
	gw.store.FailUpdates(0)
	wait(t, "bob's session", func() bool { return bob.tunnel().State == "established" })
	if problem() {
		t.Error("status names a problem that is over")
	}
	var told []string
	past, _, err := gw.m.Events(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range past {
		if strings.HasPrefix(e.Event, "journal-") {
			told = append(told, e.Event)
		}
	}
	if !slices.Equal(told, []string{"journal-failing", "journal-recovered"}) {
		t.Errorf("events = %q, want one failure and one recovery", told)
	}
}
