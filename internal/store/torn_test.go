package store

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sector is what a disk writes at once.
const sector = 512

// TestTornWrite cuts the power during a commit: of its data any sectors are on
// disk, of the page that makes it valid any beginning. Opened again the file has
// all of the commit or nothing of it.
func TestTornWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, stateFile)
	b := mustOpen(t, dir)
	fill(t, b)
	b.Close()
	before := readFile(t, path)
	b = mustOpen(t, dir)
	if err := b.Update(func(tx Tx) error {
		for i := range 60 {
			if err := tx.Put("a", fmt.Sprint(i), []byte(strings.Repeat("y", 500))); err != nil {
				return err
			}
		}
		return tx.Delete("a", "7")
	}); err != nil {
		t.Fatal(err)
	}
	b.Close()
	after := readFile(t, path)
	before = append(before, make([]byte, max(0, len(after)-len(before)))...) // the file has its new length first
	metas := 2 * os.Getpagesize()

	rnd := rand.New(rand.NewPCG(3, 4))
	for range 60 { // before the data is synced
		torn := bytes.Clone(before)
		for at := metas; at < len(after); at += sector {
			if rnd.IntN(2) == 0 {
				copy(torn[at:], after[at:min(at+sector, len(after))])
			}
		}
		wantWhole(t, dir, torn, "x")
	}
	changed := 0
	for n := range metas { // while the last page is written
		if before[n] == after[n] {
			continue
		}
		changed++
		wantWhole(t, dir, append(bytes.Clone(after[:n]), append(bytes.Clone(before[n:metas]), after[metas:]...)...), "x", "y")
	}
	if changed == 0 {
		t.Fatal("a commit has changed no meta page")
	}
	wantWhole(t, dir, after, "y")
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// wantWhole opens the file and wants every value to be of one of the commits.
func wantWhole(t *testing.T, dir string, file []byte, commits ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, stateFile), file, 0o600); err != nil {
		t.Fatal(err)
	}
	b := mustOpen(t, dir)
	defer b.Close()
	seen, n := map[string]bool{}, 0
	if err := b.View(func(tx Tx) error {
		return tx.Each("a", func(_ string, value []byte) error {
			n++
			seen[string(value)] = true
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	for _, c := range commits {
		if want := map[string]int{"x": 60, "y": 59}[c]; len(seen) == 1 && seen[strings.Repeat(c, 500)] && n == want {
			return
		}
	}
	t.Fatalf("%d values of %d kinds, want those of one commit of %v", n, len(seen), commits)
}
