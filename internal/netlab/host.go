package netlab

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrClosed is returned by the methods of a host whose laboratory is closed.
var ErrClosed = errors.New("netlab: closed")

// Host is a network namespace and what runs in it. Methods may be called from
// any goroutine.
type Host struct {
	lab  *Lab
	name string
	ns   int             // descriptor of the namespace
	nl   *netlink.Handle // its sockets live in the namespace

	// work is done by the keeper: a goroutine on a thread of its own that
	// lives as long as the host. Processes start from it, so that the kernel
	// kills them when it ends (PR_SET_PDEATHSIG counts the thread).
	work  chan func()
	quit  chan struct{} // closed to end it
	ended chan struct{} // closed when it has

	// mu guards everything below.
	mu     sync.Mutex
	nat    *NAT
	closed bool
}

// Host makes a host: an empty namespace with lo up, in which packets are not
// forwarded.
func (l *Lab) Host(name string) (*Host, error) {
	h := &Host{lab: l, name: name, ns: -1, work: make(chan func()), quit: make(chan struct{}), ended: make(chan struct{})}
	ready := make(chan error)
	onOwnThread(func() { h.keep(ready) })
	if err := <-ready; err != nil {
		<-h.ended
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	if err := h.open(); err != nil {
		h.close()
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts = append(l.hosts, h)
	return h, nil
}

// onOwnThread runs f in a goroutine on a thread that ends with it. That is
// never the process's main thread, which outlives its goroutine and would
// show f's namespace as the process's own.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return // without unlocking: the thread ends too
		}
		defer runtime.UnlockOSThread()
		taken := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(taken)
			f()
		}()
		<-taken
	}()
}

// keep holds the thread and the namespace.
func (h *Host) keep(ready chan<- error) {
	defer close(h.ended)
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err != nil {
		ready <- fmt.Errorf("new network namespace: %w", err)
		return
	}
	h.ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	ready <- err
	if err != nil {
		return
	}
	for {
		select {
		case f := <-h.work:
			f()
		case <-h.quit:
			return
		}
	}
}

func (h *Host) open() (err error) {
	if h.nl, err = netlink.NewHandleAt(netns.NsHandle(h.ns)); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	lo, err := h.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := h.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	// A namespace inherits some settings from the machine; tests must not.
	for key, value := range map[string]string{
		"net.ipv4.ip_forward":                "0",
		"net.ipv4.conf.all.rp_filter":        "0",
		"net.ipv4.conf.default.rp_filter":    "2", // as systemd sets it
		"net.ipv6.conf.all.forwarding":       "0",
		"net.ipv6.conf.all.disable_ipv6":     "0",
		"net.ipv6.conf.default.disable_ipv6": "0",
	} {
		if err := h.Sysctl(key, value); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) close() {
	h.mu.Lock()
	closed := h.closed
	h.closed = true
	h.mu.Unlock()
	if closed {
		return
	}
	close(h.quit)
	<-h.ended
	if h.nl != nil {
		h.nl.Close()
	}
	unix.Close(h.ns)
}

// Name of the host.
func (h *Host) Name() string { return h.name }

// Do runs f on a thread in the host's namespace: sockets it opens belong to
// the host for good. f must not start a goroutine for that. Calls do not wait
// for each other.
func (h *Host) Do(f func() error) error {
	if h.isClosed() {
		return fmt.Errorf("host %s: %w", h.name, ErrClosed)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("host %s: own namespace: %w", h.name, err)
	}
	defer unix.Close(home)
	if err := unix.Setns(h.ns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("host %s: enter its namespace: %w", h.name, err)
	}
	defer func() { // also when f ends the goroutine, as a failing test does
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("netlab: thread cannot leave the namespace of host %s: %v", h.name, err))
		}
	}()
	return f()
}

func (h *Host) isClosed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}

// onKeeper runs f on the keeper's thread.
func (h *Host) onKeeper(f func() error) (err error) {
	done := make(chan struct{})
	task := func() {
		defer close(done)
		err = f()
	}
	select {
	case h.work <- task:
	case <-h.ended:
		return fmt.Errorf("host %s: %w", h.name, ErrClosed)
	}
	<-done
	return err
}

// Sysctl sets a value below /proc/sys/net, named with dots or slashes.
func (h *Host) Sysctl(key, value string) error {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	return h.Do(func() error {
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
			return fmt.Errorf("host %s: set %s to %q: %w", h.name, key, value, err)
		}
		return nil
	})
}

// Forward makes the host a router of both families, or no more.
func (h *Host) Forward(on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	return errors.Join(h.Sysctl("net.ipv4.ip_forward", value), h.Sysctl("net.ipv6.conf.all.forwarding", value))
}
