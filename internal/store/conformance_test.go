package store_test

import (
	"testing"

	"tunneld/internal/store"
	"tunneld/internal/store/storetest"
)

func TestBolt(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		b, err := store.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}
