package auth

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"tunneld/internal/secret"
	"tunneld/internal/store"
)

// Enrolment is one request and one answer on a TLS stream without a client
// certificate, each a u32 length and that many octets of JSON.
const (
	enrolVersion   = 1
	maxRequest     = 8 << 10  // octets of JSON; a CSR is the most of it
	maxReply       = 16 << 10 // octets of JSON
	maxGrants      = 64       // networks and prefixes of one invite
	enrolLabel     = "EXPORTER-tunneld-enrol"
	enrolMACDomain = "tunneld enrolment 1"
)

// Exporter derives n octets from the TLS secrets of the stream that an
// enrolment runs on (RFC 8446, section 7.5).
type Exporter func(label string, context []byte, n int) ([]byte, error)

// EnrolRequest is what a node sends. MAC shows that it holds the invite's
// secret without telling it, on this TLS connection and for this CSR only.
type EnrolRequest struct {
	Version int      `json:"version"`
	Invite  InviteID `json:"invite"`
	CSR     []byte   `json:"csr"`
	MAC     []byte   `json:"mac"`
}

// EnrolReply is what the gateway answers: a certificate and what its holder may
// do, or an error.
type EnrolReply struct {
	Version     int            `json:"version"`
	Certificate []byte         `json:"certificate,omitempty"` // DER
	CA          []byte         `json:"ca,omitempty"`          // DER
	Networks    []Network      `json:"networks,omitempty"`
	Advertise   []netip.Prefix `json:"advertise,omitempty"`
	Error       *EnrolError    `json:"error,omitempty"`
}

// Network is what a gateway offers under a name, for the node to write down.
type Network struct {
	Name   string         `json:"name"`
	Pools  []netip.Prefix `json:"pools"`
	Routes []netip.Prefix `json:"routes"`
}

// EnrolError is why there is no certificate.
type EnrolError struct {
	Code    EnrolCode `json:"code"`
	Message string    `json:"message"` // for people; never acted upon
}

// EnrolCode classifies an EnrolError.
type EnrolCode string

// The codes. CodeRefused is all that is said to somebody without the secret.
const (
	CodeRefused   EnrolCode = "refused"
	CodeExpired   EnrolCode = "expired"
	CodeUsed      EnrolCode = "used"
	CodeRevoked   EnrolCode = "revoked"
	CodeWithdrawn EnrolCode = "withdrawn"
	CodeRequest   EnrolCode = "bad-request"
	CodeVersion   EnrolCode = "version"
	CodeFailed    EnrolCode = "failed"
)

var errTooLong = errors.New("auth: enrolment message is too long")

// MarshalText writes id as String does.
func (id InviteID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (id *InviteID) UnmarshalText(b []byte) error {
	v, err := parseInviteID(string(b))
	*id = v
	return err
}

// enrolMAC is HMAC-SHA-256(secret, domain | exporter(32) | SHA-256(csr)). The
// invite's id is the exporter's context.
func enrolMAC(sec secret.Value, export Exporter, id InviteID, csr []byte) ([]byte, error) {
	binding, err := export(enrolLabel, id[:], sha256.Size)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(csr)
	m := hmac.New(sha256.New, sec.Reveal())
	m.Write([]byte(enrolMACDomain))
	m.Write(binding)
	m.Write(sum[:])
	return m.Sum(nil), nil
}

// JoinKey returns the key with which to use an invite: a fresh one, or the one
// of an earlier try. A used invite gives its certificate to that key only, so
// the key is on disk before the first request; Joined and ForgetJoin drop it.
func JoinKey(st store.Store, code Code) (crypto.Signer, error) {
	var key crypto.Signer
	err := st.Update(func(tx store.Tx) error {
		der, err := tx.Get(bucketJoining, code.ID.String())
		ok, err := found(err)
		if err != nil {
			return err
		}
		if ok {
			key, err = parseKey(der)
			return err
		}
		if key, err = NewKey(); err != nil {
			return err
		}
		if der, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
			return err
		}
		return tx.Put(bucketJoining, code.ID.String(), der)
	})
	if err != nil {
		return nil, fmt.Errorf("key for invite %v: %w", code.ID, err)
	}
	return key, nil
}

// Joined stores what an enrolment with code gave: the identity and who answers
// at the code's address. JoinKey's copy of the key is dropped.
func Joined(tx store.Tx, code Code, id Identity) error {
	if err := id.Save(tx); err != nil {
		return err
	}
	if err := SaveGateway(tx, code.Gateway, KnownGateway{code.Deployment, code.GatewayID}); err != nil {
		return err
	}
	return tx.Delete(bucketJoining, code.ID.String())
}

// Refused reports whether err, of Enrol, says that the invite gives nothing any
// more: only another one helps.
func Refused(err error) bool {
	return errors.Is(err, ErrInviteRefused) || errors.Is(err, ErrInviteExpired) || errors.Is(err, ErrInviteUsed) ||
		errors.Is(err, ErrInviteWithdrawn) || errors.Is(err, ErrRevoked)
}

// ForgetJoin drops JoinKey's copy of the key for an invite that is of no use.
func ForgetJoin(st store.Store, code Code) error {
	return st.Update(func(tx store.Tx) error { return tx.Delete(bucketJoining, code.ID.String()) })
}

