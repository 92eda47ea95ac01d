// Package store remembers across restarts: one small interface of transactions
// over named buckets. Every value is sealed (names of buckets and keys are not,
// see [Bolt]); nothing is acknowledged before it is on disk.
package store

import "errors"

// Errors that callers branch on.
var (
	ErrNotFound = errors.New("store: not found")
	ErrLocked   = errors.New("store: locked by another process")
	ErrNewer    = errors.New("store: written by a newer version")
	ErrCorrupt  = errors.New("store: damaged")
	ErrClosed   = errors.New("store: closed")
	// ErrNotStored is what an Update fails with whose changes could not be written.
	ErrNotStored = errors.New("store: nothing was stored")
	// ErrUntilRestart is an ErrNotStored after which no Update can succeed.
	ErrUntilRestart = errors.New("no more is written until tunneld is restarted")
)

// Store is a set of buckets of key-value pairs. Methods may be called from any
// goroutine.
type Store interface {
	// Update runs fn in a read-write transaction. When Update returns nil the
	// change is durable (fsync); when it returns an error nothing changed.
	// Concurrent callers may share one fsync; fn may run more than once, so
	// it must set what it returns and not add to it. It must not call the
	// store.
	Update(fn func(Tx) error) error
	// View runs fn in a read-only transaction: on what the last Update left,
	// whatever is written meanwhile. fn must not call the store.
	View(fn func(Tx) error) error
	// Close waits for transactions to end. Afterwards all fail with ErrClosed.
	Close() error
}

// Tx is a transaction, valid only inside the function it was given to and in
// its goroutine. A bucket comes into being with its first Put; one that is not
// there is empty. Neither bucket nor key may be empty or longer than 32 KiB.
type Tx interface {
	// Get returns the value under key, which the caller may keep, or
	// ErrNotFound.
	Get(bucket, key string) ([]byte, error)
	// Put sets the value under key. The key is stored as it is, the value
	// sealed.
	Put(bucket, key string, value []byte) error
	// Delete removes key; it is no error if it is not there.
	Delete(bucket, key string) error
	// Each calls fn for every pair that is in the bucket when Each is called,
	// in the order of keys, until fn returns an error, which Each returns. fn
	// may keep value and may change the bucket.
	Each(bucket string, fn func(key string, value []byte) error) error
}
