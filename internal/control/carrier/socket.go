package carrier

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// writeTimeout bounds how long written octets stay unacknowledged before the
// kernel ends the connection (TCP_USER_TIMEOUT, RFC 5482).
const writeTimeout = 10 * time.Second

var errSetupBytes = errors.New("peer sent too much before it was authenticated")

// socket is the TCP connection under TLS. Until admit it lets in only so many
// octets. Read has one caller at a time, as crypto/tls sees to.
type socket struct {
	net.Conn
	since    time.Time
	left     int64 // octets that may still be read before admit
	admitted atomic.Bool
}

// newSocket prepares nc for control traffic: nothing waits for more to send,
// and writes to a dead peer end.
func newSocket(nc net.Conn, setupBytes int64) *socket {
	if tcp, ok := nc.(*net.TCPConn); ok {
		tcp.SetNoDelay(true)
		if raw, err := tcp.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				// A kernel that does not know it has its own, longer limit.
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(writeTimeout/time.Millisecond))
			})
		}
	}
	return &socket{Conn: nc, since: time.Now(), left: setupBytes}
}

func (s *socket) Read(p []byte) (int, error) {
	if s.admitted.Load() {
		return s.Conn.Read(p)
	}
	if s.left <= 0 {
		return 0, errSetupBytes
	}
	n, err := s.Conn.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	return n, err
}

// admit lifts the limit on octets: the peer is authenticated.
func (s *socket) admit() { s.admitted.Store(true) }

// closeWrite sends our FIN and keeps reading possible.
func (s *socket) closeWrite() {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
}

// drain ends a connection after a last word to the peer: a close with unread
// octets makes the kernel send RST, which can overtake what we said. It takes
// at most d and reads no more than the peer might have sent anyway.
func (s *socket) drain(d time.Duration) {
	s.closeWrite()
	timer := time.AfterFunc(d, func() { s.Close() })
	defer timer.Stop()
	io.Copy(io.Discard, s)
	s.Close()
}

// reset closes nc without any answer and leaves no state behind it.
func reset(nc net.Conn) {
	if tcp, ok := nc.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	nc.Close()
}

// controlFunc adapts [Dialer.Control] to package net.
func controlFunc(f func(fd uintptr) error) func(network, address string, c syscall.RawConn) error {
	if f == nil {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = f(fd) }); cerr != nil {
			return cerr
		}
		return err
	}
}
