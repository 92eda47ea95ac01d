package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tunneld/internal/control/wire"
)

// addTrace opens a trace as a daemon does and writes one message.
func addTrace(t *testing.T, path string) error {
	t.Helper()
	f, err := openTrace(path)
	if err != nil {
		return err
	}
	defer f.Close()
	trace, err := wire.NewTrace(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := (&wire.Packet{Message: &wire.Hello{}}).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := trace.Write(wire.Path{}, true, time.Unix(0, 0), b); err != nil {
		t.Fatal(err)
	}
	return nil
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A new file is its user's alone; one that is there is gone on with.
func TestTraceFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.pcapng")
	defer syscall.Umask(syscall.Umask(0))
	var once []byte
	for n := 1; n <= 3; n++ {
		if err := addTrace(t, path); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("rights = %v, %v; want 0600", info.Mode(), err)
		}
		if once == nil {
			once = read(t, path)
		}
		if got := read(t, path); !bytes.Equal(got, bytes.Repeat(once, n)) {
			t.Errorf("after %d daemons the file has %d octets, want %d times %d", n, len(got), n, len(once))
		}
		if err := os.Chmod(path, 0o666); err != nil { // somebody opens it to all; the next daemon closes it
			t.Fatal(err)
		}
	}
}

func TestTraceFileRefused(t *testing.T) {
	dir := t.TempDir()
	whole := filepath.Join(dir, "whole")
	if err := addTrace(t, whole); err != nil {
		t.Fatal(err)
	}
	good := read(t, whole)
	for _, tt := range []struct {
		name, want string
		make       func(path string) error
	}{
		{"a directory", "is a directory", func(path string) error { return os.Mkdir(path, 0o700) }},
		{"a link", "symbolic links", func(path string) error { return os.Symlink(whole, path) }},
		{"a pipe", "no regular file", func(path string) error { return unix.Mkfifo(path, 0o600) }},
		{"another file", "no trace", func(path string) error { return os.WriteFile(path, []byte("[node]\nname = \"hq\"\n"), 0o600) }},
		{"a few octets", "no trace", func(path string) error { return os.WriteFile(path, good[:3], 0o600) }},
		{"a header alone", "no trace", func(path string) error { return os.WriteFile(path, good[:8], 0o600) }},
		{"a torn block", "breaks off", func(path string) error { return os.WriteFile(path, good[:len(good)-5], 0o600) }},
		{"a length beyond the file", "breaks off", func(path string) error {
			return os.WriteFile(path, append(bytes.Clone(good), 0xff, 0xff, 0xff, 0x7f), 0o600)
		}},
		{"a length of nothing", "breaks off", func(path string) error {
			return os.WriteFile(path, append(bytes.Clone(good), 0, 0, 0, 0), 0o600)
		}},
		{"a length of itself", "breaks off", func(path string) error {
			return os.WriteFile(path, append(bytes.Clone(good), 8, 0, 0, 0), 0o600)
		}},
	} {
		path := filepath.Join(dir, tt.name)
		if err := tt.make(path); err != nil {
			t.Fatal(err)
		}
		before, _ := os.ReadFile(whole)
		err := addTrace(t, path)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "--trace") || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want --trace, its name and %q", tt.name, err, tt.want)
		}
		if after, _ := os.ReadFile(whole); !bytes.Equal(before, after) {
			t.Errorf("%s: something was written nevertheless", tt.name)
		}
	}
	if err := addTrace(t, filepath.Join(dir, "nowhere", "t.pcapng")); err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("in no directory: %v", err)
	}
}

func TestTraceFileOfAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, who may give files away")
	}
	path := filepath.Join(t.TempDir(), "t.pcapng")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 1, 1); err != nil {
		t.Fatal(err)
	}
	if err := addTrace(t, path); err == nil || !strings.Contains(err.Error(), "another user") {
		t.Errorf("a file of another user: %v, want it refused", err)
	}
}

// A block for which there is no room leaves nothing behind, so that a later
// daemon can go on. A limit of the process stands in for a full disk.
func TestTraceFileFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.pcapng")
	if err := addTrace(t, path); err != nil {
		t.Fatal(err)
	}
	before := read(t, path)
	f, err := openTrace(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(len(before) + 10), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(make([]byte, 100))
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err == nil || err == io.ErrShortWrite {
		t.Errorf("Write into a full file = %v, want the reason", err)
	}
	if !bytes.Equal(read(t, path), before) {
		t.Errorf("half a block was left behind")
	}
	if err := addTrace(t, path); err != nil {
		t.Errorf("with room again: %v", err)
	}
}
