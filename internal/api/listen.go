package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Groups of the host whose members may speak to the daemon. Members of
// AdminGroup need to be in Group as well, since that is the group of the socket.
const (
	Group      = "tunneld"       // may look and use
	AdminGroup = "tunneld-admin" // may administer too
)

// MaxSocketPath is the longest path of a Unix socket in octets: sun_path has
// 108 and the last one ends the string (unix(7)).
const MaxSocketPath = 107

// lockTimeout is how long Listen waits for another daemon that is starting in
// the same directory, or that was killed and is not quite gone: for as long as the
// kernel takes its memory down somebody still listens.
const lockTimeout = 2 * time.Second

// lockRetry is how often it looks again.
const lockRetry = 10 * time.Millisecond

// errLives is the error for a socket behind which somebody listens.
var errLives = errors.New("another daemon is listening there; stop it or choose another path")

// Listen makes the daemon's socket at path: mode 0660 and group [Group] where
// that exists and we may give files to it, else 0600. A missing directory is
// made, 0750 and of the same group. The socket of a daemon that died is
// replaced, that of a living one is an error. Closing the listener removes the
// socket.
func Listen(path string) (net.Listener, error) {
	if err := checkSocketPath(path); err != nil {
		return nil, err
	}
	gid, grouped := lookupGroup(Group)
	dir := filepath.Dir(path)
	if err := makeDir(dir, gid, grouped); err != nil {
		return nil, fmt.Errorf("directory of the socket: %w", err)
	}
	deadline := time.Now().Add(lockTimeout)
	for {
		l, err := listenIn(dir, path, gid, grouped)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, errLives) || time.Now().After(deadline) {
			return nil, fmt.Errorf("socket %s: %w", path, err)
		}
		time.Sleep(lockRetry)
	}
}

// listenIn makes the socket unless somebody listens at path.
func listenIn(dir, path string, gid uint32, grouped bool) (net.Listener, error) {
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	l, err := bind(path)
	if errors.Is(err, unix.EADDRINUSE) {
		if err := removeStale(path); err != nil {
			return nil, err
		}
		l, err = bind(path)
	}
	if err != nil {
		return nil, cause(err)
	}
	if err := setMode(path, gid, grouped); err != nil {
		l.Close()
		return nil, cause(err)
	}
	return l, nil
}

// checkSocketPath refuses what the kernel or package net would misread.
func checkSocketPath(path string) error {
	switch {
	case path == "":
		return errors.New("the path of the socket is empty")
	case path[0] == '@': // package net takes this for an abstract socket, which has no mode
		return fmt.Errorf("socket %s: a path may not begin with @; write ./%s", path, path)
	case len(path) > MaxSocketPath:
		return fmt.Errorf("socket %s: the path has %d octets, a Unix socket may have %d; choose a shorter one",
			path, len(path), MaxSocketPath)
	}
	return nil
}

// bind listens at path. The socket is born with mode 0600: the kernel gives a
// socket file the mode of its descriptor, so there is no moment in which others
// could connect and no umask to change for the whole process.
func bind(path string) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	return lc.Listen(context.Background(), "unix", path)
}

// removeStale removes the socket at path if nobody listens behind it.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return cause(err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("a file that is no socket stands there; remove it or choose another path")
	}
	conn, err := net.DialTimeout("unix", path, lockTimeout)
	switch {
	case err == nil:
		conn.Close()
		return errLives
	case errors.Is(err, unix.ECONNREFUSED):
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("left by a daemon that died: %w", cause(err))
		}
		return nil
	}
	return cause(err) // a full backlog is a sign of life, too
}

// makeDir makes dir if it is missing, for us and the group alone. Directories
// above it are made as usual.
func makeDir(dir string, gid uint32, grouped bool) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o750)
	if errors.Is(err, fs.ErrExist) {
		return nil // its rights are its owner's business
	}
	if err == nil && grouped {
		_, err = giveTo(dir, gid)
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o750) // whatever the umask made of it
}

// setMode lets the members of the group connect, if there is one, and says the
// mode once more where bind had said it already.
func setMode(path string, gid uint32, grouped bool) error {
	mode := fs.FileMode(0o600)
	if grouped {
		given, err := giveTo(path, gid)
		if err != nil {
			return err
		}
		if given {
			mode = 0o660
		}
	}
	return os.Chmod(path, mode)
}

// giveTo gives a file to a group, unless we may not: we are no member of it, or
// it is not mapped into our user namespace. Then the file stays ours alone.
func giveTo(path string, gid uint32) (given bool, err error) {
	err = os.Lchown(path, -1, int(gid))
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	return err == nil, err
}

// lockDir keeps two daemons that start at the same time from replacing each
// other's socket. The lock lies on the directory itself, so nothing is left.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, cause(err)
	}
	deadline := time.Now().Add(lockTimeout)
	for {
		err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			break
		}
		if time.Now().After(deadline) {
			d.Close()
			return nil, fmt.Errorf("%s is locked by another program", dir)
		}
		time.Sleep(lockRetry)
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { d.Close() }, nil
}

// lookupGroup returns the number of a group of this host.
func lookupGroup(name string) (gid uint32, ok bool) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(g.Gid, 10, 32)
	return uint32(n), err == nil
}

// cause is the bare reason of an error of package os or net, for sentences that
// name the path themselves.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
