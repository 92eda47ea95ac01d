package tunnel

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/event"
	"tunneld/internal/store"
)

// A disk is a store that remembers whether it can be written. Once it could not,
// that is so until as much was stored as a set-up may need: something small finds
// room where nothing else does.
type disk struct {
	store.Store
	dir     string
	without string                   // what there is not while it cannot be written
	changed func(d *disk, err error) // told when err comes, and nil when it is over; it must not wait for a lock under which somebody writes

	mu    sync.Mutex // guards everything below
	err   error      // nil: it can be written
	since time.Time
}

// Update runs fn in a transaction.
func (d *disk) Update(fn func(store.Tx) error) error {
	var own error // what fn refused is not the disk's fault, nor that of another store which fn wrote
	err := d.Store.Update(func(tx store.Tx) error {
		own = fn(tx)
		return own
	})
	if own == nil && errors.Is(err, store.ErrNotStored) {
		d.set(err)
	}
	return err
}

// set notes that the disk cannot be written, or, with nil, that it can.
func (d *disk) set(err error) {
	d.mu.Lock()
	news := (err == nil) != (d.err == nil)
	if news {
		d.since = time.Now()
	}
	d.err = err
	d.mu.Unlock()
	if news {
		d.changed(d, err)
	}
}

// failing is why the disk cannot be written, and since when; nil: it can.
func (d *disk) failing() (since time.Time, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.since, d.err
}

// What a probe writes, and takes away again.
const (
	bucketProbe = "probe"
	probeSize   = 64 << 10 // octets: more than the largest record of a connection
)

// probe finds out whether a disk that could not be written can be again.
func (d *disk) probe() {
	err := d.Update(func(tx store.Tx) error { return tx.Put(bucketProbe, "probe", make([]byte, probeSize)) })
	if err == nil {
		err = d.Update(func(tx store.Tx) error { return tx.Delete(bucketProbe, "probe") })
	}
	if err == nil {
		d.set(nil)
	}
}

// watched makes the stores that the manager was given disks that it watches.
func (m *Manager) watched(o *Options) {
	wrap := func(s store.Store, dir, without string) store.Store {
		if s == nil {
			return nil
		}
		d := &disk{Store: s, dir: dir, without: without, changed: m.diskChanged}
		m.disks = append(m.disks, d)
		return d
	}
	o.Store = wrap(o.Store, o.Config.Node.StateDir, "nothing new begins, what lives goes on")
	if g := o.Config.Gateway; g != nil {
		const without = "no node can be invited, enrolled or revoked, sessions go on"
		o.Keep.Keys = wrap(o.Keep.Keys, filepath.Join(g.TicketDir, "keys"), without)
		o.Keep.Book = wrap(o.Keep.Book, filepath.Join(g.TicketDir, "book"), without)
	}
}

// diskChanged tells that a disk cannot be written, or can again.
func (m *Manager) diskChanged(d *disk, err error) {
	if err == nil {
		m.log.Info(string(event.JournalRecovered), event.KeyCause, d.dir)
		m.publish(event.Event{Kind: event.JournalRecovered, Cause: d.dir})
		return
	}
	m.log.Error(string(event.JournalFailing), event.KeyErr, err, event.KeyCause, d.without+" until it is mended: "+d.mend(err))
	m.publish(event.Event{Kind: event.JournalFailing, Cause: err.Error()})
}

// probeInterval is how often a disk that cannot be written is tried.
const probeInterval = time.Second

// watchDisks finds out when a disk that could not be written can be again.
func (m *Manager) watchDisks(ctx context.Context) {
	t := time.NewTicker(probeInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		for _, d := range m.disks {
			if _, err := d.failing(); err != nil {
				d.probe()
			}
		}
	}
}

// unwritable is why nothing new may begin: the journal, the first of the disks,
// cannot be written. Nil: it may.
func (m *Manager) unwritable() error {
	_, err := m.disks[0].failing()
	return err
}

// diskProblems are those of the disks, as `status` shows them.
func (m *Manager) diskProblems() (all []api.Problem) {
	for _, d := range m.disks {
		if since, err := d.failing(); err != nil {
			all = append(all, api.Problem{
				What: fmt.Sprintf("%s cannot be written since %s (%v): %s", d.dir, since.UTC().Format(time.RFC3339), reason(err), d.without),
				Mend: d.mend(err),
			})
		}
	}
	return all
}

// reason is what the kernel said, if it did.
func reason(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

// mend is the command that helps.
func (d *disk) mend(err error) string {
	switch {
	case errors.Is(err, store.ErrUntilRestart):
		return "systemctl restart tunneld, when there is nothing wrong with the disk of " + d.dir + " (dmesg)"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "make room on the disk of " + d.dir + " (df -h " + d.dir + "); no restart is needed"
	case errors.Is(err, syscall.EROFS):
		return "find out why it is read-only (dmesg), then mount -o remount,rw on what findmnt -T " + d.dir + " shows; no restart is needed"
	}
	return "look at the disk of " + d.dir + " (dmesg)"
}
