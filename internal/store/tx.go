package store

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"go.etcd.io/bbolt"
)

// Misuse by the caller; no caller branches on these.
var (
	errEnded    = errors.New("store: the transaction is over")
	errReadOnly = errors.New("store: a change inside View")
)

// changes are what one Update did: bucket, key, sealed value; nil is a key
// that was deleted.
type changes map[string]map[string][]byte

// boltTx is the transaction of one caller. Its changes stay beside bbolt's
// transaction until the function has ended well: that is the savepoint that
// lets one function of a batch fail alone.
type boltTx struct {
	store   *Bolt
	tx      *bbolt.Tx // nil when over
	changes changes   // nil in a View
}

// end makes every later call fail.
func (t *boltTx) end() { t.tx, t.changes = nil, nil }

// CheckPlace is what every Store asks of a bucket's name and a key: neither is
// empty nor longer than bbolt can hold. For implementations of Store.
func CheckPlace(bucket, key string) error {
	switch {
	case bucket == "":
		return errors.New("store: a bucket without name")
	case key == "":
		return fmt.Errorf("store: an empty key in bucket %q", bucket)
	case len(bucket) > bbolt.MaxKeySize || len(key) > bbolt.MaxKeySize:
		return fmt.Errorf("store: a key of %d octets in bucket %.32q: at most %d", max(len(bucket), len(key)), bucket, bbolt.MaxKeySize)
	}
	return nil
}

// Get returns the value under key.
func (t *boltTx) Get(bucket, key string) ([]byte, error) {
	if t.tx == nil {
		return nil, errEnded
	}
	sealed, changed := t.changes[bucket][key]
	if !changed {
		err := guard(t.store.path, func() error {
			if b := t.bucket(bucket); b != nil {
				sealed = b.Get([]byte(key))
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if sealed == nil {
		return nil, ErrNotFound
	}
	return t.open(bucket, key, sealed)
}

func (t *boltTx) open(bucket, key string, sealed []byte) ([]byte, error) {
	value, err := t.store.sealer.open(bucket, key, sealed)
	if err != nil {
		return nil, corrupt(t.store.path, fmt.Errorf("bucket %q, key %q: %w", bucket, key, err))
	}
	return value, nil
}

// bucket returns the caller's bucket in the file, nil if there is none.
func (t *boltTx) bucket(name string) *bbolt.Bucket {
	return t.tx.Bucket(dataBucket).Bucket([]byte(name))
}

// Put sets the value under key.
func (t *boltTx) Put(bucket, key string, value []byte) error {
	return t.change(bucket, key, func() []byte { return t.store.sealer.seal(bucket, key, value) })
}

// Delete removes key.
func (t *boltTx) Delete(bucket, key string) error {
	return t.change(bucket, key, func() []byte { return nil })
}

func (t *boltTx) change(bucket, key string, sealed func() []byte) error {
	if t.tx == nil {
		return errEnded
	}
	if t.changes == nil {
		return errReadOnly
	}
	if err := CheckPlace(bucket, key); err != nil {
		return err
	}
	if t.changes[bucket] == nil {
		t.changes[bucket] = map[string][]byte{}
	}
	t.changes[bucket][key] = sealed()
	return nil
}

// Each walks the bucket as it is when Each is called; fn may change it.
func (t *boltTx) Each(bucket string, fn func(key string, value []byte) error) error {
	if t.tx == nil {
		return errEnded
	}
	for key, sealed := range t.pairs(bucket) {
		if sealed.err != nil {
			return sealed.err
		}
		value, err := t.open(bucket, key, sealed.value)
		if err != nil {
			return err
		}
		if err := fn(key, value); err != nil {
			return err
		}
		if t.tx == nil {
			return errEnded
		}
	}
	return nil
}

type sealedPair struct {
	value []byte
	err   error
}

// pairs merges the file's pairs with the changes made so far, in the order of
// keys. The file does not change under it: changes wait in t.changes.
func (t *boltTx) pairs(bucket string) iter.Seq2[string, sealedPair] {
	changed := maps.Clone(t.changes[bucket])
	pending := slices.Sorted(maps.Keys(changed))
	return func(yield func(string, sealedPair) bool) {
		for key, pair := range t.filed(bucket) {
			for len(pending) > 0 && pending[0] < key {
				if v := changed[pending[0]]; v != nil && !yield(pending[0], sealedPair{value: v}) {
					return
				}
				pending = pending[1:]
			}
			if _, over := changed[key]; over && pair.err == nil {
				continue // its change comes in its place
			}
			if !yield(key, pair) {
				return
			}
		}
		for _, key := range pending {
			if v := changed[key]; v != nil && !yield(key, sealedPair{value: v}) {
				return
			}
		}
	}
}

// filed walks the pairs of the file alone. A damaged page ends it with an
// error under an empty key, which sorts before all others.
func (t *boltTx) filed(bucket string) iter.Seq2[string, sealedPair] {
	return func(yield func(string, sealedPair) bool) {
		var cursor *bbolt.Cursor
		var key, value []byte
		next := func() error {
			switch b := t.bucket(bucket); {
			case cursor != nil:
				key, value = cursor.Next()
			case b != nil:
				cursor = b.Cursor()
				key, value = cursor.First()
			}
			return nil
		}
		for {
			if err := guard(t.store.path, next); err != nil {
				yield("", sealedPair{err: err})
				return
			}
			if key == nil || !yield(string(key), sealedPair{value: value}) {
				return
			}
		}
	}
}

// apply writes the changes into bbolt's transaction, in the order of keys so
// that equal work gives equal files.
func (t *boltTx) apply() error {
	return guard(t.store.path, func() error {
		data := t.tx.Bucket(dataBucket)
		for _, bucket := range slices.Sorted(maps.Keys(t.changes)) {
			b, err := data.CreateBucketIfNotExists([]byte(bucket))
			if err != nil {
				return fmt.Errorf("store: %s: bucket %q: %w", t.store.path, bucket, err)
			}
			if err := applyTo(b, t.changes[bucket]); err != nil {
				return fmt.Errorf("store: %s: bucket %q: %w", t.store.path, bucket, err)
			}
		}
		return nil
	})
}

func applyTo(b *bbolt.Bucket, changed map[string][]byte) error {
	for _, key := range slices.Sorted(maps.Keys(changed)) {
		var err error
		if sealed := changed[key]; sealed == nil {
			err = b.Delete([]byte(key))
		} else {
			err = b.Put([]byte(key), sealed)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
