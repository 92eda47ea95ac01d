package api

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestListenMakesTheDirectory(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077)) // no umask may lock the group out
	dir := filepath.Join(t.TempDir(), "run", "tunneld")
	path := filepath.Join(dir, "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatalf("Listen(%q): %v", path, err)
	}
	defer l.Close()
	want := fs.FileMode(0o600)
	if _, ok := lookupGroup(Group); ok && os.Geteuid() == 0 {
		want = 0o660
	}
	for name, want := range map[string]fs.FileMode{path: fs.ModeSocket | want, dir: fs.ModeDir | 0o750} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("mode of %s = %v, want %v", name, info.Mode(), want)
		}
	}
}

func TestListenLeavesADirectoryAsItIs(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o711 {
		t.Errorf("mode of %s = %v, want 0711 as before", dir, info.Mode())
	}
}

// The socket must never be open to others, not even between bind and chmod.
func TestSocketIsBornPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := bind(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode after bind = %v, want 0600", info.Mode())
	}
}

func TestSetModeWithAGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files to any group")
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := bind(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := setMode(path, testGroup, true); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o660 {
		t.Errorf("mode = %v, want 0660", info.Mode())
	}
}

func TestListenReplacesStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := bind(path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	l, err := Listen(path)
	if err != nil {
		t.Fatalf("Listen over a dead daemon's socket: %v", err)
	}
	l.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close the socket is still there: %v", err)
	}
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	live := filepath.Join(dir, "live")
	l, err := Listen(live)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(dir, strings.Repeat("x", MaxSocketPath-len(dir)))
	for _, tt := range []struct{ name, path, want string }{
		{"live", live, "socket " + live + ": another daemon is listening there; stop it or choose another path"},
		{"no socket", file, "a file that is no socket stands there"},
		{"too long", long, "the path has 108 octets, a Unix socket may have 107"},
		{"empty", "", "the path of the socket is empty"},
		{"abstract", "@tunneld", "a path may not begin with @"},
		{"below a file", filepath.Join(file, "s"), "not a directory"},
		{"below the directory's file", filepath.Join(file, "d", "s"), "not a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := Listen(tt.path)
			if err == nil {
				l.Close()
				t.Fatalf("Listen(%q) worked, want an error", tt.path)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Listen(%q) = %q, want %q in it", tt.path, err, tt.want)
			}
		})
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("a file that is no socket was touched: %v", err)
	}
	if conn, err := net.Dial("unix", live); err != nil {
		t.Errorf("the living daemon lost its socket: %v", err)
	} else {
		conn.Close()
	}
}

// A daemon that was killed listens until the kernel has taken it down.
func TestListenWaitsForOneThatGoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false) // as a kill leaves it
	type made struct {
		l   net.Listener
		err error
	}
	got := make(chan made, 1)
	go func() {
		l, err := Listen(path)
		got <- made{l, err}
	}()
	conn, err := old.Accept() // it has seen that somebody listens
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	old.Close()
	m := <-got
	if m.err != nil {
		t.Fatalf("Listen where somebody goes = %v, want nil", m.err)
	}
	m.l.Close()
}

func TestListenAtTheLongestPath(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, strings.Repeat("x", MaxSocketPath-len(dir)-1))
	l, err := Listen(path)
	if err != nil {
		t.Fatalf("Listen of %d octets: %v", len(path), err)
	}
	l.Close()
}

// Of several daemons that find the same stale socket one gets it, and keeps it.
func TestListenRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := bind(path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	var (
		mu  sync.Mutex
		won []net.Listener
		wg  sync.WaitGroup
	)
	for range 8 {
		wg.Go(func() {
			if l, err := Listen(path); err == nil {
				mu.Lock()
				won = append(won, l)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	defer func() {
		for _, l := range won {
			l.Close()
		}
	}()
	if len(won) != 1 {
		t.Fatalf("%d daemons listen at one path, want 1", len(won))
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("the one that won is not reachable: %v", err)
	} else {
		conn.Close()
	}
}

func TestLockedDirectory(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if l, err := Listen(filepath.Join(dir, "s")); err == nil || !strings.Contains(err.Error(), "locked by another program") {
		if err == nil {
			l.Close()
		}
		t.Errorf("Listen in a locked directory = %v, want an error that says so", err)
	}
}
