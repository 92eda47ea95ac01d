package storetest_test

import (
	"errors"
	"testing"

	"go.uber.org/goleak"

	"tunneld/internal/store"
	"tunneld/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMem(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return storetest.New(t) })
}

func TestFailUpdates(t *testing.T) {
	s := storetest.New(t)
	s.FailUpdates(2)
	put := func(value string) error {
		return s.Update(func(tx store.Tx) error { return tx.Put("a", "1", []byte(value)) })
	}
	for i := range 2 {
		if err := put("lost"); !errors.Is(err, storetest.ErrInjected) {
			t.Errorf("Update %d = %v, want ErrInjected", i, err)
		}
	}
	if err := put("kept"); err != nil {
		t.Errorf("Update 2 = %v, want nil", err)
	}
	if got := s.Updates(); got != 1 {
		t.Errorf("Updates() = %d, want 1", got)
	}
}

// A function that adds to what it returns is found out.
func TestFunctionsRunTwice(t *testing.T) {
	s := storetest.New(t)
	runs := 0
	if err := s.Update(func(tx store.Tx) error {
		runs++
		if _, err := tx.Get("a", "1"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("run %d sees the first: Get = %v, want ErrNotFound", runs, err)
		}
		return tx.Put("a", "1", nil)
	}); err != nil {
		t.Fatal(err)
	}
	if runs != 2 {
		t.Errorf("%d runs, want 2", runs)
	}
}
