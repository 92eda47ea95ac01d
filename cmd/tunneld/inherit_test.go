package main

import (
	"log/slog"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"tunneld/internal/fdstore"
)

// leave gives what a process with that listener leaves.
func leave(t *testing.T, l net.Listener) *inheritance {
	t.Helper()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var left int
	var failed error
	if err := raw.Control(func(fd uintptr) { left, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return &inheritance{given: []fdstore.File{{Name: listenerName, FD: left}}, log: slog.New(slog.DiscardHandler)}
}

// TestListenerGoesOn: who dialled while no process was there is served by the
// next one, if that listens where the last one did.
func TestListenerGoesOn(t *testing.T) {
	first, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := first.Addr().String()
	h := leave(t, first)
	first.Close() // the process ends
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatalf("while no process is there: %v", err)
	}
	defer c.Close()
	l, err := h.listen(address)
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	accepted.Close()

	elsewhere := leave(t, l)
	l.Close()
	other, err := elsewhere.listen("127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if other.Addr().String() == address {
		t.Errorf("a daemon that is to listen on 127.0.0.2 listens on %s", address)
	}
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Errorf("somebody still listens on %s", address)
	}
}

func TestListensOn(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for address, want := range map[string]bool{":0": true, ":" + port: true, "[::]:" + port: true, "127.0.0.1:" + port: false, ":1": false, "nonsense": false} {
		if got := listensOn(l, address); got != want {
			t.Errorf("listensOn(%v, %q) = %v, want %v", l.Addr(), address, got, want)
		}
	}
}

// TestNothingIsLeftWithoutAStore: what was given is closed.
func TestNothingIsLeftWithoutAStore(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := leave(t, l)
	l.Close()
	h.refuse()
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("somebody still listens")
	}
	if len(h.engines()) != 0 || h.store != nil {
		t.Error("something is left")
	}
}
