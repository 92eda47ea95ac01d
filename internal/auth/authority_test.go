package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/url"
	"testing"
	"time"

	"tunneld/internal/session"
)

func TestAuthorityRoundTrip(t *testing.T) {
	a, err := NewAuthority(session.NewID(), now)
	if err != nil {
		t.Fatal(err)
	}
	b, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	back, err := UnmarshalAuthority(b)
	if err != nil || back.Deployment() != a.Deployment() || !back.Certificate().Equal(a.Certificate()) {
		t.Fatalf("UnmarshalAuthority = %v, want what was marshalled", err)
	}
	certify(t, back, Grant{Role: Node, NodeName: "x", NodeID: session.NewID()})
}

// TestGrantNotRequest: a request that asks for another name, role and use gets
// what the grant says.
func TestGrantNotRequest(t *testing.T) {
	a, err := NewAuthority(session.NewID(), now)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	wish := subject{a.Deployment(), Gateway, "gw", session.NewID()}.uri()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "gw"},
		DNSNames: []string{"vpn.example.com"},
		URIs:     []*url.URL{wish},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}, // CA:TRUE
		},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	id := session.NewID()
	der, err := a.Sign(csr, Grant{Role: Node, NodeName: "branch", NodeID: id, At: now, Lifetime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParseCertificate(cert)
	if err != nil || p.Name != "branch" || p.Role != Node || p.ID != id || p.Deployment != a.Deployment() {
		t.Errorf("ParseCertificate = %+v, %v, want the grant", p, err)
	}
	if cert.IsCA || len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || len(cert.DNSNames) != 0 {
		t.Errorf("certificate has CA %v, uses %v, names %v", cert.IsCA, cert.ExtKeyUsage, cert.DNSNames)
	}
	if !cert.NotAfter.Equal(now.Add(time.Hour).UTC()) {
		t.Errorf("NotAfter = %v, want an hour after %v", cert.NotAfter, now)
	}
}

func TestCertificateDoesNotOutliveTheAuthority(t *testing.T) {
	a, err := NewAuthority(session.NewID(), now)
	if err != nil {
		t.Fatal(err)
	}
	id := certify(t, a, Grant{Role: Node, NodeName: "x", NodeID: session.NewID(), At: now.Add(CALifetime - time.Hour)})
	if !id.Certificate.NotAfter.Equal(a.Certificate().NotAfter) {
		t.Errorf("NotAfter = %v, want the authority's %v", id.Certificate.NotAfter, a.Certificate().NotAfter)
	}
}

func TestSignRefuses(t *testing.T) {
	a, err := NewAuthority(session.NewID(), now)
	if err != nil {
		t.Fatal(err)
	}
	good := newCSR(t)
	forged := append([]byte(nil), good...)
	forged[len(forged)-1] ^= 1 // the signature
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaCSR, err := NewCSR(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	grant := Grant{Role: Node, NodeName: "x", NodeID: session.NewID()}
	for name, csr := range map[string][]byte{
		"nothing": nil, "garbage": []byte("garbage"), "a forged signature": forged,
		"an RSA key": rsaCSR, "a request too long": make([]byte, maxCSR+1),
	} {
		if _, err := a.Sign(csr, grant); !errors.Is(err, ErrCSR) {
			t.Errorf("%s: Sign = %v, want ErrCSR", name, err)
		}
	}
	for name, g := range map[string]Grant{
		"no name": {Role: Node, NodeID: session.NewID()},
		"no role": {NodeName: "x", NodeID: session.NewID()},
		"no id":   {Role: Node, NodeName: "x"},
	} {
		if _, err := a.Sign(good, g); err == nil {
			t.Errorf("%s: Sign succeeded", name)
		}
	}
}

func newCSR(t *testing.T) []byte {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// FuzzCheckCSR: the attacker holds an invite, or is a node that renews.
func FuzzCheckCSR(f *testing.F) {
	key, err := NewKey()
	if err != nil {
		f.Fatal(err)
	}
	csr, err := NewCSR(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		if pub, err := checkCSR(der); (pub == nil) != (err != nil) {
			t.Errorf("checkCSR = %v, %v", pub, err)
		}
	})
}

func TestNewIdentityRefuses(t *testing.T) {
	a, err := NewAuthority(session.NewID(), now)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewAuthority(a.Deployment(), now)
	if err != nil {
		t.Fatal(err)
	}
	id := certify(t, a, Grant{Role: Node, NodeName: "x", NodeID: session.NewID()})
	other, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewIdentity(other, id.Certificate.Raw, a.Certificate()); !errors.Is(err, ErrBadCertificate) {
		t.Errorf("another key: %v, want ErrBadCertificate", err)
	}
	if _, err := NewIdentity(id.Key, id.Certificate.Raw, b.Certificate()); !errors.Is(err, ErrBadCertificate) {
		t.Errorf("another authority: %v, want ErrBadCertificate", err)
	}
	if _, err := NewIdentity(id.Key, []byte("x"), a.Certificate()); !errors.Is(err, ErrBadCertificate) {
		t.Errorf("garbage: %v, want ErrBadCertificate", err)
	}
}
