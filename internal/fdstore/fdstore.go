// Package fdstore speaks to systemd's store of file descriptors: what a service
// has put there under a name is given to its next process, however the last
// one ended (sd_pid_notify_with_fds(3), sd_listen_fds_with_names(3)).
package fdstore

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// firstFD is where the descriptors of a service begin.
const firstFD = 3

// A File is a descriptor that was given to this process.
type File struct {
	Name string
	FD   int
}

// Given returns the descriptors that were given to the process pid, by what its
// environment says. They are this process's own; nobody else closes them.
func Given(env func(string) string, pid int) ([]File, error) {
	if env("LISTEN_PID") != strconv.Itoa(pid) { // for somebody else, who left it to us
		return nil, nil
	}
	n, err := strconv.Atoi(env("LISTEN_FDS"))
	if err != nil || n < 0 {
		return nil, fmt.Errorf("LISTEN_FDS is %q, want a number", env("LISTEN_FDS"))
	}
	names := strings.Split(env("LISTEN_FDNAMES"), ":")
	files := make([]File, n)
	for i := range files {
		files[i] = File{Name: "unknown", FD: firstFD + i}
		if i < len(names) && names[i] != "" {
			files[i].Name = names[i]
		}
		unix.CloseOnExec(files[i].FD)
	}
	return files, nil
}

// A Store is the service manager's. Its methods may be called from any
// goroutine.
type Store struct{ to unix.Sockaddr }

// Open finds the store of this service; nil if it has none. FDSTORE says how
// much room there is; systemd sets it from version 254 on, before that the unit
// has to.
func Open(env func(string) string) *Store {
	if room, err := strconv.Atoi(env("FDSTORE")); err != nil || room <= 0 {
		return nil
	}
	path := env("NOTIFY_SOCKET")
	if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@") { // "@": abstract, as x/sys writes it too
		return nil
	}
	return &Store{&unix.SockaddrUnix{Name: path}}
}

// Keep has the store hold copies of the descriptors under one name, besides
// those that it has already. It does not say whether it did: its room is the
// unit's FileDescriptorStoreMax=.
func (s *Store) Keep(name string, fds ...int) error {
	// FDPOLL=0: not dropped because the other end has hung up.
	return s.send("FDSTORE=1\nFDNAME="+name+"\nFDPOLL=0", fds)
}

// Forget has the store close what it holds under a name.
func (s *Store) Forget(name string) error { return s.send("FDSTOREREMOVE=1\nFDNAME="+name, nil) }

func (s *Store) send(message string, fds []int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err = unix.Sendmsg(fd, []byte(message), rights, s.to, 0)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("service manager: %w", err)
	}
	return nil
}
