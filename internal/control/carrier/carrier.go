// Package carrier carries control connections: TCP, TLS 1.3 with certificates
// on both sides, yamux. It is the only place that imports TLS and yamux for the
// control channel; everybody else sees a net.Conn.
package carrier

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"time"
)

// ALPN names of the two things a gateway speaks.
const (
	ALPNControl = "tunneld/1"
	ALPNEnrol   = "tunneld-enrol/1"
)

// Errors that callers branch on; the cause is wrapped.
var (
	ErrPeerCertificate = errors.New("carrier: peer's certificate refused")
	ErrOurCertificate  = errors.New("carrier: peer refused our certificate")
	ErrUnreachable     = errors.New("carrier: peer is not reachable")
)

// Identity is one end's certificate and whom it believes.
type Identity struct {
	Certificate tls.Certificate
	Roots       *x509.CertPool
	// Verify is called with the verified chain of the peer, leaf first, in
	// every handshake; its error refuses the peer.
	Verify func(chain []*x509.Certificate) error
}

// Conn is one transport of a control connection: the first stream the
// initiator opened. Close ends the stream, the yamux session and the TCP
// connection, promptly, and waits for what they started. Reads and writes end
// when the transport does.
type Conn interface {
	net.Conn
	// Peer is the peer's certificate, verified.
	Peer() *x509.Certificate
	// Since is when the TCP connection was there, before anything was said.
	Since() time.Time
	// Export derives n octets from this transport's TLS secrets (RFC 8446,
	// section 7.5); both ends get the same for the same label and context,
	// and no other transport does.
	Export(label string, context []byte, n int) ([]byte, error)
}

// Dialer reaches gateways.
type Dialer struct {
	Identity Identity
	// Control, if set, sees the socket before it connects, to mark it.
	Control func(fd uintptr) error
	Timeout time.Duration // for everything up to the open stream; 0: 10 s

	now func() time.Time // for tests; nil: time.Now
}

// Limits bound what strangers cost (security: P6). Zero fields get defaults.
type Limits struct {
	HalfOpen   int           // transports before authentication at once; default 256
	PerPrefix  int           // of those from one /32 or /64; default 32
	Enrolments int           // enrolments at once; default 16
	SetupTime  time.Duration // from accept to the first stream; default 10 s
	// SetupBytes is what is read before authentication; default 16 KiB, five
	// times what a node sends. crypto/tls buffers a record and a message, and
	// with them a transport that is being set up costs some 20 KiB.
	SetupBytes int64
	// Known reports addresses where live or suspended sessions were last
	// seen: half of HalfOpen is kept for them.
	Known func(netip.Addr) bool
}

// Handler receives what a Server lets in. Each method runs on a goroutine of
// its own and owns what it is given.
type Handler interface {
	Control(ctx context.Context, c Conn)
	// Enrol serves one bounded request: the bare TLS stream, no yamux. The
	// stream is closed when it returns, and after the setup time in any case.
	Enrol(ctx context.Context, c EnrolConn)
}

// EnrolConn is a TLS stream without a client certificate.
type EnrolConn interface {
	net.Conn
	Export(label string, context []byte, n int) ([]byte, error)
}
