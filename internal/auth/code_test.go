package auth

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"strings"
	"testing"
	"time"

	"tunneld/internal/secret"
	"tunneld/internal/session"
)

func sampleCode() Code {
	return Code{
		ID:         InviteID{1, 2, 3, 4, 5, 6, 7, 8},
		Secret:     secret.New([]byte("sixteen octets!!")),
		Gateway:    gatewayAddr,
		GatewayID:  session.ID{1},
		Deployment: session.ID{2},
		CA:         [32]byte{3},
		Node:       "branch",
		ExpiresAt:  time.Unix(1_800_000_000, 0),
	}
}

func text(t testing.TB, c Code) string {
	t.Helper()
	s, err := c.Text()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// recode applies change to the octets of a code and mends the checksum.
func recode(s string, change func([]byte) []byte) string {
	b, _ := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(s, "tnl1-"))
	b = change(b[:len(b)-4])
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return "tnl1-" + base64.RawURLEncoding.EncodeToString(b)
}

func sameCode(a, b Code) bool {
	same := a.Secret.Equal(b.Secret) && a.ExpiresAt.Equal(b.ExpiresAt)
	return same && a.ID == b.ID && a.Gateway == b.Gateway && a.GatewayID == b.GatewayID &&
		a.Deployment == b.Deployment && a.CA == b.CA && a.Node == b.Node
}

func TestCodeRoundTrip(t *testing.T) {
	want := sampleCode()
	for _, addr := range []string{gatewayAddr, "192.0.2.1:8443", "[2001:db8::1]:443"} {
		want.Gateway = addr
		s := text(t, want)
		if strings.ContainsAny(s, " \n") {
			t.Errorf("%q is not one line", s)
		}
		for _, in := range []string{s, s + "\n", "  \t" + s + "\r\n\n"} {
			if got, err := ParseCode(in); err != nil || !sameCode(got, want) {
				t.Errorf("ParseCode(%q) = %v, %v, want %v", in, got, err, want)
			}
		}
	}
}

func TestParseCodeRefuses(t *testing.T) {
	s := text(t, sampleCode())
	flipped := []byte(s)
	flipped[20] ^= 3
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:len(b)-n] } }
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"nothing":               {"", ErrNoCode},
		"a word":                {"hello", ErrNoCode},
		"another kind":          {"ghp_0123456789", ErrNoCode},
		"no version":            {"tnl-AAAA", ErrNoCode},
		"a letter as version":   {"tnlx-AAAA", ErrNoCode},
		"endless":               {"tnl1-" + strings.Repeat("A", 2000), ErrNoCode},
		"next version":          {"tnl2-AAAA", ErrNewerCode},
		"a much later version":  {"tnl10-AAAA", ErrNewerCode},
		"next version inside":   {recode(s, func(b []byte) []byte { b[0] = 2; return b }), ErrNewerCode},
		"prefix alone":          {"tnl1-", ErrGarbledCode},
		"one character changed": {string(flipped), ErrGarbledCode},
		"last character gone":   {s[:len(s)-1], ErrGarbledCode},
		"half of it":            {s[:len(s)/2], ErrGarbledCode},
		"a character too many":  {s + "A", ErrGarbledCode},
		"white space inside":    {s[:30] + " " + s[30:], ErrGarbledCode},
		"twice":                 {s + s, ErrGarbledCode},
		"padding":               {s + "=", ErrGarbledCode},
		"name cut off":          {recode(s, cut(1)), ErrNoCode},
		"octets too many":       {recode(s, func(b []byte) []byte { return append(b, 0) }), ErrNoCode},
		"a name with a slash":   {recode(s, func(b []byte) []byte { b[len(b)-2] = '/'; return b }), ErrNoCode},
		"no deployment":         {recode(s, func(b []byte) []byte { clear(b[41:57]); return b }), ErrNoCode},
	} {
		if got, err := ParseCode(c.in); !errors.Is(err, c.want) {
			t.Errorf("%s: ParseCode(%q) = %v, %v, want %v", name, c.in, got, err, c.want)
		}
	}
}