// Enrol is the node's side, on a stream whose other end passed
// code.VerifyGateway. key comes from JoinKey. What the gateway refuses is
// ErrInviteRefused, ErrInviteExpired, ErrInviteUsed, ErrInviteWithdrawn,
// ErrRevoked or ErrEnrol. The reply has been checked against code and key;
// [EnrolReply.Identity] takes the identity out of it.
func Enrol(rw io.ReadWriter, export Exporter, code Code, key crypto.Signer) (EnrolReply, error) {
	var reply EnrolReply
	csr, err := NewCSR(key)
	if err != nil {
		return reply, err
	}
	mac, err := enrolMAC(code.Secret, export, code.ID, csr)
	if err != nil {
		return reply, fmt.Errorf("enrol at %s: %w", code.Gateway, err)
	}
	if err := writeMessage(rw, EnrolRequest{enrolVersion, code.ID, csr, mac}, maxRequest); err != nil {
		return reply, fmt.Errorf("enrol at %s: %w", code.Gateway, err)
	}
	if err := readMessage(rw, &reply, maxReply); err != nil {
		return reply, fmt.Errorf("enrol at %s: answer: %w", code.Gateway, err)
	}
	if reply.Error != nil {
		return EnrolReply{}, reply.Error.explain(code)
	}
	if err := reply.check(); err != nil {
		return EnrolReply{}, fmt.Errorf("enrol at %s: %w: %w", code.Gateway, ErrEnrol, err)
	}
	if _, err := reply.Identity(code, key); err != nil {
		return EnrolReply{}, fmt.Errorf("enrol at %s: %w: %w", code.Gateway, ErrEnrol, err)
	}
	return reply, nil
}

// Identity is what the reply makes of key's holder, checked against the code.
func (reply EnrolReply) Identity(code Code, key crypto.Signer) (Identity, error) {
	if sha256.Sum256(reply.CA) != code.CA {
		return Identity{}, fmt.Errorf("%w: the authority in the answer is not the invite's", ErrOtherDeployment)
	}
	ca, err := x509.ParseCertificate(reply.CA)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrBadCertificate, err)
	}
	id, err := NewIdentity(key, reply.Certificate, ca)
	switch {
	case err != nil:
		return Identity{}, err
	case id.Deployment != code.Deployment:
		return Identity{}, fmt.Errorf("%w: %v, want %v", ErrOtherDeployment, id.Deployment, code.Deployment)
	case id.Name != code.Node:
		return Identity{}, fmt.Errorf("%w: %q, the invite is for %q", ErrWrongNode, id.Name, code.Node)
	case id.Role != Node:
		return Identity{}, fmt.Errorf("%w: a %v, want a %v", ErrWrongRole, id.Role, Node)
	}
	return id, nil
}

// check refuses what no gateway of ours writes, before it becomes a file.
func (reply EnrolReply) check() error {
	if reply.Version != enrolVersion {
		return fmt.Errorf("version %d of the answer, want %d", reply.Version, enrolVersion)
	}
	if len(reply.Networks) > maxGrants || len(reply.Advertise) > maxGrants {
		return fmt.Errorf("%d networks and %d prefixes, at most %d are believed", len(reply.Networks), len(reply.Advertise), maxGrants)
	}
	seen := make(map[string]bool)
	prefixes := slices.Clone(reply.Advertise)
	for _, n := range reply.Networks {
		if err := ValidName(n.Name); err != nil {
			return fmt.Errorf("network: %w", err)
		}
		if seen[n.Name] {
			return fmt.Errorf("network %q twice", n.Name)
		}
		seen[n.Name] = true
		prefixes = slices.Concat(prefixes, n.Pools, n.Routes)
	}
	for _, p := range prefixes {
		if !p.IsValid() || p != p.Masked() {
			return fmt.Errorf("prefix %v is not canonical", p)
		}
	}
	return nil
}

// explain puts a refusal into our own words; the gateway's are only quoted
// where its code is unknown.
func (e *EnrolError) explain(code Code) error {
	switch e.Code {
	case CodeRefused:
		return fmt.Errorf("%w: gateway %s does not take the invite for %q", ErrInviteRefused, code.Gateway, code.Node)
	case CodeExpired:
		return fmt.Errorf("%w: that for %q ended %s; ask for a new one", ErrInviteExpired, code.Node, code.ExpiresAt.UTC().Format("2006-01-02T15:04:05Z"))
	case CodeUsed:
		return fmt.Errorf("%w: another key enrolled as %q with it; ask for a new one", ErrInviteUsed, code.Node)
	case CodeRevoked:
		return fmt.Errorf("%w: node %q; ask for a new invite", ErrRevoked, code.Node)
	case CodeWithdrawn:
		return fmt.Errorf("%w: that for %q; ask for the newest one", ErrInviteWithdrawn, code.Node)
	}
	return fmt.Errorf("%w: gateway %s answers %.32q: %.255q", ErrEnrol, code.Gateway, e.Code, e.Message)
}

// writeMessage sends v as one write: a length and JSON.
func writeMessage(w io.Writer, v any, limit int) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > limit {
		return fmt.Errorf("%w: %d octets, at most %d are read", errTooLong, len(b), limit)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// readMessage reads what writeMessage sent. It takes no more memory than the
// octets that came, whatever the length says. Unknown members are ignored, so
// that a newer peer may add some.
func readMessage(r io.Reader, v any, limit uint32) error {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return fmt.Errorf("length: %w", err)
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > limit {
		return fmt.Errorf("%w: %d octets, at most %d are read", errTooLong, n, limit)
	}
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("%d of %d octets: %w", b.Len(), n, err)
	}
	if err := json.Unmarshal(b.Bytes(), v); err != nil {
		return fmt.Errorf("%w: %w", ErrEnrol, err)
	}
	return nil
}
