package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"tunneld/internal/session"
	"tunneld/internal/store"
)

// What a gateway keeps outside its state directory, so that its loss is not the
// loss of the deployment: docs/operations.md, "A lost state directory". Keys are
// the authority and the gateway's own; the book says who is a node and who is
// one no more, and has a backup of its own.
var (
	keyBuckets  = []string{bucketAuthority, bucketIdentities}
	bookBuckets = []string{bucketNodes, bucketRevoked, bucketRegistry}
)

// bucketBook, in the book alone, says whose it is: "deployment" -> its id. In a
// store it holds "lost" while the registry was not found again.
const bucketBook = "book"

// Keep are the stores outside the state directory.
type Keep struct {
	Keys, Book store.Store
}

// Mirror makes every change of st that must outlive it be in the Keep as well.
// more are buckets that are kept beside the authority.
func (k Keep) Mirror(st store.Store, more ...string) store.Store {
	copies := map[string]store.Store{}
	for _, b := range slices.Concat(keyBuckets, more) {
		copies[b] = k.Keys
	}
	for _, b := range bookBuckets {
		copies[b] = k.Book
	}
	return store.Mirror(st, copies)
}

// Reconcile brings a gateway's store and its Keep together at start, before
// anything else reads them. A store without a deployment gets back the one that
// the Keep has; rebuilt says so. Revocations of either are in both afterwards, so
// that a backup of one of them revives nobody.
func (k Keep) Reconcile(st store.Store, more ...string) (rebuilt bool, err error) {
	kept := slices.Concat(keyBuckets, more)
	own, err := deploymentIn(st)
	if err != nil {
		return false, err
	}
	if own.IsZero() {
		if own, err = deploymentIn(k.Keys); err != nil || own.IsZero() {
			return false, err
		}
		rebuilt = true
	}
	bookOf, err := k.bookOf()
	if err != nil {
		return false, err
	}
	book, err := store.Read(k.Book, bookBuckets...)
	if err != nil {
		return false, fmt.Errorf("book of nodes: %w", err)
	}
	keys, err := store.Read(k.Keys, kept...)
	if err != nil {
		return false, fmt.Errorf("keys of the gateway: %w", err)
	}
	err = st.Update(func(tx store.Tx) error {
		switch {
		case rebuilt && bookOf != own:
			return errors.Join(keys.Put(tx), tx.Put(bucketBook, "lost", []byte("true")))
		case rebuilt:
			return errors.Join(keys.Put(tx), book.Put(tx))
		case bookOf == own:
			return adopt(tx, book)
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("state rebuilt from the gateway's keys: %w", err)
	}
	return rebuilt, k.copyOf(st, own, kept)
}

// deploymentIn is whose authority a store holds; zero: none.
func deploymentIn(st store.Store) (id session.ID, err error) {
	err = st.View(func(tx store.Tx) error {
		b, err := tx.Get(bucketAuthority, "ca")
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		a, err := UnmarshalAuthority(b)
		if err == nil {
			id = a.deployment
		}
		return err
	})
	return id, err
}

// bookOf is whose book it is; zero: it is empty.
func (k Keep) bookOf() (id session.ID, err error) {
	err = k.Book.View(func(tx store.Tx) error {
		_, err := found(getJSON(tx, bucketBook, "deployment", &id))
		return err
	})
	return id, err
}

// adopt takes over what the book knows and the store does not: revocations, and
// the nodes where the store has lost its own list.
func adopt(tx store.Tx, book store.Contents) error {
	lost, err := bookLost(tx)
	if err != nil {
		return err
	}
	if lost {
		for name, b := range book[bucketNodes] {
			if _, err := tx.Get(bucketNodes, name); errors.Is(err, store.ErrNotFound) {
				if err := tx.Put(bucketNodes, name, b); err != nil {
					return err
				}
			}
		}
		if err := tx.Delete(bucketBook, "lost"); err != nil {
			return err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(book[bucketRevoked])) {
		if err := adoptRevocation(tx, id, book[bucketRevoked][id]); err != nil {
			return err
		}
	}
	return nil
}

// adoptRevocation revokes a node that the book says is revoked.
func adoptRevocation(tx store.Tx, id string, raw []byte) error {
	_, err := tx.Get(bucketRevoked, id)
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	var rev revocation
	if err := json.Unmarshal(raw, &rev); err != nil {
		return err
	}
	node, err := session.ParseID(id)
	if err != nil {
		return err
	}
	if _, err := revokeTx(tx, rev.Name, node, rev.At); err != nil {
		return err
	}
	var rec nodeRecord
	if ok, err := found(getJSON(tx, bucketNodes, rev.Name, &rec)); !ok || err != nil || rec.ID != node {
		return err
	}
	rec.State = Revoked
	return putJSON(tx, bucketNodes, rev.Name, rec)
}

func bookLost(tx store.Tx) (bool, error) {
	_, err := tx.Get(bucketBook, "lost")
	return found(err)
}

// copyOf writes what the store has into the Keep. A book whose loss was not made
// good stays nobody's: its backup may still come.
func (k Keep) copyOf(st store.Store, own session.ID, kept []string) error {
	var lost bool
	err := st.View(func(tx store.Tx) (err error) {
		lost, err = bookLost(tx)
		return err
	})
	if err != nil {
		return err
	}
	keys, err := store.Read(st, kept...)
	if err != nil {
		return err
	}
	book, err := store.Read(st, bookBuckets...)
	if err != nil {
		return err
	}
	if err := k.Keys.Update(keys.Set); err != nil {
		return fmt.Errorf("keys of the gateway: %w", err)
	}
	err = k.Book.Update(func(tx store.Tx) error {
		if lost {
			return book.Put(tx)
		}
		if err := book.Set(tx); err != nil {
			return err
		}
		return putJSON(tx, bucketBook, "deployment", own)
	})
	if err != nil {
		return fmt.Errorf("book of nodes: %w", err)
	}
	return nil
}

// BookLost reports whether the registry was lost with its book: then it knows
// neither who is a node nor who was revoked.
func (r *Registry) BookLost() bool { return r.bookLost }

// Stranger reports whether nothing is known of a node that shows a certificate
// of this deployment, because the book is lost.
func (r *Registry) Stranger(id session.ID) bool {
	_, _, ok := r.Rights(id)
	return r.bookLost && !ok && !r.Revoked(id)
}
