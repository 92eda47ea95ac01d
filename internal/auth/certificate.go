package auth

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"tunneld/internal/session"
)

// scheme of the URI that names a certificate's holder:
//
//	tunneld://DEPLOYMENT-UUID/ROLE/NODE-NAME/NODE-UUID
const scheme = "tunneld"

// Peer is who a certificate says its holder is.
type Peer struct {
	Deployment session.ID
	ID         session.ID
	Name       string
	Role       Role
	Serial     string   // of the certificate, hexadecimal
	KeyHash    [32]byte // SHA-256 of the SubjectPublicKeyInfo
	NotAfter   time.Time
}

// subject is the part of a Peer that stands in the URI.
type subject struct {
	deployment session.ID
	role       Role
	name       string
	id         session.ID
}

func (s subject) uri() *url.URL {
	return &url.URL{Scheme: scheme, Host: s.deployment.String(), Path: s.path()}
}

func (s subject) path() string { return "/" + s.role.String() + "/" + s.name + "/" + s.id.String() }

// parseSubject reads what subject.uri writes and nothing else: two spellings
// of one holder would be two holders to whoever compares.
func parseSubject(uri string) (subject, error) {
	var s subject
	parts := strings.Split(uri, "/")
	if len(parts) != 6 || parts[0] != scheme+":" || parts[1] != "" {
		return s, fmt.Errorf("%w: %.255q is not %s://DEPLOYMENT/ROLE/NAME/ID", ErrBadCertificate, uri, scheme)
	}
	var err error
	var ok bool
	if s.deployment, err = session.ParseID(parts[2]); err != nil {
		return s, fmt.Errorf("%w: deployment: %w", ErrBadCertificate, err)
	}
	if s.role, ok = parseRole(parts[3]); !ok {
		return s, fmt.Errorf("%w: unknown role %.63q", ErrBadCertificate, parts[3])
	}
	if err = ValidName(parts[4]); err != nil {
		return s, fmt.Errorf("%w: %w", ErrBadCertificate, err)
	}
	s.name = parts[4]
	if s.id, err = session.ParseID(parts[5]); err != nil {
		return s, fmt.Errorf("%w: node id: %w", ErrBadCertificate, err)
	}
	if scheme+"://"+s.deployment.String()+s.path() != uri || s.deployment.IsZero() || s.id.IsZero() {
		return s, fmt.Errorf("%w: %.255q is not in canonical form", ErrBadCertificate, uri)
	}
	return s, nil
}

// ParseCertificate says who c is for. It checks the form, not the signature:
// the caller has verified the chain. The error wraps ErrBadCertificate.
func ParseCertificate(c *x509.Certificate) (Peer, error) {
	if len(c.URIs) != 1 || len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses) != 0 {
		return Peer{}, fmt.Errorf("%w: want one URI as its only name, have %d URIs", ErrBadCertificate, len(c.URIs))
	}
	if c.IsCA {
		return Peer{}, fmt.Errorf("%w: it is an authority's own", ErrBadCertificate)
	}
	s, err := parseSubject(c.URIs[0].String())
	if err != nil {
		return Peer{}, err
	}
	if server := slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth); server != (s.role == Gateway) {
		return Peer{}, fmt.Errorf("%w: role %v, but server use is %v", ErrBadCertificate, s.role, server)
	}
	return Peer{
		Deployment: s.deployment,
		ID:         s.id,
		Name:       s.name,
		Role:       s.role,
		Serial:     c.SerialNumber.Text(16),
		KeyHash:    sha256.Sum256(c.RawSubjectPublicKeyInfo),
		NotAfter:   c.NotAfter,
	}, nil
}

// RenewAt is when c is to be renewed: at two thirds of its life.
func RenewAt(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3 * 2)
}

// VerifyGateway returns the check of a node that dials gateway id of
// deployment. It is given a verified chain, leaf first. A node's certificate is
// of the same authority, so the chain alone proves nothing about the role.
func VerifyGateway(deployment, id session.ID) func(chain []*x509.Certificate) error {
	return func(chain []*x509.Certificate) error {
		p, err := verify(chain, deployment, Gateway)
		if err != nil {
			return err
		}
		if p.ID != id {
			return fmt.Errorf("%w: gateway %q has id %v, want %v", ErrWrongNode, p.Name, p.ID, id)
		}
		return nil
	}
}

// VerifyNode returns the check of a gateway of deployment on nodes that dial
// it. revoked answers from memory.
func VerifyNode(deployment session.ID, revoked func(id session.ID) bool) func(chain []*x509.Certificate) error {
	return func(chain []*x509.Certificate) error {
		p, err := verify(chain, deployment, Node)
		if err != nil {
			return err
		}
		if revoked(p.ID) {
			return fmt.Errorf("%w: node %q with id %v", ErrRevoked, p.Name, p.ID)
		}
		return nil
	}
}

func verify(chain []*x509.Certificate, deployment session.ID, role Role) (Peer, error) {
	if len(chain) == 0 {
		return Peer{}, fmt.Errorf("%w: none was shown", ErrBadCertificate)
	}
	p, err := ParseCertificate(chain[0])
	if err != nil {
		return p, err
	}
	if p.Deployment != deployment {
		return p, fmt.Errorf("%w: %q is of deployment %v, want %v", ErrOtherDeployment, p.Name, p.Deployment, deployment)
	}
	if p.Role != role {
		return p, fmt.Errorf("%w: %q is a %v, want a %v", ErrWrongRole, p.Name, p.Role, role)
	}
	return p, checkTime(chain[0], p.Name, time.Now())
}

func checkTime(c *x509.Certificate, name string, now time.Time) error {
	format := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("%w: that of %q ended %s, and it is %s", ErrExpired, name, format(c.NotAfter), format(now))
	case now.Before(c.NotBefore):
		return fmt.Errorf("%w: that of %q begins %s, and it is %s here; is the clock right?", ErrExpired, name, format(c.NotBefore), format(now))
	}
	return nil
}
