package store

import (
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"unsafe"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// commits is how many write transactions the file has seen.
func commits(t testing.TB, b *Bolt) (n int) {
	t.Helper()
	if err := b.db.View(func(tx *bbolt.Tx) error { n = tx.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// together runs the functions in one batch, in their order: all others wait
// while the first has its turn. It must run in a bubble. A function that does
// not return leaves errAborted.
func together(b *Bolt, fns ...func(Tx) error) []error {
	errs := make([]error, len(fns))
	leave := make(chan struct{})
	var wg sync.WaitGroup
	for i, fn := range fns {
		wg.Go(func() {
			defer func() { recover() }()
			errs[i] = errAborted
			errs[i] = b.Update(func(tx Tx) error {
				if i == 0 {
					<-leave
				}
				return fn(tx)
			})
		})
		synctest.Wait() // it has its turn, or waits for it
	}
	close(leave)
	wg.Wait()
	return errs
}

func inBubble(t *testing.T, test func(*testing.T, *Bolt)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { test(t, mustOpen(t, dir)) })
}

func putter(key, value string) func(Tx) error {
	return func(tx Tx) error { return tx.Put("a", key, []byte(value)) }
}

func TestGroupCommit(t *testing.T) {
	inBubble(t, func(t *testing.T, b *Bolt) {
		before := commits(t, b)
		fns := make([]func(Tx) error, 1000)
		for i := range fns {
			fns[i] = putter(fmt.Sprint(i), "x")
		}
		for i, err := range together(b, fns...) {
			if err != nil {
				t.Errorf("Update %d = %v, want nil", i, err)
			}
		}
		if got := commits(t, b) - before; got != 1 {
			t.Errorf("%d commits for 1000 Updates at once, want 1", got)
		}
		for i := range fns {
			wantValue(t, b, "a", fmt.Sprint(i), "x")
		}
	})
}

var errTest = errors.New("a reason")

func TestFailuresInBatch(t *testing.T) {
	inBubble(t, func(t *testing.T, b *Bolt) {
		before := commits(t, b)
		errs := together(b,
			putter("1", "first"),
			func(tx Tx) error { return errors.Join(tx.Put("a", "1", nil), tx.Put("a", "2", nil), errTest) },
			func(tx Tx) error { tx.Put("a", "1", nil); panic("stays with its caller") },
			func(tx Tx) error { tx.Put("a", "1", nil); runtime.Goexit(); return nil },
			func(tx Tx) error {
				v, err := tx.Get("a", "1")
				return errors.Join(err, tx.Put("a", "5", append(v, " seen"...)))
			},
		)
		for i, want := range []error{nil, errTest, errAborted, errAborted, nil} {
			if !errors.Is(errs[i], want) {
				t.Errorf("Update %d = %v, want %v", i, errs[i], want)
			}
		}
		if got := commits(t, b) - before; got != 1 {
			t.Errorf("%d commits, want 1", got)
		}
		wantValue(t, b, "a", "1", "first")
		wantValue(t, b, "a", "5", "first seen")
		if err := b.View(func(tx Tx) error { _, err := tx.Get("a", "2"); return err }); !errors.Is(err, ErrNotFound) {
			t.Errorf("Get(of the one that failed) = %v, want ErrNotFound", err)
		}
	})
}

// When the commit fails, everybody whose answer stands on it hears so: also the
// one who refused something because of a change that never came to be.
func TestCommitFails(t *testing.T) {
	inBubble(t, func(t *testing.T, b *Bolt) {
		b.db.MaxSize = 1
		refuse := func(Tx) error { return errTest }
		errs := together(b, refuse, putter("1", string(make([]byte, 1<<20))), refuse, putter("2", "x"))
		for i, want := range []error{errTest, bolterrors.ErrMaxSizeReached, bolterrors.ErrMaxSizeReached, bolterrors.ErrMaxSizeReached} {
			if !errors.Is(errs[i], want) {
				t.Errorf("Update %d = %v, want %v", i, errs[i], want)
			}
		}
		if errors.Is(errs[2], errTest) {
			t.Errorf("Update 2 = %v, which is of a state that never was", errs[2])
		}
		b.db.MaxSize = 0
		mustPut(t, b, "a", "3", "goes on")
	})
}

func TestNothingToCommit(t *testing.T) {
	b := mustOpen(t, t.TempDir())
	before := commits(t, b)
	if err := b.Update(func(Tx) error { return nil }); err != nil {
		t.Errorf("Update(nothing) = %v, want nil", err)
	}
	if err := b.Update(func(Tx) error { return errTest }); !errors.Is(err, errTest) {
		t.Errorf("Update(error) = %v, want %v", err, errTest)
	}
	if got := commits(t, b) - before; got != 0 {
		t.Errorf("%d commits, want 0", got)
	}
}

// An fsync that fails after the last write: readers see the change, and no one
// knows whether the disk has it. bbolt's hook for its own tests stands in for
// the disk.
func TestUnknownFateStopsWriting(t *testing.T) {
	dir := t.TempDir()
	b := mustOpen(t, dir)
	mustPut(t, b, "a", "1", "x")
	writeAt := reflect.ValueOf(b.db).Elem().FieldByName("ops").FieldByName("writeAt")
	hook := (*func([]byte, int64) (int, error))(unsafe.Pointer(writeAt.UnsafeAddr()))
	real := *hook
	*hook = func(p []byte, at int64) (int, error) {
		n, err := real(p, at)
		if at < 2*int64(b.db.Info().PageSize) { // a meta page
			return n, syscall.EIO
		}
		return n, err
	}
	err := put(b, "a", "1", "perhaps")
	wantError(t, "Put", err, syscall.EIO, b.path, "restarted")
	*hook = real
	wantError(t, "Put after it", put(b, "a", "2", "y"), syscall.EIO, "restarted")
	if err := b.Close(); err != nil {
		t.Errorf("Close() = %v, want nil", err)
	}
	mustPut(t, mustOpen(t, dir), "a", "2", "y")
}

// Updates that wait when Close comes are refused, those that have begun end.
func TestCloseWithUpdatesWaiting(t *testing.T) {
	inBubble(t, func(t *testing.T, b *Bolt) {
		leave := make(chan struct{})
		var first, second error
		var wg sync.WaitGroup
		wg.Go(func() {
			first = b.Update(func(tx Tx) error { <-leave; return tx.Put("a", "1", nil) })
		})
		synctest.Wait()
		wg.Go(func() { b.Close() })
		synctest.Wait()
		wg.Go(func() { second = put(b, "a", "2", "") })
		synctest.Wait()
		close(leave)
		wg.Wait()
		if first != nil || !errors.Is(second, ErrClosed) {
			t.Errorf("Updates = %v, %v, want nil, ErrClosed", first, second)
		}
	})
}

// BenchmarkUpdate shows what sharing an fsync is worth: compare with -cpu.
func BenchmarkUpdate(b *testing.B) {
	for _, callers := range []int{1, 100, 5000} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			s, err := Open(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			before := commits(b, s)
			b.SetParallelism(callers/runtime.GOMAXPROCS(0) + 1)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := put(s, "a", "key", "value"); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/float64(max(commits(b, s)-before, 1)), "updates/commit")
		})
	}
}
