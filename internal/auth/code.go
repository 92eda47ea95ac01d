package auth

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// What ParseCode finds wrong.
var (
	ErrNoCode      = errors.New("auth: not an invite code")
	ErrGarbledCode = errors.New("auth: invite code is garbled")
	ErrNewerCode   = errors.New("auth: invite code was made by a newer version")
)

const (
	codePrefix  = "tnl"
	codeVersion = 1
	maxCode     = 1024 // characters; a longer text is no code of any version
	maxAddress  = 255
	secretLen   = 16
	// codeFixed is version, invite id, secret, gateway, deployment, CA, expiry.
	codeFixed = 1 + 8 + secretLen + 16 + 16 + 32 + 8
)

// InviteID names an invite to the gateway that made it. It is not a credential.
type InviteID [8]byte

// String writes id as hexadecimal digits.
func (id InviteID) String() string { return hex.EncodeToString(id[:]) }

// Code is what an invite code says: whom to ask, how to know him, and the
// secret that shows one was invited. Whoever has the code can enrol in the
// node's place, so nothing prints it but Text.
type Code struct {
	ID         InviteID
	Secret     secret.Value // 128 random bits
	Gateway    string       // HOST:PORT
	GatewayID  session.ID
	Deployment session.ID
	CA         [sha256.Size]byte // SHA-256 of the CA's certificate
	Node       string
	ExpiresAt  time.Time // whole seconds
}

// Format prints what of c may be seen, for every verb.
func (c Code) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "[invite %v for node %q at %s]", c.ID, c.Node, c.Gateway)
}

// Text writes the code as one line for ParseCode:
//
//	tnl1-BASE64URL(version u8, invite id 8, secret 16, gateway id 16,
//	deployment 16, CA 32, expiry u64, address u8+n, node u8+n, CRC-32)
//
// The number after "tnl" is the version again, so that an older program can
// tell a newer code from a typing error.
func (c Code) Text() (string, error) {
	if err := c.check(); err != nil {
		return "", err
	}
	b := make([]byte, 0, codeFixed+maxAddress+maxName+6)
	b = append(b, codeVersion)
	b = append(b, c.ID[:]...)
	b = append(b, c.Secret.Reveal()...)
	b = append(b, c.GatewayID[:]...)
	b = append(b, c.Deployment[:]...)
	b = append(b, c.CA[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(c.ExpiresAt.Unix()))
	for _, s := range []string{c.Gateway, c.Node} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return fmt.Sprintf("%s%d-%s", codePrefix, codeVersion, base64.RawURLEncoding.EncodeToString(b)), nil
}

// ParseCode reads what Text wrote; white space around it is ignored. A typing
// error and a cut line are told from a text that never was a code. Whether the
// invite is known, unused and unexpired only its gateway can say.
func ParseCode(s string) (Code, error) {
	s = strings.TrimSpace(s)
	body, err := codeBody(s)
	if err != nil {
		return Code{}, err
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || len(b) < codeFixed+2+4 {
		return Code{}, fmt.Errorf("%w: copy the whole line again", ErrGarbledCode)
	}
	b, sum := b[:len(b)-4], b[len(b)-4:]
	if crc32.ChecksumIEEE(b) != binary.BigEndian.Uint32(sum) {
		return Code{}, fmt.Errorf("%w: its checksum does not fit; copy the whole line again", ErrGarbledCode)
	}
	if b[0] != codeVersion {
		return Code{}, fmt.Errorf("%w: format %d, this program knows %d", ErrNewerCode, b[0], codeVersion)
	}
	c, err := parseCodeBody(b)
	if err == nil {
		err = c.check()
	}
	if err != nil {
		return Code{}, fmt.Errorf("%w: %w", ErrNoCode, err)
	}
	return c, nil
}

// codeBody strips the prefix and looks at the version in it.
func codeBody(s string) (string, error) {
	head, body, ok := strings.Cut(s, "-")
	version, isCode := strings.CutPrefix(head, codePrefix)
	digits := version != "" && strings.Trim(version, "0123456789") == ""
	switch {
	case !ok || !isCode || !digits || len(s) > maxCode:
		return "", fmt.Errorf("%w: it is one line that begins with %s%d-", ErrNoCode, codePrefix, codeVersion)
	case version != fmt.Sprint(codeVersion):
		return "", fmt.Errorf("%w: format %.8s, this program knows %d", ErrNewerCode, version, codeVersion)
	}
	return body, nil
}

// parseCodeBody reads the fields of b, which is at least codeFixed+2 octets.
func parseCodeBody(b []byte) (Code, error) {
	var c Code
	r := bytes.NewReader(b[1:])
	sec := make([]byte, secretLen)
	for _, field := range [][]byte{c.ID[:], sec, c.GatewayID[:], c.Deployment[:], c.CA[:]} {
		io.ReadFull(r, field) // there are codeFixed octets
	}
	c.Secret = secret.New(sec)
	clear(sec)
	var at [8]byte
	io.ReadFull(r, at[:])
	c.ExpiresAt = time.Unix(int64(binary.BigEndian.Uint64(at[:])), 0)
	for _, s := range []*string{&c.Gateway, &c.Node} {
		n, err := r.ReadByte()
		if err != nil || int(n) > r.Len() {
			return Code{}, errors.New("a field is cut off")
		}
		field := make([]byte, n)
		io.ReadFull(r, field)
		*s = string(field)
	}
	if r.Len() != 0 {
		return Code{}, fmt.Errorf("%d octets too many", r.Len())
	}
	return c, nil
}

// check holds what a code must be to be written and to be believed.
func (c Code) check() error {
	if n := len(c.Secret.Reveal()); n != secretLen {
		return fmt.Errorf("a secret of %d octets, want %d", n, secretLen)
	}
	if c.GatewayID.IsZero() || c.Deployment.IsZero() {
		return errors.New("no gateway or no deployment")
	}
	if err := validAddress(c.Gateway); err != nil {
		return err
	}
	if t := c.ExpiresAt.Unix(); t <= 0 || t > 1<<40 {
		return fmt.Errorf("expiry %d is no time", t)
	}
	return ValidName(c.Node)
}

// validAddress checks the form HOST:PORT of what nodes dial.
func validAddress(s string) error {
	host, port, err := net.SplitHostPort(s)
	_, perr := strconv.ParseUint(port, 10, 16)
	printable := strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
	if err != nil || host == "" || perr != nil || len(s) > maxAddress || !printable {
		return fmt.Errorf("%.255q is no gateway address; it is HOST:PORT", s)
	}
	return nil
}

// VerifyGateway checks a gateway's chain as presented, leaf first, against the
// code: the CA by its fingerprint, since a node that enrols has no roots yet,
// then the leaf under that CA, its role, deployment and id.
func (c Code) VerifyGateway(chain []*x509.Certificate) error {
	if len(chain) != 2 {
		return fmt.Errorf("%w: %d certificates were shown, want the gateway's and its authority's", ErrBadCertificate, len(chain))
	}
	leaf, ca := chain[0], chain[1]
	if got := sha256.Sum256(ca.Raw); got != c.CA {
		return fmt.Errorf("%w: the authority at %s has fingerprint %x, the invite says %x", ErrOtherDeployment, c.Gateway, got, c.CA)
	}
	// What the leaf claims first, for it has the clearer words; then whether
	// the authority says so too.
	if err := VerifyGateway(c.Deployment, c.GatewayID)(chain); err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: usage}); err != nil {
		return fmt.Errorf("%w: %w", ErrBadCertificate, err)
	}
	return nil
}
