package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"tunneld/internal/store"
)

// Run tests what store.Store promises. open returns an empty store; the test
// closes it.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, store.Store)
	}{
		{"values", testValues},
		{"values are the caller's", testOwnership},
		{"an error changes nothing", testError},
		{"a panic changes nothing", testPanic},
		{"a goroutine that ends changes nothing", testGoexit},
		{"own changes are seen", testOwnChanges},
		{"each", testEach},
		{"each while changing", testEachChanging},
		{"view", testView},
		{"places", testPlaces},
		{"after the end", testEnded},
		{"many at once", testConcurrent},
		{"close", testClose},
		{"close waits for a view", testCloseWaitsForView},
		{"close waits for an update", testCloseWaitsForUpdate},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			defer s.Close()
			c.test(t, s)
		})
	}
}

var errTest = errors.New("a reason")

func put(t *testing.T, s store.Store, bucket string, pairs ...string) {
	t.Helper()
	err := s.Update(func(tx store.Tx) error {
		for i := 0; i < len(pairs); i += 2 {
			if err := tx.Put(bucket, pairs[i], []byte(pairs[i+1])); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("Update(put %q) = %v, want nil", pairs, err)
	}
}

// dump reads a bucket as "key=value key=value".
func dump(t *testing.T, s store.Store, bucket string) string {
	t.Helper()
	var out string
	err := s.View(func(tx store.Tx) (err error) {
		out, err = dumpTx(tx, bucket)
		return err
	})
	if err != nil {
		t.Fatalf("View(each %q) = %v, want nil", bucket, err)
	}
	return out
}

func dumpTx(tx store.Tx, bucket string) (string, error) {
	var pairs []string
	err := tx.Each(bucket, func(key string, value []byte) error {
		pairs = append(pairs, key+"="+string(value))
		return nil
	})
	return strings.Join(pairs, " "), err
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s = %q, want %q", what, got, want)
	}
}

func testValues(t *testing.T, s store.Store) {
	put(t, s, "a", "1", "x", "2", "", "3", "z")
	put(t, s, "b", "1", "other")
	put(t, s, "a", "1", "y")
	want(t, "bucket a", dump(t, s, "a"), "1=y 2= 3=z")
	want(t, "bucket b", dump(t, s, "b"), "1=other")
	want(t, "no bucket", dump(t, s, "none"), "")
	err := s.Update(func(tx store.Tx) error {
		return errors.Join(tx.Delete("a", "3"), tx.Delete("a", "3"), tx.Delete("none", "1"))
	})
	if err != nil {
		t.Errorf("Delete = %v, want nil", err)
	}
	err = s.View(func(tx store.Tx) error {
		if v, err := tx.Get("a", "2"); v == nil || len(v) != 0 || err != nil {
			t.Errorf("Get(empty value) = %#v, %v, want []byte{}, nil", v, err)
		}
		for _, place := range [][2]string{{"a", "3"}, {"a", "none"}, {"none", "1"}} {
			if v, err := tx.Get(place[0], place[1]); v != nil || !errors.Is(err, store.ErrNotFound) {
				t.Errorf("Get(%q) = %q, %v, want ErrNotFound", place, v, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("View = %v, want nil", err)
	}
}

func testOwnership(t *testing.T, s store.Store) {
	value := []byte("before")
	if err := s.Update(func(tx store.Tx) error {
		err := tx.Put("a", "1", value)
		copy(value, "XXXXXX")
		got, gerr := tx.Get("a", "1")
		copy(got, "YYYYYY")
		copy(value, "before") // for a second run
		return errors.Join(err, gerr)
	}); err != nil {
		t.Fatalf("Update = %v, want nil", err)
	}
	var kept []byte
	if err := s.View(func(tx store.Tx) (err error) {
		kept, err = tx.Get("a", "1")
		return err
	}); err != nil {
		t.Fatalf("View = %v, want nil", err)
	}
	put(t, s, "a", "1", "after!")
	if !bytes.Equal(kept, []byte("before")) {
		t.Errorf("a value that was kept = %q, want %q", kept, "before")
	}
	copy(kept, "ZZZZZZ")
	want(t, "bucket a", dump(t, s, "a"), "1=after!")
}

func testError(t *testing.T, s store.Store) {
	put(t, s, "a", "1", "x")
	err := s.Update(func(tx store.Tx) error {
		return errors.Join(tx.Put("a", "1", []byte("y")), tx.Put("b", "2", nil), tx.Delete("a", "1"), errTest)
	})
	if !errors.Is(err, errTest) {
		t.Errorf("Update = %v, want %v", err, errTest)
	}
	want(t, "bucket a", dump(t, s, "a"), "1=x")
	want(t, "bucket b", dump(t, s, "b"), "")
}

func testPanic(t *testing.T, s store.Store) {
	put(t, s, "a", "1", "x")
	for _, do := range []func(func(store.Tx) error) error{s.Update, s.View} {
		func() {
			defer func() {
				if r := recover(); r != errTest {
					t.Errorf("recovered %v, want %v", r, errTest)
				}
			}()
			err := do(func(tx store.Tx) error {
				tx.Put("a", "1", []byte("y"))
				panic(errTest)
			})
			t.Errorf("returned %v, want a panic", err)
		}()
	}
	want(t, "bucket a", dump(t, s, "a"), "1=x")
	put(t, s, "a", "1", "goes on")
}

// A t.Fatal inside fn ends the goroutine, not the store.
func testGoexit(t *testing.T, s store.Store) {
	put(t, s, "a", "1", "x")
	var wg sync.WaitGroup
	wg.Go(func() {
		s.Update(func(tx store.Tx) error {
			tx.Put("a", "1", []byte("y"))
			runtime.Goexit()
			return nil
		})
	})
	wg.Wait()
	want(t, "bucket a", dump(t, s, "a"), "1=x")
	put(t, s, "a", "1", "goes on")
}

func testOwnChanges(t *testing.T, s store.Store) {
	put(t, s, "a", "1", "x", "2", "y")
	var seen string
	if err := s.Update(func(tx store.Tx) (err error) {
		err = errors.Join(tx.Put("a", "0", []byte("new")), tx.Put("a", "1", []byte("changed")), tx.Delete("a", "2"), tx.Put("a", "3", []byte("last")))
		if err != nil {
			return err
		}
		if v, err := tx.Get("a", "1"); string(v) != "changed" {
			t.Errorf("Get(changed) = %q, %v, want %q", v, err, "changed")
		}
		if v, err := tx.Get("a", "2"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Get(deleted) = %q, %v, want ErrNotFound", v, err)
		}
		seen, err = dumpTx(tx, "a")
		return err
	}); err != nil {
		t.Fatalf("Update = %v, want nil", err)
	}
	want(t, "inside", seen, "0=new 1=changed 3=last")
	want(t, "afterwards", dump(t, s, "a"), "0=new 1=changed 3=last")
}

func testEach(t *testing.T, s store.Store) {
	put(t, s, "a", "b", "2", "a", "1", "\xff", "4", "c", "3")
	want(t, "bucket a", dump(t, s, "a"), "a=1 b=2 c=3 \xff=4")
	var keys []string
	err := s.View(func(tx store.Tx) error {
		return tx.Each("a", func(key string, _ []byte) error {
			keys = append(keys, key)
			if key == "b" {
				return errTest
			}
			return nil
		})
	})
	if !errors.Is(err, errTest) || !slices.Equal(keys, []string{"a", "b"}) {
		t.Errorf("Each until b = %v after %q, want %v after a, b", err, keys, errTest)
	}
}

func testEachChanging(t *testing.T, s store.Store) {
	put(t, s, "a", "1", "x", "3", "y", "5", "z")
	var seen []string
	if err := s.Update(func(tx store.Tx) error {
		seen = nil
		return tx.Each("a", func(key string, value []byte) error {
			seen = append(seen, key+"="+string(value))
			return errors.Join(tx.Delete("a", key), tx.Delete("a", "5"), tx.Put("a", key+"0", []byte("new")))
		})
	}); err != nil {
		t.Fatalf("Update = %v, want nil", err)
	}
	want(t, "seen", strings.Join(seen, " "), "1=x 3=y 5=z")
	want(t, "afterwards", dump(t, s, "a"), "10=new 30=new 50=new")
}

func testView(t *testing.T, s store.Store) {
	put(t, s, "a", "1", "x")
	err := s.View(func(tx store.Tx) error {
		if tx.Put("a", "1", nil) == nil || tx.Delete("a", "1") == nil {
			t.Errorf("a change inside View = nil, want an error")
		}
		done := make(chan struct{})
		go func() { defer close(done); put(t, s, "a", "1", "y") }()
		<-done
		if v, err := tx.Get("a", "1"); string(v) != "x" {
			t.Errorf("Get during an Update = %q, %v, want %q", v, err, "x")
		}
		return errTest
	})
	if !errors.Is(err, errTest) {
		t.Errorf("View = %v, want %v", err, errTest)
	}
	want(t, "afterwards", dump(t, s, "a"), "1=y")
}

func testPlaces(t *testing.T, s store.Store) {
	long := strings.Repeat("k", 32769)
	for _, place := range [][2]string{{"", "k"}, {"b", ""}, {"b", long}, {long, "k"}} {
		if err := s.Update(func(tx store.Tx) error { return tx.Put(place[0], place[1], nil) }); err == nil {
			t.Errorf("Put(%.8q) = nil, want an error", place)
		}
	}
	put(t, s, long[1:], long[1:], "longest")
	want(t, "longest", fmt.Sprint(len(dump(t, s, long[1:]))), fmt.Sprint(32768+len("=longest")))
}

func testEnded(t *testing.T, s store.Store) {
	put(t, s, "a", "1", "x")
	var kept store.Tx
	keep := func(tx store.Tx) error { kept = tx; return nil }
	for _, do := range []func(func(store.Tx) error) error{s.Update, s.View} {
		if err := do(keep); err != nil {
			t.Fatalf("returned %v, want nil", err)
		}
		_, getErr := kept.Get("a", "1")
		eachErr := kept.Each("a", func(string, []byte) error { return nil })
		if getErr == nil || eachErr == nil || kept.Put("a", "1", nil) == nil || kept.Delete("a", "1") == nil {
			t.Errorf("a transaction that is over can be used")
		}
	}
	want(t, "bucket a", dump(t, s, "a"), "1=x")
}

// Every third function fails; each must see the others' results and no
// failure may take a neighbour's change with it.
func testConcurrent(t *testing.T, s store.Store) {
	const n = 300
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			err := s.Update(func(tx store.Tx) error {
				v, err := tx.Get("count", "n")
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					return err
				}
				if err := tx.Put("count", "n", append(v, '.')); err != nil {
					return err
				}
				if err := tx.Put("each", fmt.Sprintf("%03d", i), nil); err != nil {
					return err
				}
				if i%3 == 0 {
					return errTest
				}
				return nil
			})
			if got, want := err != nil, i%3 == 0; got != want {
				t.Errorf("Update %d = %v, want an error: %v", i, err, want)
			}
		})
	}
	wg.Wait()
	want(t, "count", dump(t, s, "count"), "n="+strings.Repeat(".", n*2/3))
	if got := strings.Count(dump(t, s, "each"), "="); got != n*2/3 {
		t.Errorf("%d keys, want %d", got, n*2/3)
	}
}

func testClose(t *testing.T, s store.Store) {
	put(t, s, "a", "1", "x")
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v, want nil", err)
		}
	}
	nop := func(store.Tx) error { t.Errorf("a function ran after Close"); return nil }
	if err := s.Update(nop); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Update after Close = %v, want ErrClosed", err)
	}
	if err := s.View(nop); !errors.Is(err, store.ErrClosed) {
		t.Errorf("View after Close = %v, want ErrClosed", err)
	}
}

func testCloseWaitsForView(t *testing.T, s store.Store)   { testCloseWaits(t, s, s.View) }
func testCloseWaitsForUpdate(t *testing.T, s store.Store) { testCloseWaits(t, s, s.Update) }

func testCloseWaits(t *testing.T, s store.Store, do func(func(store.Tx) error) error) {
	inside, leave, closed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var once sync.Once
	over := false
	var wg sync.WaitGroup
	wg.Go(func() {
		do(func(store.Tx) error {
			once.Do(func() { close(inside); <-leave })
			over = true // a data race, if Close does not wait
			return nil
		})
	})
	<-inside
	wg.Go(func() { defer close(closed); s.Close() })
	select {
	case <-closed:
		t.Errorf("Close returned while a transaction ran")
	default:
	}
	close(leave)
	<-closed
	if !over {
		t.Errorf("Close returned before the transaction was over")
	}
	wg.Wait()
}
