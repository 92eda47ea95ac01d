package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// holdEnv makes the test binary hold the store of a directory until its
// standard input ends.
const holdEnv = "STORE_TEST_HOLD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(holdEnv); dir != "" {
		os.Exit(hold(dir))
	}
	goleak.VerifyTestMain(m)
}

func hold(dir string) int {
	b, err := Open(dir)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer b.Close()
	fmt.Println("held")
	os.Stdin.Read(make([]byte, 1))
	return 0
}

func mustOpen(t *testing.T, dir string) *Bolt {
	t.Helper()
	b, err := Open(dir)
	if err != nil {
		t.Fatalf("Open(%q) = %v, want nil", dir, err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func put(b *Bolt, bucket, key, value string) error {
	return b.Update(func(tx Tx) error { return tx.Put(bucket, key, []byte(value)) })
}

func mustPut(t *testing.T, b *Bolt, bucket, key, value string) {
	t.Helper()
	if err := put(b, bucket, key, value); err != nil {
		t.Fatalf("Put(%q, %q) = %v, want nil", bucket, key, err)
	}
}

func wantValue(t *testing.T, b *Bolt, bucket, key, want string) {
	t.Helper()
	err := b.View(func(tx Tx) error {
		got, err := tx.Get(bucket, key)
		if string(got) != want {
			t.Errorf("Get(%q, %q) = %q, want %q", bucket, key, got, want)
		}
		return err
	})
	if err != nil {
		t.Errorf("Get(%q, %q) = %v, want nil", bucket, key, err)
	}
}

// wantError checks the kind of an error and that it says each of these.
func wantError(t *testing.T, what string, err, kind error, says ...string) {
	t.Helper()
	if err == nil || kind != nil && !errors.Is(err, kind) {
		t.Fatalf("%s = %v, want %v", what, err, kind)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%s = %q, which does not say %q", what, err, s)
		}
	}
}

func openError(dir string) error {
	b, err := Open(dir)
	if err == nil {
		b.Close()
	}
	return err
}

func TestReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "deep")
	b := mustOpen(t, dir)
	mustPut(t, b, "a", "1", "x")
	key, err := os.ReadFile(filepath.Join(dir, sealFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatalf("Close() = %v, want nil", err)
	}
	for name, want := range map[string]os.FileMode{"": 0o700 | os.ModeDir, stateFile: 0o600, sealFile: 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%s has mode %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
	b = mustOpen(t, dir)
	wantValue(t, b, "a", "1", "x")
	again, err := os.ReadFile(filepath.Join(dir, sealFile))
	if err != nil || !bytes.Equal(key, again) {
		t.Errorf("the key changed at the second Open (%v)", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("files = %v, want %s and %s alone", entries, stateFile, sealFile)
	}
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	b := mustOpen(t, dir)
	wantError(t, "Open in the same process", openError(dir), ErrLocked, dir, "state_dir", "stop")
	b.Close()

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdEnv+"="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 5)
	if n, err := stdout.Read(line); string(line[:n]) != "held\n" {
		t.Errorf("the other process says %q, %v, want %q", line[:n], err, "held\n")
	}
	wantError(t, "Open beside another process", openError(dir), ErrLocked, dir)
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the other process: %v", err)
	}
	mustOpen(t, dir)
}

// What a thief of state.db finds: no value, though every page that was ever
// written is still in it.
func TestNothingUnsealedInFile(t *testing.T) {
	dir := t.TempDir()
	b := mustOpen(t, dir)
	const marker = "PLAINTEXT-MARKER"
	for i := range 50 {
		mustPut(t, b, "bucket", "key", strings.Repeat(marker, i+1))
	}
	b.Update(func(tx Tx) error {
		return errors.Join(tx.Delete("bucket", "key"), tx.Put("bucket", "last", []byte(marker)))
	})
	b.Close()
	raw, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, []byte(marker)) || bytes.Contains(raw, []byte(sealedWord)) {
		t.Errorf("%s has a value in clear", stateFile)
	}
	if !bytes.Contains(raw, []byte("last")) {
		t.Errorf("%s has no key in clear: the search finds nothing at all", stateFile)
	}
}

