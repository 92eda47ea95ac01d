package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The harness shares two cores with what it measures, so what it needs for a
// packet limits the tunnel. Hence datagrams are moved many a system call, and
// whoever waits does so in the system call.

const (
	// burst is how many datagrams a system call moves.
	burst = 64
	// roomy is the receiver's buffer: none of the packets that the tunnel
	// delivered is to be lost behind it.
	roomy = 4 << 20
	// glance is how often a receiver without packets looks whether it is over.
	glance = 50 * time.Millisecond
)

// header is struct mmsghdr of sendmmsg(2) and recvmmsg(2).
type header struct {
	unix.Msghdr
	_ uint32 // how many octets; nobody asks
}

// headers is so many messages with one payload in common: what is in it is
// nobody's concern.
type headers struct {
	list   [burst]header
	vector unix.Iovec
}

func newHeaders(payload []byte) *headers {
	h := new(headers)
	h.vector.Base = &payload[0]
	h.vector.SetLen(len(payload))
	for i := range h.list {
		h.list[i].Iov = &h.vector
		h.list[i].SetIovlen(1)
	}
	return h
}

// move makes the system call for n messages, and returns how many there were.
func (h *headers) move(call uintptr, fd, n, flags int) (int, error) {
	moved, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&h.list)), uintptr(n), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(moved), nil
}

// A stream is UDP packets from the left host to the right one.
type stream struct {
	in, out  int // sockets
	packets  *headers
	received atomic.Int64
	closed   atomic.Bool
	counted  chan struct{} // closed when nobody counts any more
}

// stream opens the sockets of packets with so many octets of payload, and counts
// what arrives.
func (p *pair) stream(address string, size int) (*stream, error) {
	to, err := netip.ParseAddr(address)
	if err != nil {
		return nil, err
	}
	in, err := openSocket(p.right, unix.SOCK_DGRAM, unix.IPPROTO_UDP)
	if err != nil {
		return nil, err
	}
	out, err := openSocket(p.left, unix.SOCK_DGRAM, unix.IPPROTO_UDP)
	if err != nil {
		unix.Close(in)
		return nil, err
	}
	err = errors.Join(unix.Bind(in, &unix.SockaddrInet4{Port: floodPort}), waitAtMost(in, glance),
		unix.SetsockoptInt(in, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, roomy),
		unix.Connect(out, &unix.SockaddrInet4{Port: floodPort, Addr: to.As4()}))
	if err != nil {
		unix.Close(in)
		unix.Close(out)
		return nil, fmt.Errorf("stream to %s: %w", address, err)
	}
	s := &stream{in: in, out: out, packets: newHeaders(make([]byte, size)), counted: make(chan struct{})}
	go s.count(newHeaders(make([]byte, size)))
	return s, nil
}

// count counts until close.
func (s *stream) count(h *headers) {
	defer close(s.counted)
	for !s.closed.Load() {
		n, err := h.move(unix.SYS_RECVMMSG, s.in, burst, unix.MSG_WAITFORONE)
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return
		}
		s.received.Add(int64(n))
	}
}

func (s *stream) close() {
	s.closed.Store(true)
	<-s.counted
	unix.Close(s.in)
	unix.Close(s.out)
}

// send sends n packets, at most burst. What a full queue drops is dropped.
func (s *stream) send(n int) {
	for n > 0 {
		sent, err := s.packets.move(unix.SYS_SENDMMSG, s.out, n, 0)
		if err != nil {
			sent = 1
		}
		n -= sent
	}
}

// openSocket opens an IPv4 socket on a host. Reads and writes wait.
func openSocket(h interface{ Do(func() error) error }, kind, protocol int) (fd int, err error) {
	err = h.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, protocol)
		return os.NewSyscallError("socket", err)
	})
	return fd, err
}

// waitAtMost bounds how long a read from fd waits.
func waitAtMost(fd int, d time.Duration) error {
	tv := unix.NsecToTimeval(int64(d))
	return os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
}
