package store_test

import (
	"errors"
	"testing"

	"tunneld/internal/store"
	"tunneld/internal/store/storetest"
)

func get(t *testing.T, s store.Store, bucket, key string) string {
	t.Helper()
	var v []byte
	err := s.View(func(tx store.Tx) (err error) {
		v, err = tx.Get(bucket, key)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(v)
}

func TestMirror(t *testing.T) {
	main, keys, book := storetest.New(t), storetest.New(t), storetest.New(t)
	s := store.Mirror(main, map[string]store.Store{"keys": keys, "book": book})
	write := func(bucket, key, value string) error {
		return s.Update(func(tx store.Tx) error {
			if value == "" {
				return tx.Delete(bucket, key)
			}
			return tx.Put(bucket, key, []byte(value))
		})
	}
	for _, bucket := range []string{"keys", "book", "other"} {
		if err := write(bucket, "a", bucket); err != nil {
			t.Fatal(err)
		}
	}
	if got := get(t, main, "keys", "a") + get(t, keys, "keys", "a") + get(t, book, "book", "a"); got != "keyskeysbook" {
		t.Errorf("the three have %q, want each its own", got)
	}
	if got := get(t, keys, "other", "a") + get(t, book, "other", "a") + get(t, keys, "book", "a"); got != "" {
		t.Errorf("a copy has %q of a bucket that is not its own", got)
	}
	if err := write("keys", "a", ""); err != nil || get(t, keys, "keys", "a") != "" {
		t.Errorf("after Delete (%v) the copy has %q", err, get(t, keys, "keys", "a"))
	}

	book.FailUpdates(1)
	if err := write("book", "b", "x"); !errors.Is(err, storetest.ErrInjected) || get(t, main, "book", "b") != "" {
		t.Errorf("copy not written: Update = %v, and the store has %q; want an error and nothing", err, get(t, main, "book", "b"))
	}
	main.FailUpdates(1)
	if err := write("book", "c", "x"); !errors.Is(err, storetest.ErrInjected) || get(t, book, "book", "c") != "x" {
		t.Errorf("store not written: Update = %v, and the copy has %q; want an error and the copy ahead", err, get(t, book, "book", "c"))
	}
}

func TestMirrorOfAFunctionThatFails(t *testing.T) {
	main, book := storetest.New(t), storetest.New(t)
	s := store.Mirror(main, map[string]store.Store{"book": book})
	want := errors.New("not today")
	err := s.Update(func(tx store.Tx) error {
		if err := tx.Put("book", "a", []byte("x")); err != nil {
			t.Fatal(err)
		}
		return want
	})
	if !errors.Is(err, want) || book.Updates() != 0 {
		t.Errorf("Update = %v after %d writes of the copy, want %v and none", err, book.Updates(), want)
	}
}