// raw changes the file behind the store's back.
func raw(t *testing.T, dir string, fn func(tx *bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(dir, stateFile), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(fn), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestValueMovedOrChanged(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(data *bbolt.Bucket) error
	}{
		{"another key's", func(d *bbolt.Bucket) error {
			return d.Bucket([]byte("a")).Put([]byte("1"), d.Bucket([]byte("a")).Get([]byte("2")))
		}},
		{"another bucket's", func(d *bbolt.Bucket) error {
			return d.Bucket([]byte("a")).Put([]byte("1"), d.Bucket([]byte("b")).Get([]byte("1")))
		}},
		{"one bit", func(d *bbolt.Bucket) error {
			v := bytes.Clone(d.Bucket([]byte("a")).Get([]byte("1")))
			v[len(v)-1] ^= 1
			return d.Bucket([]byte("a")).Put([]byte("1"), v)
		}},
		{"another version", func(d *bbolt.Bucket) error {
			v := bytes.Clone(d.Bucket([]byte("a")).Get([]byte("1")))
			v[0]++
			return d.Bucket([]byte("a")).Put([]byte("1"), v)
		}},
		{"nothing", func(d *bbolt.Bucket) error { return d.Bucket([]byte("a")).Put([]byte("1"), nil) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			b := mustOpen(t, dir)
			mustPut(t, b, "a", "1", "x")
			mustPut(t, b, "a", "2", "y")
			mustPut(t, b, "b", "1", "z")
			b.Close()
			raw(t, dir, func(tx *bbolt.Tx) error { return c.change(tx.Bucket(dataBucket)) })
			b = mustOpen(t, dir)
			err := b.View(func(tx Tx) error { _, err := tx.Get("a", "1"); return err })
			wantError(t, "Get", err, ErrCorrupt, filepath.Join(dir, stateFile), `bucket "a", key "1"`, "backup")
			err = b.View(func(tx Tx) error { return tx.Each("a", func(string, []byte) error { return nil }) })
			wantError(t, "Each", err, ErrCorrupt, `key "1"`)
			wantValue(t, b, "a", "2", "y")
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	truncate := func(n int64) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, stateFile), n); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name   string
		breaks func(t *testing.T, dir string)
		kind   error
		says   []string
	}{
		{"key lost", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, sealFile)) }, ErrCorrupt, []string{"seal.key is missing", "restore", "state.db"}},
		{"key of rights 0640", func(t *testing.T, dir string) { os.Chmod(filepath.Join(dir, sealFile), 0o640) }, nil, []string{"rights 0640", "chmod 600"}},
		{"key too short", func(t *testing.T, dir string) { os.Truncate(filepath.Join(dir, sealFile), 31) }, ErrCorrupt, []string{"31 octets, want 32"}},
		{"key of another store", func(t *testing.T, dir string) {
			os.WriteFile(filepath.Join(dir, sealFile), make([]byte, 32), 0o600)
		}, ErrCorrupt, []string{"seal.key is not the key"}},
		{"newer", func(t *testing.T, dir string) {
			raw(t, dir, func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Put(formatKey, []byte("2")) })
		}, ErrNewer, []string{"format 2", "up to 1", "newer tunneld"}},
		{"newer without its key", func(t *testing.T, dir string) {
			raw(t, dir, func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Put(formatKey, []byte("9")) })
			os.Remove(filepath.Join(dir, sealFile))
		}, ErrNewer, []string{"format 9"}},
		{"no format", func(t *testing.T, dir string) {
			raw(t, dir, func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Delete(formatKey) })
		}, ErrCorrupt, []string{`format ""`}},
		{"somebody else's bbolt file", func(t *testing.T, dir string) {
			raw(t, dir, func(tx *bbolt.Tx) error {
				_, err := tx.CreateBucket([]byte("theirs"))
				return errors.Join(err, tx.DeleteBucket(metaBucket))
			})
		}, ErrCorrupt, []string{"no state of tunneld"}},
		{"no data", func(t *testing.T, dir string) {
			raw(t, dir, func(tx *bbolt.Tx) error { return tx.DeleteBucket(dataBucket) })
		}, ErrCorrupt, []string{`no bucket "data"`}},
		{"not bbolt", func(t *testing.T, dir string) {
			os.WriteFile(filepath.Join(dir, stateFile), bytes.Repeat([]byte("text\n"), 10000), 0o600)
		}, ErrCorrupt, []string{"state.db", "restore"}},
		{"a few octets", truncate(100), ErrCorrupt, []string{"state.db"}},
		{"cut in the middle", truncate(5 * 4096), ErrCorrupt, []string{"state.db", "restore"}},
		{"last page cut", func(t *testing.T, dir string) { cutLastPage(t, dir) }, ErrCorrupt, []string{"cut short"}},
		{"pages of zeros", func(t *testing.T, dir string) { zeroPages(t, dir) }, ErrCorrupt, []string{"state.db", "restore"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			b := mustOpen(t, dir)
			fill(t, b)
			b.Close()
			c.breaks(t, dir)
			before := read(t, dir)
			wantError(t, "Open", openError(dir), c.kind, append(c.says, dir)...)
			wantError(t, "Open again", openError(dir), c.kind, c.says...) // not ErrLocked
			if read(t, dir) != before {
				t.Errorf("Open changed the files")
			}
		})
	}
}

