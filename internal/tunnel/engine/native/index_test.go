package native

import (
	"sync"
	"testing"
)

func TestTable(t *testing.T) {
	table := newTable(newMixing(), nil)
	var all []*entry
	seen := make(map[uint32]bool)
	for range 3 * chunkSize {
		e, err := table.take(nil)
		if err != nil {
			t.Fatal(err)
		}
		if e.index == 0 || seen[e.index] {
			t.Fatalf("index %#x was given out before, or is none", e.index)
		}
		seen[e.index] = true
		all = append(all, e)
	}
	for i, e := range all {
		if got := table.find(e.index); got != e {
			t.Fatalf("find(%#x) = %p, want %p", e.index, got, e)
		}
		if i%2 == 0 {
			table.drop(e)
			table.drop(e) // does nothing
			if got := table.find(e.index); got != nil {
				t.Fatalf("find(%#x) after drop = %p, want nil", e.index, got)
			}
		}
	}
	for range 10 * chunkSize { // indices are used again, but not what they stood for
		e, err := table.take(nil)
		if err != nil {
			t.Fatal(err)
		}
		table.drop(e)
	}
	for _, e := range all {
		if got := table.find(e.index); got != nil && got != e {
			t.Fatalf("find(%#x) = %p, which has index %#x", e.index, got, got.index)
		}
	}
	if n := len(*table.chunks.Load()); n != 3 {
		t.Errorf("%d chunks, want 3: dropped indices are used again", n)
	}
}

func TestTableFull(t *testing.T) {
	table := newTable(newMixing(), nil)
	table.limit = 2
	for range 2 * chunkSize {
		if _, err := table.take(nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := table.take(nil); err != errFull {
		t.Errorf("take from a full table = %v, want %v", err, errFull)
	}
}

// TestTableReaders looks indices up while others come and go.
func TestTableReaders(t *testing.T) {
	table := newTable(newMixing(), nil)
	kept, err := table.take(nil)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var readers, writers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if got := table.find(kept.index); got != kept {
					t.Errorf("find = %p, want %p", got, kept)
					return
				}
			}
		})
		writers.Go(func() {
			var own []*entry
			for range 5000 {
				if e, err := table.take(nil); err == nil {
					own = append(own, e)
				}
			}
			for _, e := range own {
				table.drop(e)
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
}
