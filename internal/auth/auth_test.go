package auth

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tunneld/internal/session"
	"tunneld/internal/store"
	"tunneld/internal/store/storetest"
)

// now is the instant of the tests; certificates are checked against the real
// clock, so it is near to that.
var now = time.Now().Truncate(time.Second)

const gatewayAddr = "vpn.example.com:443"

// house is a gateway's store and registry.
type house struct {
	*Registry
	t  *testing.T
	st *storetest.Mem
}

func newHouse(t *testing.T) *house {
	t.Helper()
	st := storetest.New(t)
	if _, err := InitGateway(st, "gw", now); err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, st: st}
	h.open()
	return h
}

// open reads the registry from the store, as a restarted daemon does.
func (h *house) open() {
	h.t.Helper()
	r, err := OpenRegistry(h.st)
	if err != nil {
		h.t.Fatal(err)
	}
	h.Registry = r
}

func request(node string) InviteRequest {
	return InviteRequest{
		Node:      node,
		Networks:  []string{"office"},
		Advertise: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")},
		Gateway:   gatewayAddr,
	}
}

func (h *house) invite(req InviteRequest) Code {
	h.t.Helper()
	c, err := h.Invite(req, now)
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// peerOf is what the gateway sees of a node's certificate.
func peerOf(t *testing.T, id Identity) Peer {
	t.Helper()
	p, err := ParseCertificate(id.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestValidName(t *testing.T) {
	for _, s := range []string{"a", "branch-1", "Laptop_2.example", "0", strings.Repeat("x", 63)} {
		if err := ValidName(s); err != nil {
			t.Errorf("ValidName(%q) = %v, want nil", s, err)
		}
	}
	for _, s := range []string{"", ".", "..", "-x", "_x", ".hidden", "a/b", "a b", "a\n", "ä", "a%2f", strings.Repeat("x", 64)} {
		if err := ValidName(s); !errors.Is(err, ErrName) {
			t.Errorf("ValidName(%q) = %v, want ErrName", s, err)
		}
	}
}

func TestSubjectRoundTrip(t *testing.T) {
	want := subject{session.NewID(), Gateway, "vpn.a_b-c", session.NewID()}
	got, err := parseSubject(want.uri().String())
	if err != nil || got != want {
		t.Errorf("parseSubject(%q) = %v, %v, want %v", want.uri(), got, err, want)
	}
}

func TestParseSubjectRefuses(t *testing.T) {
	const d, n = "30313233-3435-4637-b839-616263646566", "40313233-3435-4637-b839-616263646566"
	for _, s := range []string{
		"",
		"https://" + d + "/node/branch/" + n,
		"tunneld:/" + d + "/node/branch/" + n,
		"tunneld://" + d + "/node/branch",
		"tunneld://" + d + "/node/branch/" + n + "/",
		"tunneld://" + d + "/node//" + n,
		"tunneld://" + d + "/root/branch/" + n,
		"tunneld://" + d + "/Gateway/branch/" + n,
		"tunneld://" + d + "/node/br%61nch/" + n,
		"tunneld://" + d + "/node/../" + n,
		"tunneld://" + d + "/node/branch/" + n + "?x",
		"tunneld://" + d + "/node/branch/" + n + "#x",
		"tunneld://u@" + d + "/node/branch/" + n,
		"tunneld://" + strings.ToUpper("30313233-3435-4637-b839-6162636465ff") + "/node/branch/" + n,
		"tunneld://00000000-0000-0000-0000-000000000000/node/branch/" + n,
	} {
		if got, err := parseSubject(s); !errors.Is(err, ErrBadCertificate) {
			t.Errorf("parseSubject(%q) = %v, %v, want ErrBadCertificate", s, got, err)
		}
	}
}

// FuzzParseSubject: the attacker is whoever writes a certificate request that
// an authority other than ours signs without looking.
func FuzzParseSubject(f *testing.F) {
	f.Add(subject{session.NewID(), Node, "branch", session.NewID()}.uri().String())
	f.Add("tunneld://x/node/a/b")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseSubject(s)
		if err != nil {
			return
		}
		if back := got.uri().String(); back != s {
			t.Errorf("parseSubject(%q) is written %q", s, back)
		}
	})
}

func TestVerify(t *testing.T) {
	dep, other := session.NewID(), session.NewID()
	gw, node, revoked := session.NewID(), session.NewID(), session.NewID()
	a, err := NewAuthority(dep, now)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(role Role, id session.ID, at time.Time) []*x509.Certificate {
		return []*x509.Certificate{certify(t, a, Grant{Role: role, NodeName: "x", NodeID: id, At: at}).Certificate, a.Certificate()}
	}
	isRevoked := func(id session.ID) bool { return id == revoked }
	long := now.Add(-2 * DefaultLifetime)
	for name, c := range map[string]struct {
		verify func([]*x509.Certificate) error
		chain  []*x509.Certificate
		want   error
	}{
		"gateway":                    {VerifyGateway(dep, gw), issue(Gateway, gw, now), nil},
		"a node as gateway":          {VerifyGateway(dep, gw), issue(Node, gw, now), ErrWrongRole},
		"another gateway":            {VerifyGateway(dep, gw), issue(Gateway, node, now), ErrWrongNode},
		"gateway elsewhere":          {VerifyGateway(other, gw), issue(Gateway, gw, now), ErrOtherDeployment},
		"gateway expired":            {VerifyGateway(dep, gw), issue(Gateway, gw, long), ErrExpired},
		"no certificate":             {VerifyGateway(dep, gw), nil, ErrBadCertificate},
		"the authority itself":       {VerifyGateway(dep, gw), []*x509.Certificate{a.Certificate()}, ErrBadCertificate},
		"node":                       {VerifyNode(dep, isRevoked), issue(Node, node, now), nil},
		"a gateway as node":          {VerifyNode(dep, isRevoked), issue(Gateway, gw, now), ErrWrongRole},
		"revoked node":               {VerifyNode(dep, isRevoked), issue(Node, revoked, now), ErrRevoked},
		"node elsewhere":             {VerifyNode(other, isRevoked), issue(Node, node, now), ErrOtherDeployment},
		"node expired":               {VerifyNode(dep, isRevoked), issue(Node, node, long), ErrExpired},
		"node of the future":         {VerifyNode(dep, isRevoked), issue(Node, node, now.Add(3*time.Hour)), ErrExpired},
		"node whose clock is behind": {VerifyNode(dep, isRevoked), issue(Node, node, now.Add(30*time.Minute)), nil},
	} {
		if err := c.verify(c.chain); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	err = VerifyGateway(other, gw)(issue(Gateway, gw, now))
	if !strings.Contains(fmt.Sprint(err), dep.String()) || !strings.Contains(fmt.Sprint(err), other.String()) {
		t.Errorf("%q does not name both deployments", err)
	}
}

// certify makes an identity.
func certify(t *testing.T, a *Authority, g Grant) Identity {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := a.Sign(csr, g)
	if err != nil {
		t.Fatal(err)
	}
	id, err := NewIdentity(key, der, a.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestIdentityInTheStore(t *testing.T) {
	st := storetest.New(t)
	gw, err := InitGateway(st, "gw", now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := InitGateway(st, "again", now); !errors.Is(err, ErrInitialised) {
		t.Errorf("InitGateway on a gateway = %v, want ErrInitialised", err)
	}
	var got Identity
	var all []Identity
	err = st.View(func(tx store.Tx) error {
		var err, lerr error
		got, err = LoadIdentity(tx, gw.Deployment, Gateway)
		all, lerr = ListIdentities(tx)
		return errors.Join(err, lerr)
	})
	if err != nil || got.ID != gw.ID || got.Name != "gw" || got.Role != Gateway || !got.Certificate.Equal(gw.Certificate) || len(all) != 1 {
		t.Fatalf("LoadIdentity = %v %v %v, %d identities, %v, want what InitGateway returned", got.Name, got.ID, got.Role, len(all), err)
	}
	if c := got.TLS(); len(c.Certificate) != 2 || string(c.Certificate[1]) != string(gw.CA.Raw) {
		t.Error("TLS() does not present the leaf and the authority's certificate")
	}
	if _, err := got.Certificate.Verify(x509.VerifyOptions{Roots: got.Roots(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		t.Errorf("the gateway's certificate under its own roots: %v", err)
	}
	err = st.Update(func(tx store.Tx) error { return DeleteIdentity(tx, gw.Deployment, Gateway) })
	if err != nil {
		t.Fatal(err)
	}
	err = st.View(func(tx store.Tx) error { _, err := LoadIdentity(tx, gw.Deployment, Gateway); return err })
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("LoadIdentity after DeleteIdentity = %v, want store.ErrNotFound", err)
	}
}

func TestIdentityTime(t *testing.T) {
	a, err := NewAuthority(session.NewID(), now)
	if err != nil {
		t.Fatal(err)
	}
	id := certify(t, a, Grant{Role: Node, NodeName: "x", NodeID: session.NewID(), At: now})
	if err := id.Valid(now); err != nil {
		t.Errorf("Valid(now) = %v", err)
	}
	if err := id.Valid(now.Add(DefaultLifetime + time.Minute)); !errors.Is(err, ErrExpired) {
		t.Errorf("Valid after the end = %v, want ErrExpired", err)
	}
	// 60 days and the hour it was dated back, less a third of that hour.
	if at, want := RenewAt(id.Certificate), now.Add(60*24*time.Hour-20*time.Minute); !at.Equal(want) {
		t.Errorf("RenewAt = %v, want %v", at, want)
	}
}

func TestKnownGateways(t *testing.T) {
	st := storetest.New(t)
	want := KnownGateway{session.NewID(), session.NewID()}
	err := st.Update(func(tx store.Tx) error { return SaveGateway(tx, gatewayAddr, want) })
	if err != nil {
		t.Fatal(err)
	}
	lookup := func(addr string) (g KnownGateway, err error) {
		err = st.View(func(tx store.Tx) (err error) { g, err = LookupGateway(tx, addr); return err })
		return g, err
	}
	if g, err := lookup(gatewayAddr); err != nil || g != want {
		t.Errorf("LookupGateway(%q) = %v, %v, want %v", gatewayAddr, g, err, want)
	}
	if _, err := lookup("other:443"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("LookupGateway of an unknown address = %v, want store.ErrNotFound", err)
	}
	if err := st.Update(func(tx store.Tx) error { return DeleteGateway(tx, gatewayAddr) }); err != nil {
		t.Fatal(err)
	}
	if _, err := lookup(gatewayAddr); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("LookupGateway after DeleteGateway = %v, want store.ErrNotFound", err)
	}
}
