package carrier

import (
	"crypto/tls"
	"sync"
	"time"
)

// enrolConn is a TLS stream without multiplexing.
type enrolConn struct {
	*tls.Conn
	sock  *socket
	state tls.ConnectionState
	once  sync.Once
}

var _ EnrolConn = (*enrolConn)(nil)

func newEnrolConn(t *tls.Conn, s *socket) *enrolConn {
	return &enrolConn{Conn: t, sock: s, state: t.ConnectionState()}
}

func (c *enrolConn) Export(label string, context []byte, n int) ([]byte, error) {
	return export(&c.state, label, context, n)
}

// Close sends what was written, then ends the connection, within 250 ms or so.
func (c *enrolConn) Close() error {
	c.once.Do(func() {
		timer := time.AfterFunc(closeTimeout, func() { c.sock.Close() })
		c.CloseWrite()
		timer.Stop()
		c.sock.drain(closeTimeout)
	})
	return nil
}
