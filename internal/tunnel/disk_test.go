package tunnel

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
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

// narrow has no room for a probe, while it is, and for everything else.
type narrow struct {
	store.Store
	is atomic.Bool
}

func (n *narrow) Update(fn func(store.Tx) error) error {
	probe := false
	err := n.Store.Update(func(tx store.Tx) error {
		probe = false
		return fn(probing{tx, &probe})
	})
	if probe && n.is.Load() {
		return notStored(syscall.ENOSPC)
	}
	return err
}

// probing tells whether a transaction is a probe.
type probing struct {
	store.Tx
	is *bool
}

func (p probing) Put(bucket, key string, value []byte) error {
	*p.is = *p.is || bucket == bucketProbe
	return p.Tx.Put(bucket, key, value)
}

// TestFullDiskRefusesWhatIsNew: the session that lives is not touched, others are
// refused with their own cause before anything is tried, status says so, and all
// of it ends by itself.
func TestFullDiskRefusesWhatIsNew(t *testing.T) {
	var room *narrow
	gw, alice, bob, carol := newGatewayDaemon(t), newNodeDaemon(t, "alice"), newNodeDaemon(t, "bob"), newNodeDaemon(t, "carol")
	gw.disk = func(s store.Store) store.Store {
		room = &narrow{Store: s}
		return room
	}
	for _, d := range []*daemon{gw, alice, bob, carol} {
		d.run()
		t.Cleanup(d.end)
		if d != gw {
			d.join(gw)
			wait(t, "a session", func() bool { return d.tunnel().State == "established" })
		}
	}
	id := *alice.tunnel().Session
	if err := bob.m.Down(t.Context(), "office"); err != nil {
		t.Fatal(err)
	}
	conns := func() int {
		gw.m.gateway.mu.Lock()
		defer gw.m.gateway.mu.Unlock()
		return len(gw.m.gateway.conns)
	}
	wait(t, "the end of bob's connection", func() bool { return conns() == 2 })

	room.is.Store(true)
	gw.m.disks[0].set(notStored(syscall.ENOSPC))
	if _, err := bob.m.Up(t.Context(), "office", 0); err != nil { // by a new connection
		t.Fatal(err)
	}
	if err := gw.m.KillSession(t.Context(), *carol.tunnel().Session, ""); err != nil { // it asks for another by the one it has
		t.Fatal(err)
	}
	for _, d := range []*daemon{bob, carol} {
		wait(t, "the refusal of "+d.cfg.Node.Name, func() bool {
			why := d.tunnel().LastError
			return why != nil && strings.Contains(*why, "the journal cannot be written there")
		})
	}
	if n := conns(); n != 2 {
		t.Errorf("%d connections, want those of alice and carol alone", n)
	}
	if s := alice.tunnel(); s.State != "established" || *s.Session != id {
		t.Errorf("the session that lives is %s, %s; want %s established", *s.Session, s.State, id)
	}
	if !gw.problem("cannot be written since") {
		t.Error("status names no problem")
	}
	room.is.Store(false)
	for _, d := range []*daemon{bob, carol} {
		wait(t, "a session of "+d.cfg.Node.Name, func() bool { return d.tunnel().State == "established" })
	}
	if gw.problem("cannot be written since") {
		t.Error("status names a problem that is over")
	}
	if told := gw.told("journal-"); !slices.Equal(told, []string{"journal-failing", "journal-recovered"}) {
		t.Errorf("events = %q, want one failure and one recovery", told)
	}
}

// problem reports whether status names one that says what.
func (d *daemon) problem(what string) bool {
	d.t.Helper()
	st, err := d.m.Status(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	return slices.ContainsFunc(st.Problems, func(p api.Problem) bool { return strings.Contains(p.What, what) })
}

// told are the kinds of remembered events that begin so.
func (d *daemon) told(begin string) (kinds []string) {
	d.t.Helper()
	past, _, err := d.m.Events(d.t.Context(), false)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, e := range past {
		if strings.HasPrefix(e.Event, begin) {
			kinds = append(kinds, e.Event)
		}
	}
	return kinds
}
