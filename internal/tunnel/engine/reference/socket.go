package reference

import (
	"net"
	"sync"
	"syscall"
	"time"

	"tunneld/internal/tunnel/engine/udp"
)

// past is a deadline that interrupts a blocked read.
var past = time.Unix(1, 0)

// A socket is one UDP socket of the engine. Any goroutine may send; who holds
// the token may receive.
type socket struct {
	udp.Socket
	conn    *net.UDPConn
	raw     syscall.RawConn
	token   chan struct{} // capacity 1: in it while nobody reads
	writers sync.Pool     // of *writer
}

// newSocket takes over a bound UDP socket.
func newSocket(c *net.UDPConn, mark uint32) (*socket, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{Socket: udp.Socket{Local: udp.LocalAddr(c)}, conn: c, raw: raw, token: make(chan struct{}, 1)}
	s.token <- struct{}{}
	s.writers.New = func() any { return newWriter() }
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = s.Prepare(int(fd), mark, true) }); err != nil {
		return nil, err
	}
	return s, failed
}

// interrupt makes whoever reads from the socket look around.
func (s *socket) interrupt() { _ = s.conn.SetReadDeadline(past) }
