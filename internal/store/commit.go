package store

import (
	"errors"
	"fmt"

	"go.etcd.io/bbolt"
)

// Group commit. One goroutine, the committer, owns bbolt's write transaction.
// It begins one when a caller comes, gives the turn to that caller, then to
// each other one that waits by then, and commits when nobody does: callers who
// come during an fsync share the next, and a lone one waits for nothing. Each
// function runs in its caller's goroutine, so that a panic, or the end of a
// test, stays where it belongs. A caller is in a batch once at most, so a batch
// is bounded by the number of callers.

// A turn is one Update on its way through the committer.
type turn struct {
	begin  chan *bbolt.Tx // the turn; closed without one if there is none to have
	end    chan struct{}  // closed when fn is over
	result chan error     // one value, never blocks
	tx     *boltTx        // changes of fn; the committer's after end
	err    error          // of fn; the committer's after end
}

// errAborted stands for a function that did not return: it panicked, or its
// goroutine ended.
var errAborted = errors.New("store: the function did not return")

// Update runs fn and returns nil when its changes, and those that it could
// see, are on disk. fn sees the changes of Updates before it in the same
// batch. It must be quick, because all others wait for it, and must not call
// the store, which would wait for itself. A panic of fn goes on in the caller.
func (b *Bolt) Update(fn func(Tx) error) error {
	t := &turn{
		begin:  make(chan *bbolt.Tx, 1),
		end:    make(chan struct{}),
		result: make(chan error, 1),
		err:    errAborted,
	}
	select {
	case b.turns <- t:
	case <-b.closing:
		return ErrClosed
	}
	if tx, ok := <-t.begin; ok {
		t.run(b, tx, fn)
	}
	return <-t.result
}

func (t *turn) run(b *Bolt, tx *bbolt.Tx, fn func(Tx) error) {
	own := &boltTx{store: b, tx: tx, changes: changes{}}
	t.tx = &boltTx{store: b, tx: tx, changes: own.changes}
	defer close(t.end)
	defer own.end() // whoever kept it finds it over; ours goes on
	t.err = fn(own)
}

// commitLoop is the committer. It ends when Close says so, between batches.
func (b *Bolt) commitLoop() {
	defer close(b.stopped)
	for {
		select {
		case t := <-b.turns:
			b.batch(t)
		case <-b.closing:
			return
		}
	}
}

// batch gives first and all who wait their turn in one transaction, commits it
// and tells each how it went.
func (b *Bolt) batch(first *turn) {
	tx, err := b.begin()
	if err != nil {
		close(first.begin)
		first.result <- err
		return
	}
	var done []*turn // their result depends on the commit
	dirty := false
	for t := first; t != nil; t = b.waiting() {
		t.begin <- tx
		<-t.end
		if t.err == nil && len(t.tx.changes) > 0 {
			if err = t.tx.apply(); err != nil {
				done = append(done, t)
				break
			}
			dirty = true
		}
		if t.err != nil && !dirty {
			t.result <- t.err // what it saw was on disk
			continue
		}
		done = append(done, t)
	}
	if err == nil && dirty {
		err = b.commit(tx)
	} else {
		err = errors.Join(err, guard(b.path, tx.Rollback))
	}
	for _, t := range done {
		t.result <- errorOf(err, t)
	}
}

// errorOf is the result of a turn in a batch that ended with err. A function
// that refused something because of changes that never came to be is told of
// their failure, not of its own.
func errorOf(err error, t *turn) error {
	if err != nil {
		return err
	}
	return t.err
}

// waiting returns a caller that waits now, or nil.
func (b *Bolt) waiting() *turn {
	select {
	case t := <-b.turns:
		return t
	default:
		return nil
	}
}

func (b *Bolt) begin() (tx *bbolt.Tx, err error) {
	if b.failed != nil {
		return nil, b.failed
	}
	err = guard(b.path, func() (err error) {
		tx, err = b.db.Begin(true)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNotStored, b.path, err)
	}
	return tx, nil
}

// commit makes the batch durable. When the disk is full or refuses to be
// written, bbolt takes everything back and the store goes on. Two failures
// leave it unknown what a restart would find: bbolt panicked, or its last
// write, the page that makes a commit valid, is in the kernel's cache and could
// not be synced (a second fsync would report success all the same). Then
// nothing is written any more until the file is opened again.
func (b *Bolt) commit(tx *bbolt.Tx) error {
	id := tx.ID()
	panicked := true
	err := guard(b.path, func() error {
		err := tx.Commit()
		panicked = false
		return err
	})
	if err == nil {
		return nil
	}
	if panicked {
		_ = guard(b.path, tx.Rollback) // lets go of the lock that Close takes
	}
	err = fmt.Errorf("%w: %s: %w", ErrNotStored, b.path, err)
	if panicked || b.visible(id) {
		b.failed = fmt.Errorf("%w: %w", err, ErrUntilRestart)
		return b.failed
	}
	return err
}

// visible reports whether readers see the transaction id.
func (b *Bolt) visible(id int) bool {
	seen := true
	_ = guard(b.path, func() error { // a reader that cannot begin proves nothing
		return b.db.View(func(tx *bbolt.Tx) error {
			seen = tx.ID() >= id
			return nil
		})
	})
	return seen
}
