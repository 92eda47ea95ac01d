package crowd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"sync"
	"syscall"
)

// Handshakes makes as many bare TLS handshakes as the batch has nodes, both ends
// in this process, of the kind that a control connection begins with: TLS 1.3,
// X25519MLKEM768, certificates on both sides. It is what a set-up cannot be
// faster than.
func (c *Crowd) Handshakes(b Batch, took *Took) error {
	if len(c.nodes) == 0 {
		return fmt.Errorf("nobody has joined")
	}
	config := handshakeConfig(c.nodes[0])
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer l.Close()
	serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer nc.Close()
				t := tls.Server(nc, config)
				if t.Handshake() == nil {
					t.Write([]byte{1}) // the client's end is not done before
				}
			})
		}
	})
	return c.timed(b, took, func(ctx context.Context, n *node) error {
		d := net.Dialer{Control: controlOf(bindTo(n.source))}
		nc, err := d.DialContext(ctx, "tcp", l.Addr().String())
		if err != nil {
			return err
		}
		defer nc.Close()
		t := tls.Client(nc, config)
		_, err = t.Read(make([]byte, 1))
		return err
	})
}

// controlOf adapts bindTo to package net.
func controlOf(fn func(fd uintptr) error) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) { err = fn(fd) }); cerr != nil {
			return cerr
		}
		return err
	}
}

// handshakeConfig serves both ends, with one node's certificate for both.
func handshakeConfig(n *node) *tls.Config {
	verify := func(cs tls.ConnectionState) error {
		_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: n.id.Roots(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		return err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{n.id.TLS()}, ClientAuth: tls.RequireAnyClientCert,
		InsecureSkipVerify: true, // both ends verify below
		VerifyConnection:   verify,
		MinVersion:         tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}, SessionTicketsDisabled: true,
	}
}
