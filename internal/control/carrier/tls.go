package carrier

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"time"
)

var (
	errNoVerify = errors.New("an identity without Verify believes nobody")
	errResumed  = errors.New("a resumed TLS session")
	errNoALPN   = errors.New("peer did not ask for " + ALPNControl + " or " + ALPNEnrol)
)

// baseConfig is what every handshake of ours has in common.
//
// Tickets are off and no cache exists, so every transport is a full handshake
// in which the certificates of this moment are checked; to continue a session
// is done above TLS. It must be so on each configuration: one that comes from
// GetConfigForClient would use its parent's ticket keys, and the ALPN is no
// part of what crypto/tls compares when it resumes.
//
// Only the hybrid key exchange is offered: what is recorded today must not be
// readable to a quantum computer later. Dynamic record sizing is off, so that
// one frame is one record from the first octet on.
func baseConfig(now func() time.Time, alpn string) *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		CurvePreferences:            []tls.CurveID{tls.X25519MLKEM768},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
		NextProtos:                  []string{alpn},
		Time:                        now,
	}
}

// dialConfig is the initiator's side of a control connection.
//
// InsecureSkipVerify does not mean what it says here: it only switches off
// crypto/tls's own check, which insists on a DNS name. Our names are URIs of a
// deployment, so the whole chain is verified in VerifyConnection, which runs in
// every handshake and whose error ends it.
func dialConfig(id Identity, now func() time.Time) *tls.Config {
	c := baseConfig(now, ALPNControl)
	c.InsecureSkipVerify = true
	// Certificates would be filtered by the CA names the server lists, and a
	// server of another deployment then gets none and cannot say why it refuses.
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &id.Certificate, nil
	}
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		chain, err := verifyGatewayChain(cs.PeerCertificates, id.Roots, c.Time())
		if err != nil {
			return fmt.Errorf("%w: %w", ErrPeerCertificate, err)
		}
		return checkPeer(id, cs, ALPNControl, chain)
	}
	return c
}

// serveConfig is the gateway's side of a control connection.
func serveConfig(id Identity, now func() time.Time) *tls.Config {
	c := baseConfig(now, ALPNControl)
	c.Certificates = []tls.Certificate{id.Certificate}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.ClientCAs = id.Roots
	if c.ClientCAs == nil {
		c.ClientCAs = x509.NewCertPool() // nil would mean the system's
	}
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.VerifiedChains) == 0 {
			return fmt.Errorf("%w: no verified chain", ErrPeerCertificate)
		}
		return checkPeer(id, cs, ALPNControl, cs.VerifiedChains[0])
	}
	return c
}

// enrolServeConfig asks for no certificate: the invite in the request is what
// lets a node in.
func enrolServeConfig(id Identity, now func() time.Time) *tls.Config {
	c := baseConfig(now, ALPNEnrol)
	c.Certificates = []tls.Certificate{id.Certificate}
	c.VerifyConnection = func(cs tls.ConnectionState) error { return checkState(cs, ALPNEnrol) }
	return c
}

// enrolDialConfig leaves the server's chain to verify: whoever enrols knows a
// fingerprint of the CA and has no pool of roots yet.
func enrolDialConfig(verify func([]*x509.Certificate) error, now func() time.Time) *tls.Config {
	c := baseConfig(now, ALPNEnrol)
	c.InsecureSkipVerify = true // see dialConfig
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		return checkPeer(Identity{Verify: verify}, cs, ALPNEnrol, cs.PeerCertificates)
	}
	return c
}

// verifyGatewayChain verifies chain, as presented, up to roots, for a server.
func verifyGatewayChain(presented []*x509.Certificate, roots *x509.CertPool, now time.Time) ([]*x509.Certificate, error) {
	if len(presented) == 0 {
		return nil, errors.New("no certificate")
	}
	if roots == nil {
		roots = x509.NewCertPool() // nil would mean the system's
	}
	between := x509.NewCertPool()
	for _, c := range presented[1:] {
		between.AddCert(c)
	}
	chains, err := presented[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: between,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", describe(presented[0]), err)
	}
	return chains[0], nil
}

// checkPeer is the last word on a peer, in every handshake.
func checkPeer(id Identity, cs tls.ConnectionState, alpn string, chain []*x509.Certificate) error {
	if err := checkState(cs, alpn); err != nil {
		return err
	}
	if len(chain) == 0 {
		return fmt.Errorf("%w: no certificate", ErrPeerCertificate)
	}
	if id.Verify == nil {
		return fmt.Errorf("%w: %w", ErrPeerCertificate, errNoVerify)
	}
	if err := id.Verify(chain); err != nil {
		return fmt.Errorf("%w: %w", ErrPeerCertificate, err)
	}
	return nil
}

// checkState refuses what the configuration already excludes, so that a change
// there cannot open a way in unseen.
func checkState(cs tls.ConnectionState, alpn string) error {
	switch {
	case cs.NegotiatedProtocol != alpn:
		return fmt.Errorf("protocol %q was negotiated, want %q", cs.NegotiatedProtocol, alpn)
	case cs.DidResume:
		return errResumed
	}
	return nil
}

// describe names a certificate nobody has verified, for an error.
func describe(c *x509.Certificate) string {
	name := c.Subject.String()
	if len(c.URIs) > 0 {
		name = c.URIs[0].String()
	}
	return fmt.Sprintf("certificate %.255q issued by %.255q", name, c.Issuer.CommonName)
}

// certificateAlerts are the alerts with which a peer refuses a certificate
// (RFC 8446, section 6.2), in our words. bad_certificate is what crypto/tls
// sends when VerifyConnection refused a chain that is otherwise sound.
var certificateAlerts = map[uint64]string{
	42:  "revoked there, or not for this use",
	43:  "of an unsupported kind",
	44:  "revoked",
	45:  "expired",
	46:  "not acceptable",
	48:  "of another deployment",
	49:  "without the right to connect",
	116: "missing",
}

// refusal turns the peer's alert about our certificate into ErrOurCertificate;
// ok is false for any other error.
func refusal(err error) (_ error, ok bool) {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return nil, false
	}
	// The type of a received alert is unexported; it is the number itself.
	v := reflect.ValueOf(op.Err)
	if v.Kind() != reflect.Uint8 {
		return nil, false
	}
	why, ok := certificateAlerts[v.Uint()]
	if !ok {
		return nil, false
	}
	return fmt.Errorf("%w: %s: %w", ErrOurCertificate, why, err), true
}

// export is [Conn.Export] of a finished handshake.
func export(cs *tls.ConnectionState, label string, context []byte, n int) ([]byte, error) {
	b, err := cs.ExportKeyingMaterial(label, context, n)
	if err != nil {
		return nil, fmt.Errorf("export %q: %w", label, err)
	}
	return b, nil
}

// broken reports whether err says more than that the transport ended.
func broken(err error) bool {
	return err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed)
}
