package carrier

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

// maxFrame is how much one Write puts into one frame: header and body fill a
// TLS record (RFC 8446, section 5.1: 2^14 octets).
const maxFrame = 1<<14 - frameHeaderLen

// muxWriteTimeout is how long yamux waits for a frame to be taken; then the
// transport is over. yamux's write deadlines do not bound this wait.
const muxWriteTimeout = 5 * time.Second

// muxConfig is yamux with what we do ourselves switched off: HELLO is the
// keepalive, and the state machine has to see it.
func muxConfig() *yamux.Config {
	return &yamux.Config{
		AcceptBacklog:          8,
		EnableKeepAlive:        false,
		KeepAliveInterval:      time.Hour, // unused, but must not be zero
		ConnectionWriteTimeout: muxWriteTimeout,
		MaxStreamWindowSize:    256 << 10, // the smallest yamux knows
		StreamOpenTimeout:      10 * time.Second,
		StreamCloseTimeout:     5 * time.Second,
		Logger:                 muteLogger{},
	}
}

// muteLogger drops what yamux says: peers can cause it without bound, and what
// ended a transport is in the error that its reader gets.
type muteLogger struct{}

func (muteLogger) Print(...any)          {}
func (muteLogger) Printf(string, ...any) {}
func (muteLogger) Println(...any)        {}

// conn is the control stream of one transport.
//
// SetWriteDeadline bounds only the wait for a peer that does not read; a write
// the network does not take ends the transport after 5 s.
type conn struct {
	*yamux.Stream
	mux   *yamux.Session
	link  *link
	state tls.ConnectionState
	ended <-chan struct{} // closed when the goroutine that refuses streams is gone

	closed atomic.Bool
	once   sync.Once
}

var _ Conn = (*conn)(nil)

func (c *conn) Peer() *x509.Certificate { return c.state.PeerCertificates[0] }

func (c *conn) Export(label string, context []byte, n int) ([]byte, error) {
	return export(&c.state, label, context, n)
}

func (c *conn) Since() time.Time { return c.link.sock.since }

func (c *conn) LocalAddr() net.Addr  { return c.link.LocalAddr() }
func (c *conn) RemoteAddr() net.Addr { return c.link.RemoteAddr() }

// Read returns io.EOF when the peer closed the transport, net.ErrClosed after
// Close, and otherwise what broke it. ErrOurCertificate shows here first: in
// TLS 1.3 a client is done before the server has looked at its certificate.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Stream.Read(b)
	return n, c.explain(err)
}

// Write returns when the kernel has b. After an error the transport is over,
// unless the error is os.ErrDeadlineExceeded.
func (c *conn) Write(b []byte) (int, error) {
	var done int
	for done < len(b) {
		n, err := c.Stream.Write(b[done:min(len(b), done+maxFrame)])
		done += n
		if err != nil {
			if err = c.explain(err); !errors.Is(err, os.ErrDeadlineExceeded) {
				// The frame may still be in yamux's queue; never go on after it.
				c.link.sock.Close()
			}
			return done, err
		}
	}
	if c.closed.Load() { // what Close overtook went nowhere
		return 0, net.ErrClosed
	}
	return done, nil
}

// explain puts what happened to the transport in place of yamux's view of it.
func (c *conn) explain(err error) error {
	if err == nil {
		return nil
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return os.ErrDeadlineExceeded
	}
	if c.closed.Load() {
		return net.ErrClosed
	}
	cause := c.link.cause()
	if ours, ok := refusal(cause); ok {
		return ours
	}
	if broken(cause) {
		return fmt.Errorf("transport to %v broke: %w", c.RemoteAddr(), cause)
	}
	if cause != nil {
		return io.EOF
	}
	return err
}

// Close sends what was written, tells the peer, and ends everything, within
// 250 ms or so even if nobody answers. It may be called from any goroutine and
// more than once; every call returns after the end.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.closed.Store(true)
		c.link.finish()
		c.mux.Close()
		<-c.ended
	})
	return nil
}