func TestCodeTextRefuses(t *testing.T) {
	for name, change := range map[string]func(*Code){
		"no secret":  func(c *Code) { c.Secret = secret.Value{} },
		"no port":    func(c *Code) { c.Gateway = "vpn.example.com" },
		"no host":    func(c *Code) { c.Gateway = ":443" },
		"no number":  func(c *Code) { c.Gateway = "vpn.example.com:https" },
		"space":      func(c *Code) { c.Gateway = "vpn example:443" },
		"long":       func(c *Code) { c.Gateway = strings.Repeat("x", 256) + ":443" },
		"no node":    func(c *Code) { c.Node = "" },
		"no expiry":  func(c *Code) { c.ExpiresAt = time.Time{} },
		"no gateway": func(c *Code) { c.GatewayID = session.ID{} },
	} {
		c := sampleCode()
		change(&c)
		if s, err := c.Text(); err == nil {
			t.Errorf("%s: Text() = %q, want an error", name, s)
		}
	}
}

func TestCodeIsNotPrintedByAccident(t *testing.T) {
	c := sampleCode()
	out := ""
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		out += fmt.Sprintf(verb, c) + fmt.Sprintf(verb, &c) + fmt.Sprintf(verb, struct{ C Code }{c})
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "code", c)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "code", c)
	out += log.String()
	for _, leak := range []string{"sixteen", "7369787465656e", "c2l4dGVlbi"} {
		if strings.Contains(out, leak) {
			t.Errorf("%q shows in %s", leak, out)
		}
	}
	if _, err := json.Marshal(c); err == nil {
		t.Error("a code was marshalled as JSON")
	}
}

// FuzzParseCode: the attacker talks somebody into joining with a code of his.
func FuzzParseCode(f *testing.F) {
	s := text(f, sampleCode())
	f.Add(s)
	f.Add("tnl2-AAAA")
	f.Add(recode(s, func(b []byte) []byte { return b[:len(b)-3] }))
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCode(s)
		if err != nil {
			return
		}
		back, err := c.Text()
		if err != nil || back != strings.TrimSpace(s) {
			t.Errorf("ParseCode(%q) is written %q, %v", s, back, err)
		}
	})
}

// FuzzParseCodeBody mends the checksum, which the other target seldom guesses.
func FuzzParseCodeBody(f *testing.F) {
	f.Add([]byte(strings.Repeat("\x01", codeFixed+2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 1 {
			return
		}
		in := recode(text(t, sampleCode()), func([]byte) []byte { return append([]byte{codeVersion}, b...) })
		c, err := ParseCode(in)
		if err != nil {
			return
		}
		if back := text(t, c); back != in {
			t.Errorf("ParseCode(%q) is written %q", in, back)
		}
	})
}

func TestCodeVerifyGateway(t *testing.T) {
	h := newHouse(t)
	code := h.invite(request("branch"))
	self := h.Identity()
	forged, err := NewAuthority(code.Deployment, now) // same names, another key
	if err != nil {
		t.Fatal(err)
	}
	imposter := certify(t, forged, Grant{Role: Gateway, NodeName: "gw", NodeID: code.GatewayID})
	node := certify(t, h.authority, Grant{Role: Node, NodeName: "branch", NodeID: session.NewID()})
	second := certify(t, h.authority, Grant{Role: Gateway, NodeName: "gw2", NodeID: session.NewID()})
	for name, c := range map[string]struct {
		chain []*x509.Certificate
		want  error
	}{
		"the gateway":                    {[]*x509.Certificate{self.Certificate, self.CA}, nil},
		"another authority":              {[]*x509.Certificate{imposter.Certificate, imposter.CA}, ErrOtherDeployment},
		"a forged leaf under the CA":     {[]*x509.Certificate{imposter.Certificate, self.CA}, ErrBadCertificate},
		"a node":                         {[]*x509.Certificate{node.Certificate, self.CA}, ErrWrongRole},
		"another gateway":                {[]*x509.Certificate{second.Certificate, self.CA}, ErrWrongNode},
		"the leaf alone":                 {[]*x509.Certificate{self.Certificate}, ErrBadCertificate},
		"the authority's own, as a leaf": {[]*x509.Certificate{self.CA, self.CA}, ErrBadCertificate},
		"nothing":                        {nil, ErrBadCertificate},
	} {
		if err := code.VerifyGateway(c.chain); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
