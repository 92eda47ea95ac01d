package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"tunneld/internal/session"
)

// Lives of certificates. A certificate begins an hour early, so that a node
// whose clock is a little behind may use it at once.
const (
	CALifetime      = 10 * 365 * 24 * time.Hour
	DefaultLifetime = 90 * 24 * time.Hour
	backdate        = time.Hour
)

// maxCSR bounds a certificate request, in octets of DER.
const maxCSR = 4096

// ErrCSR is wrapped by what is wrong with a certificate request.
var ErrCSR = errors.New("auth: certificate request refused")

// Authority signs for one deployment. Its methods may be called from any
// goroutine.
//
// Keys are Ed25519 throughout: in crypto/tls a handshake signs and verifies
// with it in 0.75 and 0.8 of the time that ECDSA on P-256 takes, certificates
// are smaller, and a signature needs no randomness that could fail.
type Authority struct {
	deployment session.ID
	cert       *x509.Certificate
	key        crypto.Signer
}

// Grant is what the authority signs for; nothing of it comes from the request.
type Grant struct {
	Role     Role
	NodeName string
	NodeID   session.ID
	Lifetime time.Duration // 0: DefaultLifetime
	At       time.Time     // zero: now
}

// NewKey makes a key for a certificate.
func NewKey() (crypto.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("new key: %w", err)
	}
	return key, nil
}

// NewAuthority makes an authority whose certificate lives ten years. It signs
// leaves only: the path length is zero.
func NewAuthority(deployment session.ID, now time.Time) (*Authority, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "tunneld deployment " + deployment.String()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(CALifetime),
		IsCA:                  true,
		MaxPathLenZero:        true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	cert, err := sign(tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("certificate of deployment %v: %w", deployment, err)
	}
	return &Authority{deployment: deployment, cert: cert, key: key}, nil
}

// authorityRecord is an Authority in the store.
type authorityRecord struct {
	Deployment  session.ID `json:"deployment"`
	Certificate []byte     `json:"certificate"` // DER
	Key         []byte     `json:"key"`         // PKCS #8
}

// Marshal returns the authority with its key, for a store that seals it.
func (a *Authority) Marshal() ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return nil, fmt.Errorf("key of the authority: %w", err)
	}
	return json.Marshal(authorityRecord{a.deployment, a.cert.Raw, key})
}

// UnmarshalAuthority reads what Marshal wrote.
func UnmarshalAuthority(b []byte) (*Authority, error) {
	var r authorityRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("stored authority: %w", err)
	}
	cert, err := x509.ParseCertificate(r.Certificate)
	if err != nil {
		return nil, fmt.Errorf("stored authority: %w", err)
	}
	key, err := parseKey(r.Key)
	if err != nil {
		return nil, fmt.Errorf("stored authority: %w", err)
	}
	return &Authority{deployment: r.Deployment, cert: cert, key: key}, nil
}

// Deployment is whom the authority signs for.
func (a *Authority) Deployment() session.ID { return a.deployment }

// Certificate is the authority's own; the caller must not change it.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// Sign issues a certificate for the key of csr (PKCS #10, DER), after checking
// that the requester holds it. Everything else in csr is ignored. The
// certificate never outlives the authority's. The error wraps ErrCSR where csr
// is to blame.
func (a *Authority) Sign(csr []byte, g Grant) ([]byte, error) {
	pub, err := checkCSR(csr)
	if err != nil {
		return nil, err
	}
	tmpl, err := a.template(g)
	if err != nil {
		return nil, err
	}
	cert, err := sign(tmpl, a.cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate for %q: %w", g.NodeName, err)
	}
	return cert.Raw, nil
}

func (a *Authority) template(g Grant) (*x509.Certificate, error) {
	if err := ValidName(g.NodeName); err != nil {
		return nil, err
	}
	if _, ok := parseRole(g.Role.String()); !ok || g.NodeID.IsZero() {
		return nil, fmt.Errorf("no certificate for %q as %v with id %v", g.NodeName, g.Role, g.NodeID)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	at, life := g.At, g.Lifetime
	if at.IsZero() {
		at = time.Now()
	}
	if life == 0 {
		life = DefaultLifetime
	}
	end := at.Add(life)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} // gateways dial too
	if g.Role == Gateway {
		usage = append(usage, x509.ExtKeyUsageServerAuth)
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: g.NodeName},
		URIs:                  []*url.URL{subject{a.deployment, g.Role, g.NodeName, g.NodeID}.uri()},
		NotBefore:             at.Add(-backdate),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usage,
		BasicConstraintsValid: true,
	}, nil
}

// NewCSR is a request for a certificate for key. It names nobody: the grant does.
func NewCSR(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return der, nil
}

// checkCSR returns the key of a request whose signature is right. The kind of
// key is looked at first: to verify with an RSA key of any size the peer likes
// would be work of any size.
func checkCSR(der []byte) (crypto.PublicKey, error) {
	if len(der) > maxCSR {
		return nil, fmt.Errorf("%w: %d octets, at most %d are read", ErrCSR, len(der), maxCSR)
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	switch pub := req.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if pub.Curve != elliptic.P256() {
			return nil, fmt.Errorf("%w: curve %s, want Ed25519 or P-256", ErrCSR, pub.Curve.Params().Name)
		}
	default:
		return nil, fmt.Errorf("%w: key type %v, want Ed25519 or P-256", ErrCSR, req.PublicKeyAlgorithm)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	return req.PublicKey, nil
}

// csrKeyHash is the key of a request as Peer.KeyHash has it.
func csrKeyHash(der []byte) ([32]byte, error) {
	pub, err := checkCSR(der)
	if err != nil {
		return [32]byte{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [32]byte{}, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	return sha256.Sum256(spki), nil
}

func sign(tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial is 127 random bits: positive, and never zero in practice (RFC 5280,
// section 4.1.2.2).
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

func parseKey(der []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	s, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", key)
	}
	return s, nil
}
