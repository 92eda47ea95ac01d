package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// onTmpfs runs fn with a directory on a file system of its own, of that size,
// which nobody else sees.
func onTmpfs(t *testing.T, size string, fn func(dir string)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a file system")
	}
	dir := t.TempDir()
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and its mounts with it
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			t.Errorf("no mount namespace: %v", err)
			return
		}
		if err := errors.Join(
			unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size)); err != nil {
			t.Errorf("no file system: %v", err)
			return
		}
		fn(dir)
	})
	wg.Wait()
}

// A disk that is really full: the file has been made longer, and its pages
// cannot be written. What was stored before stays, nothing of what was refused
// is ever seen, and the store goes on once there is room.
func TestNoSpaceLeft(t *testing.T) {
	onTmpfs(t, "4m", func(dir string) {
		b := mustOpen(t, dir)
		defer func() { b.Close() }()
		mustPut(t, b, "a", "1", "x")
		big := strings.Repeat("y", 700<<10)
		stored := 0
		var err error
		for err == nil && stored < 100 {
			if err = put(b, "a", fmt.Sprint("big", stored), big); err == nil {
				stored++
			}
		}
		wantError(t, "Put on a full disk", err, unix.ENOSPC, b.path)
		if stored == 0 || stored == 100 {
			t.Fatalf("%d values of %d octets fit on 4 MiB", stored, len(big))
		}
		refused := fmt.Sprint("big", stored)
		check := func(when string) {
			wantValue(t, b, "a", "1", "x")
			wantValue(t, b, "a", "big0", big)
			if err := b.View(func(tx Tx) error { _, err := tx.Get("a", refused); return err }); !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: Get(what was refused) = %v, want ErrNotFound", when, err)
			}
		}
		check("on the full disk")
		b.Close()
		b = mustOpen(t, dir)
		check("after a restart on the full disk")
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=16m"); err != nil {
			t.Fatal(err)
		}
		mustPut(t, b, "a", refused, big)
		wantValue(t, b, "a", refused, big)
	})
}

// A disk that was mounted read-only says so, and what to do.
func TestReadOnlyDisk(t *testing.T) {
	onTmpfs(t, "4m", func(dir string) {
		b := mustOpen(t, dir)
		mustPut(t, b, "a", "1", "x")
		b.Close()
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		wantError(t, "Open on a read-only disk", openError(dir), unix.EROFS, filepath.Join(dir, stateFile), "state_dir")
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, ""); err != nil {
			t.Fatal(err)
		}
		b = mustOpen(t, dir)
		defer b.Close()
		wantValue(t, b, "a", "1", "x")
	})
}
