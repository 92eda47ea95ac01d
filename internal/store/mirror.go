package store

// Mirrored is a Store some of whose buckets stand in other stores as well. What
// an Update does to them is in the other store before the Update is durable: the
// copy may be ahead of a change that failed, never behind one that succeeded.
type Mirrored struct {
	Store
	copies map[string]Store // by bucket
}

// Mirror makes the buckets of s that copies names stand in another store, too.
func Mirror(s Store, copies map[string]Store) *Mirrored { return &Mirrored{s, copies} }

// Update runs fn in a transaction of the Store.
func (m *Mirrored) Update(fn func(Tx) error) error {
	return m.Store.Update(func(tx Tx) error {
		t := &mirrorTx{Tx: tx, copies: m.copies}
		if err := fn(t); err != nil {
			return err
		}
		return t.flush()
	})
}

// mirrorTx notes what its function does to mirrored buckets.
type mirrorTx struct {
	Tx
	copies  map[string]Store
	changes []copied
}

// copied is a change of a mirrored bucket; a nil value deletes.
type copied struct {
	to          Store
	bucket, key string
	value       []byte
}

// Put sets the value under key.
func (t *mirrorTx) Put(bucket, key string, value []byte) error {
	if err := t.Tx.Put(bucket, key, value); err != nil {
		return err
	}
	if to := t.copies[bucket]; to != nil {
		t.changes = append(t.changes, copied{to, bucket, key, append([]byte{}, value...)})
	}
	return nil
}

// Delete removes key.
func (t *mirrorTx) Delete(bucket, key string) error {
	if err := t.Tx.Delete(bucket, key); err != nil {
		return err
	}
	if to := t.copies[bucket]; to != nil {
		t.changes = append(t.changes, copied{to: to, bucket: bucket, key: key})
	}
	return nil
}

// flush brings the changes to where else they belong, in one transaction for
// each store.
func (t *mirrorTx) flush() error {
	for len(t.changes) > 0 {
		to, rest := t.changes[0].to, []copied(nil)
		err := to.Update(func(tx Tx) error {
			rest = nil
			for _, c := range t.changes {
				if c.to != to {
					rest = append(rest, c)
				} else if err := c.apply(tx); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		t.changes = rest
	}
	return nil
}

func (c copied) apply(tx Tx) error {
	if c.value == nil {
		return tx.Delete(c.bucket, c.key)
	}
	return tx.Put(c.bucket, c.key, c.value)
}

// Contents is what stands in some buckets of a store: by bucket, by key.
type Contents map[string]map[string][]byte

// Read reads those buckets, in one transaction.
func Read(s Store, buckets ...string) (all Contents, err error) {
	err = s.View(func(tx Tx) error {
		all = Contents{}
		for _, b := range buckets {
			all[b] = map[string][]byte{}
			err := tx.Each(b, func(key string, value []byte) error {
				all[b][key] = value
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return all, err
}

// Set makes the transaction's buckets hold the contents and nothing else.
func (c Contents) Set(tx Tx) error {
	for bucket, pairs := range c {
		err := tx.Each(bucket, func(key string, _ []byte) error {
			if _, ok := pairs[key]; ok {
				return nil
			}
			return tx.Delete(bucket, key)
		})
		if err != nil {
			return err
		}
	}
	return c.Put(tx)
}

// Put adds the contents to what the transaction's buckets hold.
func (c Contents) Put(tx Tx) error {
	for bucket, pairs := range c {
		for key, value := range pairs {
			if err := tx.Put(bucket, key, value); err != nil {
				return err
			}
		}
	}
	return nil
}
