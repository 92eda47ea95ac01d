package main

import (
	"log/slog"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"tunneld/internal/event"
	"tunneld/internal/fdstore"
	"tunneld/internal/tunnel/engine/native"
)

// listenerName is the listening TCP socket among the descriptors that outlive
// the process; the others are the engine's.
const listenerName = "tcp"

// An inheritance is what the process before this one left with the service
// manager, and where this one leaves the same.
type inheritance struct {
	store *fdstore.Store // nil: nothing outlives the process
	given []fdstore.File // not taken yet
	log   *slog.Logger
}

// inherit finds out what was left, and whether something can be.
func inherit(env func(string) string, pid int, log *slog.Logger) (*inheritance, error) {
	given, err := fdstore.Given(env, pid)
	if err != nil {
		return nil, err
	}
	h := &inheritance{store: fdstore.Open(env), given: given, log: log}
	if h.store == nil {
		h.refuse()
	}
	return h, nil
}

// refuse closes what was left, has it forgotten, and leaves nothing.
func (h *inheritance) refuse() {
	for _, f := range h.given {
		unix.Close(f.FD)
		h.forget(f.Name)
	}
	h.given, h.store = nil, nil
}

// take hands out what lies under one name, once.
func (h *inheritance) take(want func(name string) bool) (files []fdstore.File) {
	var rest []fdstore.File
	for _, f := range h.given {
		if want(f.Name) {
			files = append(files, f)
		} else {
			rest = append(rest, f)
		}
	}
	h.given = rest
	return files
}

// engines is what the engine left.
func (h *inheritance) engines() (all []native.Descriptor) {
	for _, f := range h.take(func(name string) bool { return name != listenerName }) {
		all = append(all, native.Descriptor(f))
	}
	return all
}

// listen goes on with the listening socket that was left, so that who comes
// while there is no process waits instead of being refused. If it is another
// than address, or there is none, a new one is made and left to the next.
func (h *inheritance) listen(address string) (net.Listener, error) {
	var found net.Listener
	for _, f := range h.take(func(name string) bool { return name == listenerName }) {
		file := os.NewFile(uintptr(f.FD), listenerName)
		l, err := net.FileListener(file) // a duplicate
		file.Close()
		switch {
		case err != nil:
			h.log.Warn("listener not taken over", event.KeyErr, err)
		case found == nil && listensOn(l, address):
			found = l
		default:
			l.Close()
		}
	}
	if found != nil {
		return found, nil
	}
	h.forget(listenerName)
	l, err := net.Listen("tcp", address)
	if err == nil && h.store != nil {
		h.keep(l)
	}
	return l, err
}

// listensOn reports whether l is what listening on address gives.
func listensOn(l net.Listener, address string) bool {
	want, err := net.ResolveTCPAddr("tcp", address)
	have, ok := l.Addr().(*net.TCPAddr)
	if err != nil || !ok || want.Port != 0 && want.Port != have.Port {
		return false
	}
	if want.IP == nil || want.IP.Equal(net.IPv6unspecified) {
		return have.IP.IsUnspecified()
	}
	return want.IP.Equal(have.IP)
}

// keep leaves a listener to the next process. Without it a restart costs a
// refused connection.
func (h *inheritance) keep(l net.Listener) {
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err == nil {
		var kept error
		if err = raw.Control(func(fd uintptr) { kept = h.store.Keep(listenerName, int(fd)) }); err == nil {
			err = kept
		}
	}
	if err != nil {
		h.log.Warn("listener not kept for a restart", event.KeyErr, err)
	}
}

// forget has the store close what it has under a name.
func (h *inheritance) forget(name string) {
	if h.store == nil {
		return
	}
	if err := h.store.Forget(name); err != nil {
		h.log.Warn("descriptors not forgotten", event.KeyErr, err)
	}
}
