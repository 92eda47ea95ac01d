package auth

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"tunneld/internal/session"
	"tunneld/internal/store"
)

// Buckets of the store that this package owns.
const (
	bucketIdentities = "identities" // DEPLOYMENT/ROLE -> identityRecord
	bucketGateways   = "gateways"   // HOST:PORT -> KnownGateway
	bucketJoining    = "joining"    // invite id -> key, until the identity is saved
	bucketAuthority  = "authority"  // "ca" -> authorityRecord
	bucketNodes      = "nodes"      // node name -> nodeRecord
	bucketInvites    = "invites"    // invite id -> invite
	bucketRevoked    = "revoked"    // node id -> revocation
	bucketRegistry   = "registry"   // "serial" -> revocation serial
)

// Identity is what one daemon is in one deployment.
type Identity struct {
	Deployment  session.ID
	Name        string
	ID          session.ID
	Role        Role
	Key         crypto.Signer
	Certificate *x509.Certificate
	CA          *x509.Certificate
}

// NewIdentity joins a key with the certificate that the authority gave for it,
// after checking that they belong together and to ca.
func NewIdentity(key crypto.Signer, certificate []byte, ca *x509.Certificate) (Identity, error) {
	cert, err := x509.ParseCertificate(certificate)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrBadCertificate, err)
	}
	p, err := ParseCertificate(cert)
	if err != nil {
		return Identity{}, err
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return Identity{}, fmt.Errorf("%w: certificate of %q: %w", ErrBadCertificate, p.Name, err)
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(cert.PublicKey) {
		return Identity{}, fmt.Errorf("%w: certificate of %q is for another key", ErrBadCertificate, p.Name)
	}
	return Identity{p.Deployment, p.Name, p.ID, p.Role, key, cert, ca}, nil
}

// TLS is the identity as crypto/tls wants it: the leaf, then the CA's
// certificate, whose fingerprint a node that enrols compares.
func (id Identity) TLS() tls.Certificate {
	return tls.Certificate{
		Certificate: [][]byte{id.Certificate.Raw, id.CA.Raw},
		PrivateKey:  id.Key,
		Leaf:        id.Certificate,
	}
}

// Roots holds the deployment's authority and nothing else.
func (id Identity) Roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(id.CA)
	return p
}

// Valid checks the certificate's time; its error wraps ErrExpired.
func (id Identity) Valid(now time.Time) error { return checkTime(id.Certificate, id.Name, now) }

// identityRecord is an Identity in the store; the rest stands in the certificate.
type identityRecord struct {
	Key         []byte `json:"key"` // PKCS #8
	Certificate []byte `json:"certificate"`
	CA          []byte `json:"ca"`
}

func identityKey(deployment session.ID, role Role) string {
	return deployment.String() + "/" + role.String()
}

// Save stores id in place of the one of the same deployment and role.
func (id Identity) Save(tx store.Tx) error {
	key, err := x509.MarshalPKCS8PrivateKey(id.Key)
	if err != nil {
		return fmt.Errorf("key of %q: %w", id.Name, err)
	}
	return putJSON(tx, bucketIdentities, identityKey(id.Deployment, id.Role), identityRecord{key, id.Certificate.Raw, id.CA.Raw})
}

// LoadIdentity returns what this daemon is in deployment; without one the error
// wraps store.ErrNotFound.
func LoadIdentity(tx store.Tx, deployment session.ID, role Role) (Identity, error) {
	b, err := tx.Get(bucketIdentities, identityKey(deployment, role))
	if err != nil {
		return Identity{}, fmt.Errorf("identity as %v in deployment %v: %w", role, deployment, err)
	}
	return parseIdentity(b)
}

// ListIdentities returns all that this daemon is.
func ListIdentities(tx store.Tx) ([]Identity, error) {
	var ids []Identity
	err := tx.Each(bucketIdentities, func(_ string, b []byte) error {
		id, err := parseIdentity(b)
		ids = append(ids, id)
		return err
	})
	return ids, err
}

// DeleteIdentity forgets what this daemon is in deployment.
func DeleteIdentity(tx store.Tx, deployment session.ID, role Role) error {
	return tx.Delete(bucketIdentities, identityKey(deployment, role))
}

func parseIdentity(b []byte) (Identity, error) {
	var r identityRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return Identity{}, fmt.Errorf("stored identity: %w", err)
	}
	key, err := parseKey(r.Key)
	if err != nil {
		return Identity{}, fmt.Errorf("stored identity: %w", err)
	}
	ca, err := x509.ParseCertificate(r.CA)
	if err != nil {
		return Identity{}, fmt.Errorf("stored identity: %w", err)
	}
	return NewIdentity(key, r.Certificate, ca)
}

// KnownGateway is who must answer at an address.
type KnownGateway struct {
	Deployment session.ID `json:"deployment"`
	ID         session.ID `json:"id"`
}

// SaveGateway remembers who answers at addr, HOST:PORT; join writes it.
func SaveGateway(tx store.Tx, addr string, g KnownGateway) error {
	return putJSON(tx, bucketGateways, addr, g)
}

// LookupGateway says who must answer at addr; for an address that no join wrote
// the error wraps store.ErrNotFound.
func LookupGateway(tx store.Tx, addr string) (KnownGateway, error) {
	var g KnownGateway
	if err := getJSON(tx, bucketGateways, addr, &g); err != nil {
		return g, fmt.Errorf("gateway %q: %w", addr, err)
	}
	return g, nil
}

// DeleteGateway forgets who answers at addr.
func DeleteGateway(tx store.Tx, addr string) error { return tx.Delete(bucketGateways, addr) }

func putJSON(tx store.Tx, bucket, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%s %q: %w", bucket, key, err)
	}
	return tx.Put(bucket, key, b)
}

func getJSON(tx store.Tx, bucket, key string, v any) error {
	b, err := tx.Get(bucket, key)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s %q: %w", bucket, key, err)
	}
	return nil
}

// found turns store.ErrNotFound into false.
func found(err error) (bool, error) {
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
