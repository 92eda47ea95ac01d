// Package keeper has a service manager's store of descriptors, for tests
// that end processes and start others which go on.
package keeper

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A Manager keeps what processes store. Its methods may be called from any
// goroutine.
type Manager struct {
	path string
	fd   int
	done chan struct{}

	mu       sync.Mutex // guards everything below
	kept     map[string][]int
	barriers []chan struct{}
}

// New starts a manager with its socket at path. Close ends it.
func New(path string) (*Manager, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	m := &Manager{path: path, fd: fd, done: make(chan struct{}), kept: make(map[string][]int)}
	go m.run()
	return m, nil
}

// Close closes what is kept.
func (m *Manager) Close() error {
	unix.Shutdown(m.fd, unix.SHUT_RDWR)
	<-m.done
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.kept {
		m.forgetLocked(name)
	}
	return unix.Close(m.fd)
}

// run does what processes ask for.
func (m *Manager) run() {
	defer close(m.done)
	b, control := make([]byte, 4096), make([]byte, 4096)
	for {
		n, c, _, _, err := unix.Recvmsg(m.fd, b, control, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		var fds []int
		if messages, err := unix.ParseSocketControlMessage(control[:c]); err == nil && len(messages) > 0 {
			fds, _ = unix.ParseUnixRights(&messages[0])
		}
		m.obey(strings.Split(string(b[:n]), "\n"), fds)
	}
}

const barrier = "BARRIER=1" // our own

func (m *Manager) obey(lines []string, fds []int) {
	name := ""
	for _, line := range lines {
		if value, ok := strings.CutPrefix(line, "FDNAME="); ok {
			name = value
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case slices.Contains(lines, barrier):
		close(m.barriers[0])
		m.barriers = m.barriers[1:]
	case slices.Contains(lines, "FDSTOREREMOVE=1"):
		m.forgetLocked(name)
	default:
		m.kept[name] = append(m.kept[name], fds...)
	}
}

func (m *Manager) forgetLocked(name string) {
	for _, fd := range m.kept[name] {
		unix.Close(fd)
	}
	delete(m.kept, name)
}

// catchUp waits until everything was done that was asked for.
func (m *Manager) catchUp() error {
	done := make(chan struct{})
	m.mu.Lock()
	m.barriers = append(m.barriers, done)
	m.mu.Unlock()
	if err := unix.Sendto(m.fd, []byte(barrier), 0, &unix.SockaddrUnix{Name: m.path}); err != nil {
		return err
	}
	<-done
	return nil
}

// Keep takes a descriptor, as if a process had stored it.
func (m *Manager) Keep(name string, fd int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept[name] = append(m.kept[name], fd)
}

// Forget closes what is kept under a name.
func (m *Manager) Forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgetLocked(name)
}

// Names are those under which something is kept, in order.
func (m *Manager) Names() ([]string, error) {
	if err := m.catchUp(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name := range m.kept {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// Launch is what a process is started with that is to go on: its arguments with
// those that come before them, more environment, and descriptors from 3 on,
// which the caller closes afterwards.
func (m *Manager) Launch(args ...string) (argv, env []string, files []*os.File, err error) {
	if err := m.catchUp(); err != nil {
		return nil, nil, nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name, fds := range m.kept {
		for _, fd := range fds {
			dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return nil, nil, nil, err
			}
			files, names = append(files, os.NewFile(uintptr(dup), name)), append(names, name)
		}
	}
	env = []string{"FDSTORE=64", "NOTIFY_SOCKET=" + m.path, fmt.Sprint("LISTEN_FDS=", len(files)), "LISTEN_FDNAMES=" + strings.Join(names, ":")}
	// The shell becomes the process, and knows which that will be.
	return append([]string{"/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`}, args...), env, files, nil
}
