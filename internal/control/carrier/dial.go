package carrier

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/yamux"
)

const defaultDialTimeout = 10 * time.Second

// Dial opens a transport to the gateway at addr, HOST:PORT. The gateway has
// been verified when Dial returns; whether it accepts our certificate shows at
// the first Read (see [ErrOurCertificate]), so that no round trip is spent on
// waiting. The gateway sees the stream with the first Write. Errors wrap ErrPeerCertificate, ErrOurCertificate or ErrUnreachable.
func (d *Dialer) Dial(ctx context.Context, addr string) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout())
	defer cancel()
	t, sock, err := d.connect(ctx, addr, dialConfig(d.Identity, d.clock()))
	if err != nil {
		return nil, dialError(addr, err)
	}
	c, err := openControl(t, sock)
	if err != nil {
		return nil, dialError(addr, err)
	}
	return c, nil
}

// openControl starts yamux and opens the control stream. Nothing is sent yet. On
// error all is closed.
func openControl(t *tls.Conn, sock *socket) (*conn, error) {
	l := newLink(t, sock)
	mux, err := yamux.Client(l, muxConfig())
	if err != nil {
		l.Close()
		return nil, err
	}
	none := make(chan struct{})
	close(none) // nothing of ours runs beside yamux
	c := &conn{mux: mux, link: l, state: t.ConnectionState(), ended: none}
	// The gateway opens no streams: yamux refuses them by itself from now on.
	if err = mux.GoAway(); err == nil {
		c.Stream, err = mux.OpenStream()
	}
	if err != nil {
		err = c.explain(err)
		mux.Close()
		return nil, err
	}
	return c, nil
}

// DialEnrol opens the stream on which a node enrols at the gateway at addr. It
// shows no certificate. verify gets the gateway's chain as presented, leaf
// first, then the CA's certificate, and is all the verification there is beyond
// the proof that the gateway holds the leaf's key. The stream ends after
// Timeout unless the caller sets another deadline.
func (d *Dialer) DialEnrol(ctx context.Context, addr string, verify func(chain []*x509.Certificate) error) (EnrolConn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout())
	defer cancel()
	t, sock, err := d.connect(ctx, addr, enrolDialConfig(verify, d.clock()))
	if err != nil {
		return nil, dialError(addr, err)
	}
	t.SetDeadline(time.Now().Add(d.timeout()))
	return newEnrolConn(t, sock), nil
}

// connect is TCP and TLS. A gateway that is verified needs no limit of octets;
// before that crypto/tls bounds each message, and ctx the time.
func (d *Dialer) connect(ctx context.Context, addr string, cfg *tls.Config) (*tls.Conn, *socket, error) {
	nd := net.Dialer{Control: controlFunc(d.Control), KeepAlive: -1}
	nc, err := nd.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	sock := newSocket(nc, 0)
	sock.admit()
	// A deadline of the past ends what waits for the network.
	stop := context.AfterFunc(ctx, func() { sock.SetDeadline(time.Unix(1, 0)) })
	t := tls.Client(sock, cfg)
	err = t.Handshake() // with a context it would start a goroutine
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		sock.Close()
		return nil, nil, err
	}
	return t, sock, nil
}

func (d *Dialer) timeout() time.Duration { return cmp.Or(d.Timeout, defaultDialTimeout) }

func (d *Dialer) clock() func() time.Time {
	if d.now != nil {
		return d.now
	}
	return time.Now
}

// dialError sorts err into the three kinds that callers branch on.
func dialError(addr string, err error) error {
	if ours, ok := refusal(err); ok {
		err = ours
	}
	for _, kind := range []error{ErrPeerCertificate, ErrOurCertificate} {
		if errors.Is(err, kind) {
			return fmt.Errorf("%w (gateway %s)", err, addr)
		}
	}
	return fmt.Errorf("%w: %s: %w", ErrUnreachable, addr, err)
}
