package native

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// pauseMillis is how long a thread waits after an error.
	pauseMillis = 50
	// lingerTime is how long a thread waits as one that the runtime takes to be
	// busy, before it waits as one that may be gone for long.
	lingerTime = 5 * time.Millisecond
)

// A bell wakes every thread that waits with it, for good: once rung it stays
// so.
type bell struct{ fd int }

func newBell() (*bell, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &bell{fd}, nil
}

func (b *bell) ring() {
	one := [8]byte{1, 0, 0, 0, 0, 0, 0, 1} // in either byte order not zero
	_, _ = unix.Write(b.fd, one[:])
}

func (b *bell) close() { unix.Close(b.fd) }

// A waiter lets a thread wait in poll(2) until a descriptor is readable or a
// bell rings. That costs one system call more than to block in the read, but
// can be ended without a signal and without closing a descriptor that others
// share; the runtime's poller would cost a hand-over between threads.
type waiter struct{ fds [2]unix.PollFd }

func newWaiter(fd int, b *bell) *waiter {
	return &waiter{[2]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(b.fd), Events: unix.POLLIN}}}
}

// wait returns false when the bell has rung.
//
// The runtime takes the processor of a thread that waits in a system call, and
// wakes its monitor when the thread comes back and wants one: that is a futex
// call and, for the next milliseconds, a thread that wakes every 20 µs. So the
// first lingerTime, in which the next packet of a stream mostly comes, is spent
// in a call that the runtime does not know of.
func (w *waiter) wait() bool {
	if w.linger(lingerTime) {
		return w.fds[1].Revents == 0
	}
	for {
		_, err := unix.Poll(w.fds[:], -1)
		if err == nil || !errors.Is(err, unix.EINTR) {
			return w.fds[1].Revents == 0
		}
	}
}

// linger waits for so long and reports whether something has come. A runtime
// that wants to stop the world, or this thread after it has run for long, sends
// it a signal, which ends the wait.
func (w *waiter) linger(d time.Duration) bool {
	t := unix.NsecToTimespec(int64(d))
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&w.fds)), uintptr(len(w.fds)), uintptr(unsafe.Pointer(&t)), 0, 0, 0)
	return errno == 0 && n > 0
}

// rung reports whether the bell has rung, for a thread that has no time to wait.
func (w *waiter) rung() bool {
	n, err := unix.Poll(w.fds[1:], 0)
	return n > 0 && err == nil
}

// pause waits a little, after an error that cannot be explained. It returns
// false when the bell has rung.
func (w *waiter) pause() bool {
	n, err := unix.Poll(w.fds[1:], pauseMillis)
	return n == 0 || err != nil
}
