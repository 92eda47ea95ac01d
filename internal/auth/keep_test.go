package auth

import (
	"errors"
	"testing"

	"tunneld/internal/session"
	"tunneld/internal/store"
	"tunneld/internal/store/storetest"
)

// deployment is a gateway's store with a node enrolled and one revoked, and its
// Keep.
func deployment(t *testing.T) (st store.Store, k Keep, alice, mallory session.ID) {
	t.Helper()
	raw := storetest.New(t)
	if _, err := InitGateway(raw, "gw", ticketNow); err != nil {
		t.Fatal(err)
	}
	k = newKeep(t)
	if rebuilt, err := k.Reconcile(raw, "networks"); rebuilt || err != nil {
		t.Fatalf("Reconcile = %v, %v for a store that is whole", rebuilt, err)
	}
	st = k.Mirror(raw, "networks")
	alice, mallory = session.ID{3: 1}, session.ID{3: 2}
	err := st.Update(func(tx store.Tx) error {
		return errors.Join(
			putJSON(tx, bucketNodes, "alice", nodeRecord{ID: alice, State: Enrolled, Networks: []string{"office"}}),
			putJSON(tx, bucketNodes, "mallory", nodeRecord{ID: mallory, State: Enrolled}),
			tx.Put("networks", "office", []byte("key")))
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenRegistry(st)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Revoke("mallory", ticketNow); err != nil {
		t.Fatal(err)
	}
	return st, k, alice, mallory
}

func registry(t *testing.T, k Keep, st store.Store) *Registry {
	t.Helper()
	r, err := OpenRegistry(k.Mirror(st, "networks"))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLostStore(t *testing.T) {
	old, k, alice, mallory := deployment(t)
	before, err := OpenRegistry(old)
	if err != nil {
		t.Fatal(err)
	}
	st := storetest.New(t)
	if rebuilt, err := k.Reconcile(st, "networks"); !rebuilt || err != nil {
		t.Fatalf("Reconcile = %v, %v; want a store that is rebuilt", rebuilt, err)
	}
	r := registry(t, k, st)
	if a, b := r.Identity(), before.Identity(); a.ID != b.ID || !a.Certificate.Equal(b.Certificate) || r.Deployment() != before.Deployment() {
		t.Errorf("the gateway is %v now, was %v", a.ID, b.ID)
	}
	_, _, ok := r.Rights(alice)
	if !ok || !r.Revoked(mallory) || r.BookLost() || r.Stranger(mallory) || r.RevocationSerial() != before.RevocationSerial() {
		t.Errorf("alice has rights %v, mallory is revoked %v, book lost %v", ok, r.Revoked(mallory), r.BookLost())
	}
	if got := read(t, st, "networks", "office"); got != "key" {
		t.Errorf("key of the network = %q", got)
	}
}

func read(t *testing.T, st store.Store, bucket, key string) (v string) {
	t.Helper()
	st.View(func(tx store.Tx) error {
		b, err := tx.Get(bucket, key)
		v = string(b)
		return err
	})
	return v
}

// TestLostBook: without it nobody is known; its backup makes all good.
func TestLostBook(t *testing.T) {
	_, k, alice, mallory := deployment(t)
	bare := Keep{k.Keys, storetest.New(t)}
	st := storetest.New(t)
	for range 2 { // again: that a new book was begun is no reason to trust it
		if _, err := bare.Reconcile(st, "networks"); err != nil {
			t.Fatal(err)
		}
		r := registry(t, bare, st)
		if !r.BookLost() || !r.Stranger(alice) || !r.Stranger(mallory) {
			t.Errorf("book lost %v, strangers %v and %v; want all of it", r.BookLost(), r.Stranger(alice), r.Stranger(mallory))
		}
	}
	if _, err := k.Reconcile(st, "networks"); err != nil { // the backup
		t.Fatal(err)
	}
	r := registry(t, k, st)
	if _, _, ok := r.Rights(alice); !ok || !r.Revoked(mallory) || r.BookLost() || r.Stranger(alice) {
		t.Errorf("with the backup: alice has rights %v, mallory is revoked %v, book lost %v", ok, r.Revoked(mallory), r.BookLost())
	}
}

// TestOldBackupRevivesNobody: of the store, or of the book.
func TestOldBackupRevivesNobody(t *testing.T) {
	raw := storetest.New(t)
	if _, err := InitGateway(raw, "gw", ticketNow); err != nil {
		t.Fatal(err)
	}
	mallory := session.ID{3: 2}
	if err := raw.Update(func(tx store.Tx) error {
		return putJSON(tx, bucketNodes, "mallory", nodeRecord{ID: mallory, State: Enrolled})
	}); err != nil {
		t.Fatal(err)
	}
	backup, err := store.Read(raw, bucketAuthority, bucketIdentities, bucketNodes, bucketRevoked, bucketRegistry)
	if err != nil {
		t.Fatal(err)
	}
	k := newKeep(t)
	if _, err := k.Reconcile(raw); err != nil {
		t.Fatal(err)
	}
	book, err := store.Read(k.Book, append(bookBuckets, bucketBook)...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := registry(t, k, raw).Revoke("mallory", ticketNow); err != nil {
		t.Fatal(err)
	}

	oldBook := Keep{k.Keys, storetest.New(t)}
	oldStore := storetest.New(t)
	if err := errors.Join(oldBook.Book.Update(book.Put), oldStore.Update(backup.Put)); err != nil {
		t.Fatal(err)
	}
	for what, of := range map[string]struct {
		k  Keep
		st store.Store
	}{"store": {k, oldStore}, "book": {oldBook, raw}} {
		if _, err := of.k.Reconcile(of.st); err != nil {
			t.Fatal(err)
		}
		r := registry(t, of.k, of.st)
		if _, _, ok := r.Rights(mallory); ok || !r.Revoked(mallory) || read(t, of.k.Book, bucketRevoked, mallory.String()) == "" {
			t.Errorf("old backup of the %s: mallory has rights %v, is revoked %v", what, ok, r.Revoked(mallory))
		}
	}
}

// TestNewDeploymentInOldPlace: what is left of another deployment is not adopted.
func TestNewDeploymentInOldPlace(t *testing.T) {
	_, k, alice, _ := deployment(t)
	st := storetest.New(t)
	if _, err := InitGateway(st, "gw", ticketNow); err != nil {
		t.Fatal(err)
	}
	if rebuilt, err := k.Reconcile(st, "networks"); rebuilt || err != nil {
		t.Fatalf("Reconcile = %v, %v", rebuilt, err)
	}
	r := registry(t, k, st)
	if _, _, ok := r.Rights(alice); ok || read(t, k.Book, bucketNodes, "alice") != "" || read(t, k.Keys, "networks", "office") != "" {
		t.Error("the new deployment has something of the old one")
	}
	if deploymentOf, err := deploymentIn(k.Keys); err != nil || deploymentOf != r.Deployment() {
		t.Errorf("the Keep is of %v, %v; want of the new deployment", deploymentOf, err)
	}
}