// read joins names and content of all files.
func read(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		b, rerr := os.ReadFile(filepath.Join(dir, e.Name()))
		err = errors.Join(err, rerr)
		fmt.Fprintf(&out, "%s %d %s\n", e.Name(), len(b), b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// fill makes a tree of more than one page.
func fill(t *testing.T, b *Bolt) {
	t.Helper()
	if err := b.Update(func(tx Tx) error {
		for i := range 60 {
			if err := tx.Put("a", fmt.Sprint(i), []byte(strings.Repeat("x", 500))); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// cutLastPage makes the file one page shorter than the tree says.
func cutLastPage(t *testing.T, dir string) {
	t.Helper()
	var used int64
	raw(t, dir, func(tx *bbolt.Tx) error { used = tx.Size(); return nil })
	raw(t, dir, func(tx *bbolt.Tx) error { used = max(used, tx.Size()); return nil })
	if err := os.Truncate(filepath.Join(dir, stateFile), used-int64(os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
}

func zeroPages(t *testing.T, dir string) {
	f, err := os.OpenFile(filepath.Join(dir, stateFile), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := int64(os.Getpagesize())
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, info.Size()-2*page), 2*page); err != nil { // all but the two meta pages
		t.Fatal(err)
	}
}

// Whatever is damaged: an error or the right value, never a panic, a hang or a
// wrong value.
func TestDamagedAnywhere(t *testing.T) {
	dir := t.TempDir()
	b := mustOpen(t, dir)
	fill(t, b)
	b.Close()
	path := filepath.Join(dir, stateFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		damaged := bytes.Clone(whole)
		at := rnd.IntN(len(damaged))
		for i := at; i < min(at+1+rnd.IntN(64), len(damaged)); i++ {
			damaged[i] = byte(rnd.Uint32())
		}
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		useDamaged(t, dir, at)
	}
}

func useDamaged(t *testing.T, dir string, at int) {
	b, err := Open(dir)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewer) {
			t.Errorf("octet %d: Open = %v, want ErrCorrupt", at, err)
		}
		return
	}
	defer b.Close()
	err = b.View(func(tx Tx) error {
		return tx.Each("a", func(key string, value []byte) error {
			if string(value) != strings.Repeat("x", 500) {
				t.Errorf("octet %d: %q = %q", at, key, value)
			}
			return nil
		})
	})
	if err != nil && !errors.Is(err, ErrCorrupt) {
		t.Errorf("octet %d: Each = %v, want ErrCorrupt", at, err)
	}
	if err := put(b, "a", "x", "y"); err != nil && !errors.Is(err, ErrCorrupt) {
		t.Errorf("octet %d: Put = %v, want ErrCorrupt", at, err)
	}
}

// A start that was cut between any two steps goes on at the next.
func TestInterruptedFirstStart(t *testing.T) {
	for _, c := range []struct {
		name string
		left func(dir string) error
	}{
		{"empty state.db", func(dir string) error { return os.WriteFile(filepath.Join(dir, stateFile), nil, 0o600) }},
		{"no key", func(dir string) error {
			db, err := bbolt.Open(filepath.Join(dir, stateFile), 0o600, nil)
			return errors.Join(err, db.Close())
		}},
		{"half a key", func(dir string) error { return os.WriteFile(filepath.Join(dir, sealFile+".new"), []byte("1"), 0o600) }},
		{"key alone", func(dir string) error {
			_, err := makeSealKey(filepath.Join(dir, sealFile))
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := c.left(dir); err != nil {
				t.Fatal(err)
			}
			b := mustOpen(t, dir)
			mustPut(t, b, "a", "1", "x")
			b.Close()
			wantValue(t, mustOpen(t, dir), "a", "1", "x")
		})
	}
}

// As root, rights stop nobody; the thread gives up its file system user.
func TestDirectoryNotWritable(t *testing.T) {
	parent := t.TempDir()
	for p := parent; p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	there := filepath.Join(parent, "there")
	if err := os.Mkdir(there, 0o555); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(parent, 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(parent, 0o755) })
	for _, dir := range []string{there, filepath.Join(parent, "missing")} {
		err := asNobody(t, func() error { return openError(dir) })
		wantError(t, "Open("+dir+")", err, os.ErrPermission, dir, "state_dir")
	}
	file := filepath.Join(there, "..", "..", filepath.Base(t.TempDir())+"-file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, "Open of a file", openError(file), nil, file, "state_dir")
}

func asNobody(t *testing.T, fn func() error) (err error) {
	if os.Geteuid() != 0 {
		return fn()
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err = unix.Setfsuid(65534); err == nil {
			err = fn()
		}
	})
	wg.Wait()
	return err
}

// A full disk: the kernel refuses to let the file grow.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	b := mustOpen(t, dir)
	mustPut(t, b, "a", "1", "x")
	info, err := os.Stat(b.path)
	if err != nil {
		t.Fatal(err)
	}
	big := string(make([]byte, 1<<20))
	full := func(fn func()) {
		signal.Ignore(syscall.SIGXFSZ)
		defer signal.Reset(syscall.SIGXFSZ)
		var old unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(info.Size()), Max: old.Max}); err != nil {
			t.Fatal(err)
		}
		defer unix.Setrlimit(unix.RLIMIT_FSIZE, &old)
		fn()
	}
	full(func() {
		for range 3 {
			wantError(t, "Put on a full disk", put(b, "a", "2", big), nil, b.path, "nothing was stored", syscall.EFBIG.Error())
		}
		wantValue(t, b, "a", "1", "x")
		mustPut(t, b, "a", "1", "small still fits")
	})
	mustPut(t, b, "a", "3", big)
	b.Close()
	b = mustOpen(t, dir)
	wantValue(t, b, "a", "1", "small still fits")
	wantValue(t, b, "a", "3", big)
	if err := b.View(func(tx Tx) error { _, err := tx.Get("a", "2"); return err }); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get(what was refused) = %v, want ErrNotFound", err)
	}
}

func TestMigrations(t *testing.T) {
	dir := t.TempDir()
	b := mustOpen(t, dir)
	mustPut(t, b, "a", "1", "x")
	b.Close()
	add := func(suffix string) migration {
		return func(tx Tx) error {
			v, err := tx.Get("a", "1")
			return errors.Join(err, tx.Put("a", "1", append(v, suffix...)))
		}
	}
	bad := errors.New("a reason")
	if _, err := open(dir, []migration{add("lost"), func(Tx) error { return bad }}); !errors.Is(err, bad) || !strings.Contains(err.Error(), "format 2 to 3") {
		t.Errorf("a migration that fails: open = %v, want %v at format 2 to 3", err, bad)
	}
	for range 2 { // the second time there is nothing to do
		b, err := open(dir, []migration{add(" two"), add(" three")})
		if err != nil {
			t.Fatalf("open = %v, want nil", err)
		}
		wantValue(t, b, "a", "1", "x two three")
		b.Close()
	}
	wantError(t, "Open by the older version", openError(dir), ErrNewer, "format 3", "up to 1")
}
