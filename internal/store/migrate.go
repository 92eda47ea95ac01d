package store

import (
	"errors"
	"fmt"
	"strconv"

	"go.etcd.io/bbolt"
)

// A migration brings the callers' buckets one format further. It runs once, in
// one transaction with all the others that are due.
type migration func(Tx) error

// migrations[i] brings format i+1 to i+2, so that the present format is
// len(migrations)+1. Entries are added at the end and never changed.
var migrations []migration

// migrate checks that key and file belong together and runs what is due.
func (b *Bolt) migrate(format int, steps []migration) error {
	err := b.db.View(func(tx *bbolt.Tx) error {
		word, err := b.sealer.open(string(metaBucket), string(sealedKey), tx.Bucket(metaBucket).Get(sealedKey))
		if err != nil || string(word) != sealedWord {
			return corrupt(b.path, fmt.Errorf("%s is not the key it was sealed with", sealFile))
		}
		if tx.Bucket(dataBucket) == nil {
			return corrupt(b.path, fmt.Errorf("no bucket %q", dataBucket))
		}
		return nil
	})
	if err != nil || format == len(steps)+1 {
		return err
	}
	return b.db.Update(func(tx *bbolt.Tx) error {
		for i := format - 1; i < len(steps); i++ {
			if err := b.step(tx, steps[i]); err != nil {
				return fmt.Errorf("store: %s: bringing format %d to %d: %w: it is unchanged; run the version that wrote it", b.path, i+1, i+2, err)
			}
		}
		return tx.Bucket(metaBucket).Put(formatKey, []byte(strconv.Itoa(len(steps)+1)))
	})
}

func (b *Bolt) step(tx *bbolt.Tx, fn migration) error {
	t := &boltTx{store: b, tx: tx, changes: changes{}}
	defer t.end()
	return errors.Join(fn(t), t.apply())
}
