// Package storetest has a Store in memory for tests, and the test that every
// Store passes.
package storetest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"tunneld/internal/store"
)

// ErrInjected is what Updates fail with that FailUpdates was told of.
var ErrInjected = fmt.Errorf("%w: injected failure", store.ErrNotStored)

// Misuse by the caller, as in the real store.
var (
	errEnded    = errors.New("storetest: the transaction is over")
	errReadOnly = errors.New("storetest: a change inside View")
)

// Mem is a Store in memory with the semantics of the real one. It runs every
// function of an Update twice, on the same state, and drops what the first run
// did: a caller that adds to a result instead of setting it fails its tests.
type Mem struct {
	mu      sync.Mutex // one Update at a time; guards fail
	fail    int
	buckets atomic.Pointer[buckets] // never changed, only replaced
	open    sync.RWMutex            // held for reading by transactions, for writing by Close
	closed  bool                    // guarded by open
	updates atomic.Int64
}

type buckets map[string]map[string][]byte

var _ store.Store = (*Mem)(nil)

// New returns an empty store, which is closed when the test ends. Closing it
// before is no error.
func New(t testing.TB) *Mem {
	m := &Mem{}
	m.buckets.Store(&buckets{})
	t.Cleanup(func() { m.Close() })
	return m
}

// FailUpdates makes the next n Updates fail with ErrInjected at their commit:
// their functions run, and nothing of what they did is kept.
func (m *Mem) FailUpdates(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = n
}

// Updates counts the Updates that succeeded.
func (m *Mem) Updates() int { return int(m.updates.Load()) }

// Update runs fn, twice if it succeeds.
func (m *Mem) Update(fn func(store.Tx) error) error {
	m.open.RLock()
	defer m.open.RUnlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return store.ErrClosed
	}
	if _, err := m.run(fn); err != nil {
		return err
	}
	after, err := m.run(fn)
	if err != nil {
		return err
	}
	if m.fail > 0 {
		m.fail--
		return ErrInjected
	}
	m.buckets.Store(&after)
	m.updates.Add(1)
	return nil
}

// run runs fn on a copy and returns the copy.
func (m *Mem) run(fn func(store.Tx) error) (buckets, error) {
	t := &tx{buckets: maps.Clone(*m.buckets.Load()), own: map[string]bool{}}
	after := t.buckets
	defer t.end()
	return after, fn(t)
}

// View runs fn on the state as it is now.
func (m *Mem) View(fn func(store.Tx) error) error {
	m.open.RLock()
	defer m.open.RUnlock()
	if m.closed {
		return store.ErrClosed
	}
	t := &tx{buckets: *m.buckets.Load()}
	defer t.end()
	return fn(t)
}

// Close waits for transactions to end.
func (m *Mem) Close() error {
	m.open.Lock()
	defer m.open.Unlock()
	m.closed = true
	return nil
}

type tx struct {
	buckets buckets         // nil when over
	own     map[string]bool // buckets that were copied for this transaction; nil in a View
}

func (t *tx) end() { t.buckets = nil }

func (t *tx) Get(bucket, key string) ([]byte, error) {
	if t.buckets == nil {
		return nil, errEnded
	}
	value, ok := t.buckets[bucket][key]
	if !ok {
		return nil, store.ErrNotFound
	}
	return own(value), nil
}

// own copies value; an empty one stays one that is there.
func own(value []byte) []byte { return append([]byte{}, value...) }

func (t *tx) Put(bucket, key string, value []byte) error {
	return t.change(bucket, key, func(b map[string][]byte) { b[key] = own(value) })
}

func (t *tx) Delete(bucket, key string) error {
	return t.change(bucket, key, func(b map[string][]byte) { delete(b, key) })
}

func (t *tx) change(bucket, key string, do func(map[string][]byte)) error {
	if t.buckets == nil {
		return errEnded
	}
	if t.own == nil {
		return errReadOnly
	}
	if err := store.CheckPlace(bucket, key); err != nil {
		return fmt.Errorf("storetest: %w", err)
	}
	if !t.own[bucket] {
		b := maps.Clone(t.buckets[bucket])
		if b == nil {
			b = map[string][]byte{}
		}
		t.buckets[bucket], t.own[bucket] = b, true
	}
	do(t.buckets[bucket])
	return nil
}

func (t *tx) Each(bucket string, fn func(key string, value []byte) error) error {
	if t.buckets == nil {
		return errEnded
	}
	pairs := maps.Clone(t.buckets[bucket])
	for _, key := range slices.Sorted(maps.Keys(pairs)) {
		if err := fn(key, own(pairs[key])); err != nil {
			return err
		}
		if t.buckets == nil {
			return errEnded
		}
	}
	return nil
}
