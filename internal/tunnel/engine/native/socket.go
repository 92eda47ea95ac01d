package native

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine/udp"
)

// maxReceivers bounds the threads that receive of one family.
const maxReceivers = 4

// A socket is one UDP socket of the engine: a descriptor of its own, which no
// poller of the runtime knows. Any thread may send, one receives.
type socket struct {
	udp.Socket
	fd int
}

// newSocket takes over a bound UDP socket, also when it fails.
func newSocket(c *net.UDPConn, mark uint32, offload bool) (*socket, error) {
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{Socket: udp.Socket{Local: udp.LocalAddr(c)}, fd: -1}
	var failed error
	err = raw.Control(func(fd uintptr) {
		// Not File: that would make the descriptor blocking for all who share it.
		s.fd, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("UDP %v: %w", s.Local, err)
	}
	if err := s.Prepare(s.fd, mark, offload); err != nil {
		unix.Close(s.fd)
		return nil, err
	}
	return s, nil
}

// close frees the descriptor. Nobody may use the socket any more.
func (s *socket) close() error { return unix.Close(s.fd) }
