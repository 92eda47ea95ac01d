package auth

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/store"
	"tunneld/internal/store/storetest"
)

// tlsOf is the exporter of a TLS connection named s: both ends of one
// connection share it, no two connections do.
func tlsOf(s string) Exporter {
	return func(label string, context []byte, n int) ([]byte, error) {
		sum := sha256.Sum256([]byte(s + "|" + label + "|" + string(context)))
		return sum[:n], nil
	}
}

var office = Network{
	Name:   "office",
	Pools:  []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")},
	Routes: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24")},
}

func lookup(names []string) []Network {
	var out []Network
	for _, n := range names {
		if n == office.Name {
			out = append(out, office)
		}
	}
	return out
}

func newTestKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// try is one enrolment over a pipe: what the node and what the gateway got.
type try struct {
	reply   EnrolReply
	err     error // the node's
	done    Enrolment
	refused error // the gateway's
}

func (h *house) enrolAt(code Code, key crypto.Signer, at time.Time) try {
	a, b := net.Pipe()
	defer a.Close()
	var r try
	served := make(chan struct{})
	go func() {
		defer close(served)
		defer b.Close()
		r.done, r.refused = h.ServeEnrol(b, tlsOf("one"), lookup, at)
	}()
	r.reply, r.err = Enrol(a, tlsOf("one"), code, key)
	a.Close()
	<-served
	return r
}

func (h *house) enrol(code Code, key crypto.Signer) Identity {
	h.t.Helper()
	r := h.enrolAt(code, key, now)
	if r.err != nil || r.refused != nil {
		h.t.Fatalf("enrolment: %v, %v", r.err, r.refused)
	}
	id, err := r.reply.Identity(code, key)
	if err != nil {
		h.t.Fatal(err)
	}
	return id
}

func TestEnrol(t *testing.T) {
	h := newHouse(t)
	code, err := ParseCode(text(t, h.invite(request("branch"))))
	if err != nil {
		t.Fatal(err)
	}
	key := newTestKey(t)
	r := h.enrolAt(code, key, now)
	if r.err != nil || r.refused != nil {
		t.Fatalf("enrolment: %v, %v", r.err, r.refused)
	}
	if !reflect.DeepEqual(r.reply.Networks, []Network{office}) || !reflect.DeepEqual(r.reply.Advertise, request("").Advertise) {
		t.Errorf("reply = %v, %v", r.reply.Networks, r.reply.Advertise)
	}
	id, err := r.reply.Identity(code, key)
	if err != nil || id.Name != "branch" || id.Role != Node || id.ID != r.done.ID || id.Deployment != code.Deployment {
		t.Fatalf("identity = %v %v %v, %v", id.Name, id.Role, id.ID, err)
	}
	if err := VerifyNode(h.Deployment(), h.Revoked)([]*x509.Certificate{id.Certificate, id.CA}); err != nil {
		t.Errorf("VerifyNode = %v", err)
	}
	for range 2 { // before and after a restart
		networks, advertise, ok := h.Rights(id.ID)
		if !ok || !reflect.DeepEqual(networks, []string{"office"}) || !reflect.DeepEqual(advertise, request("").Advertise) {
			t.Errorf("Rights = %v, %v, %v, want those of the invite", networks, advertise, ok)
		}
		h.open()
	}
}

// TestEnrolAfterACut: the node did not get the answer. It has the same key, and
// gets the same certificate; nobody else does.
func TestEnrolAfterACut(t *testing.T) {
	h := newHouse(t)
	code, key := h.invite(request("branch")), newTestKey(t)

	var req bytes.Buffer
	if _, err := Enrol(duplex{strings.NewReader(""), &req}, tlsOf("one"), code, key); err == nil {
		t.Fatal("an enrolment without an answer succeeded")
	}
	cut := duplex{&req, brokenWriter{}}
	done, err := h.ServeEnrol(cut, tlsOf("one"), lookup, now)
	if !errors.Is(err, errCut) || done.ID.IsZero() {
		t.Fatalf("ServeEnrol = %v, %v, want an enrolment and errCut", done, err)
	}

	h.open() // and the gateway was started again in between
	r := h.enrolAt(code, key, now)
	if r.err != nil || !r.done.Again || r.done.ID != done.ID {
		t.Fatalf("the same key again: %v, %+v", r.err, r.done)
	}
	again := h.enrolAt(code, key, now)
	if again.err != nil || !bytes.Equal(again.reply.Certificate, r.reply.Certificate) {
		t.Errorf("a third try gave another certificate, %v", again.err)
	}
	if r := h.enrolAt(code, newTestKey(t), now); !errors.Is(r.err, ErrInviteUsed) {
		t.Errorf("another key: %v, want ErrInviteUsed", r.err)
	}
	if r := h.enrolAt(code, key, code.ExpiresAt.Add(time.Second)); !errors.Is(r.err, ErrInviteExpired) {
		t.Errorf("the same key after the expiry: %v, want ErrInviteExpired", r.err)
	}
}

// duplex is a stream whose two directions are apart.
type duplex struct {
	io.Reader
	io.Writer
}

var errCut = errors.New("cut")

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errCut }

func TestEnrolRefusals(t *testing.T) {
	key := newTestKey(t)
	for name, c := range map[string]struct {
		prepare func(h *house, code *Code)
		at      time.Time
		want    error
	}{
		"expired":        {func(*house, *Code) {}, now.Add(2 * time.Hour), ErrInviteExpired},
		"used":           {func(h *house, c *Code) { h.enrol(*c, newTestKey(h.t)) }, now, ErrInviteUsed},
		"unknown invite": {func(_ *house, c *Code) { c.ID[0] ^= 1 }, now, ErrInviteRefused},
		"wrong secret":   {func(_ *house, c *Code) { c.Secret = secret.New(make([]byte, secretLen)) }, now, ErrInviteRefused},
		"newer invite":   {func(h *house, _ *Code) { h.invite(request("branch")) }, now, ErrInviteWithdrawn},
		"revoked before use": {func(h *house, _ *Code) {
			if _, err := h.Revoke("branch", now); err != nil {
				h.t.Fatal(err)
			}
		}, now, ErrInviteWithdrawn},
		"revoked after use": {func(h *house, c *Code) {
			h.enrol(*c, key)
			if _, err := h.Revoke("branch", now); err != nil {
				h.t.Fatal(err)
			}
		}, now, ErrRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			code := h.invite(request("branch"))
			c.prepare(h, &code)
			before, _ := h.List()
			r := h.enrolAt(code, key, c.at)
			if !errors.Is(r.err, c.want) || !errors.Is(r.refused, c.want) {
				t.Errorf("the node sees %v, the gateway %v, want %v", r.err, r.refused, c.want)
			}
			if !Refused(r.err) {
				t.Errorf("Refused(%v) = false", r.err)
			}
			if after, _ := h.List(); !reflect.DeepEqual(before, after) {
				t.Errorf("the refusal changed the registry: %v, was %v", after, before)
			}
		})
	}
}

// TestStrangerLearnsNothing: without the secret, an invite that exists, was
// used, expired or was withdrawn looks like one that never was, and costs no
// write to disk.
func TestStrangerLearnsNothing(t *testing.T) {
	answer := func(h *house, code Code, at time.Time) []byte {
		code.Secret = secret.New(make([]byte, secretLen))
		var req, out bytes.Buffer
		Enrol(duplex{strings.NewReader(""), &req}, tlsOf("one"), code, newTestKey(t))
		writes := h.st.Updates()
		h.ServeEnrol(duplex{&req, &out}, tlsOf("one"), lookup, at)
		if h.st.Updates() != writes {
			t.Error("a stranger's try was written to the store")
		}
		return out.Bytes()
	}
	h := newHouse(t)
	unknown := sampleCode()
	want := answer(h, unknown, now)
	if len(want) == 0 {
		t.Fatal("no answer at all")
	}
	code := h.invite(request("branch"))
	for name, at := range map[string]time.Time{"open": now, "expired": now.Add(2 * time.Hour)} {
		if got := answer(h, code, at); !bytes.Equal(got, want) {
			t.Errorf("%s: answer %q, want %q", name, got, want)
		}
	}
	h.enrol(code, newTestKey(t))
	if got := answer(h, code, now); !bytes.Equal(got, want) {
		t.Errorf("used: answer %q, want %q", got, want)
	}
}

func TestWrongTriesAreBounded(t *testing.T) {
	h := newHouse(t)
	code := h.invite(request("branch"))
	wrong := code
	wrong.Secret = secret.New(make([]byte, secretLen))
	for i := range maxWrongMACs {
		if r := h.enrolAt(wrong, newTestKey(t), now); !errors.Is(r.err, ErrInviteRefused) {
			t.Fatalf("try %d: %v", i, r.err)
		}
	}
	h.open() // stored, too
	if r := h.enrolAt(code, newTestKey(t), now); !errors.Is(r.err, ErrInviteWithdrawn) {
		t.Errorf("the right secret after %d wrong ones: %v, want ErrInviteWithdrawn", maxWrongMACs, r.err)
	}
	if r := h.enrolAt(wrong, newTestKey(t), now); !errors.Is(r.err, ErrInviteRefused) {
		t.Errorf("a wrong secret after that: %v, want ErrInviteRefused as ever", r.err)
	}
}

// TestMACIsBoundToTheConnection: a request taken from one TLS connection is
// worth nothing on another, nor is its MAC under another CSR.
func TestMACIsBoundToTheConnection(t *testing.T) {
	h := newHouse(t)
	code := h.invite(request("branch"))
	csr := newCSR(t)
	mac, err := enrolMAC(code.Secret, tlsOf("one"), code.ID, csr)
	if err != nil {
		t.Fatal(err)
	}
	good := EnrolRequest{enrolVersion, code.ID, csr, mac}
	other := good
	other.CSR = newCSR(t)
	for name, c := range map[string]struct {
		req  EnrolRequest
		conn string
		want error
	}{
		"another connection": {good, "two", ErrInviteRefused},
		"another CSR":        {other, "one", ErrInviteRefused},
		"no MAC":             {EnrolRequest{enrolVersion, code.ID, csr, nil}, "one", ErrInviteRefused},
		"as it was":          {good, "one", nil},
	} {
		var req bytes.Buffer
		if err := writeMessage(&req, c.req, maxRequest); err != nil {
			t.Fatal(err)
		}
		_, err := h.ServeEnrol(duplex{&req, io.Discard}, tlsOf(c.conn), lookup, now)
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: ServeEnrol = %v, want %v", name, err, c.want)
		}
	}
}

// TestBadRequestsOfAnInvitedNode: the MAC is right, the rest is not.
func TestBadRequestsOfAnInvitedNode(t *testing.T) {
	h := newHouse(t)
	code := h.invite(request("branch"))
	csr := []byte("not a request")
	mac, err := enrolMAC(code.Secret, tlsOf("one"), code.ID, csr)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		req  EnrolRequest
		code EnrolCode
	}{
		"CSR":     {EnrolRequest{enrolVersion, code.ID, csr, mac}, CodeRequest},
		"version": {EnrolRequest{enrolVersion + 1, code.ID, csr, mac}, CodeVersion},
	} {
		var req, out bytes.Buffer
		if err := writeMessage(&req, c.req, maxRequest); err != nil {
			t.Fatal(err)
		}
		h.ServeEnrol(duplex{&req, &out}, tlsOf("one"), lookup, now)
		var reply EnrolReply
		if err := readMessage(&out, &reply, maxReply); err != nil || reply.Error == nil || reply.Error.Code != c.code {
			t.Errorf("%s: answer %+v, %v, want %q", name, reply, err, c.code)
		}
	}
}

func TestStoreFailureGrantsNothing(t *testing.T) {
	h := newHouse(t)
	code, key := h.invite(request("branch")), newTestKey(t)
	h.st.FailUpdates(1)
	r := h.enrolAt(code, key, now)
	if !errors.Is(r.err, ErrEnrol) || !r.done.ID.IsZero() || r.reply.Certificate != nil {
		t.Fatalf("enrolment without a store: %v, %+v", r.err, r.done)
	}
	if r := h.enrolAt(code, key, now); r.err != nil {
		t.Errorf("and afterwards: %v", r.err)
	}
}

func TestAnswerThatDoesNotFit(t *testing.T) {
	h := newHouse(t)
	code, key := h.invite(request("branch")), newTestKey(t)
	var req, out bytes.Buffer
	Enrol(duplex{strings.NewReader(""), &req}, tlsOf("one"), code, key)
	many := func([]string) []Network {
		n := office
		for range 1000 {
			n.Routes = append(n.Routes, n.Routes[0])
		}
		return []Network{n}
	}
	done, err := h.ServeEnrol(duplex{&req, &out}, tlsOf("one"), many, now)
	if err == nil || done.ID.IsZero() {
		t.Errorf("ServeEnrol = %+v, %v, want an enrolment and an error", done, err)
	}
	var reply EnrolReply
	if err := readMessage(&out, &reply, maxReply); err != nil || reply.Error == nil {
		t.Errorf("answer = %+v, %v, want an error in it", reply, err)
	}
}

// TestNodeChecksTheAnswer: the gateway is verified, but a wrong answer must not
// become an identity.
func TestNodeChecksTheAnswer(t *testing.T) {
	h := newHouse(t)
	code, key := h.invite(request("branch")), newTestKey(t)
	sign := func(a *Authority, g Grant) []byte {
		csr, err := NewCSR(key)
		if err != nil {
			t.Fatal(err)
		}
		der, err := a.Sign(csr, g)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	elsewhere, err := NewAuthority(session.NewID(), now)
	if err != nil {
		t.Fatal(err)
	}
	ca := h.authority.cert.Raw
	good := sign(h.authority, Grant{Role: Node, NodeName: "branch", NodeID: session.NewID()})
	otherKey := certify(t, h.authority, Grant{Role: Node, NodeName: "branch", NodeID: session.NewID()}).Certificate.Raw
	for name, c := range map[string]struct {
		reply EnrolReply
		ok    bool
	}{
		"right":              {EnrolReply{Version: 1, Certificate: good, CA: ca}, true},
		"no version":         {EnrolReply{Certificate: good, CA: ca}, false},
		"no certificate":     {EnrolReply{Version: 1, CA: ca}, false},
		"another authority":  {EnrolReply{Version: 1, Certificate: good, CA: elsewhere.cert.Raw}, false},
		"for another key":    {EnrolReply{Version: 1, Certificate: otherKey, CA: ca}, false},
		"another name":       {EnrolReply{Version: 1, Certificate: sign(h.authority, Grant{Role: Node, NodeName: "other", NodeID: session.NewID()}), CA: ca}, false},
		"another role":       {EnrolReply{Version: 1, Certificate: sign(h.authority, Grant{Role: Gateway, NodeName: "branch", NodeID: session.NewID()}), CA: ca}, false},
		"a path as network":  {EnrolReply{Version: 1, Certificate: good, CA: ca, Networks: []Network{{Name: "../../etc/passwd"}}}, false},
		"a network twice":    {EnrolReply{Version: 1, Certificate: good, CA: ca, Networks: []Network{office, office}}, false},
		"a prefix with bits": {EnrolReply{Version: 1, Certificate: good, CA: ca, Advertise: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}}, false},
		"endless networks":   {EnrolReply{Version: 1, Certificate: good, CA: ca, Networks: make([]Network, maxGrants+1)}, false},
	} {
		var in bytes.Buffer
		if err := writeMessage(&in, c.reply, maxReply); err != nil {
			t.Fatal(err)
		}
		_, err := Enrol(duplex{&in, io.Discard}, tlsOf("one"), code, key)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrEnrol) {
			t.Errorf("%s: Enrol = %v, want ok %v", name, err, c.ok)
		}
	}
}

func TestUnknownRefusalIsQuoted(t *testing.T) {
	var in bytes.Buffer
	if err := writeMessage(&in, EnrolReply{Version: 1, Error: &EnrolError{"moon", "full\x1b[2J" + strings.Repeat("x", 999)}}, maxReply); err != nil {
		t.Fatal(err)
	}
	_, err := Enrol(duplex{&in, io.Discard}, tlsOf("one"), sampleCode(), newTestKey(t))
	if !errors.Is(err, ErrEnrol) || strings.Contains(err.Error(), "\x1b") || len(err.Error()) > 500 {
		t.Errorf("Enrol = %q, want a short, quoted text", err)
	}
}

func TestJoinKeyIsKept(t *testing.T) {
	h := newHouse(t)
	code := h.invite(request("branch"))
	st := storetest.New(t) // the node's
	key, err := JoinKey(st, code)
	if err != nil {
		t.Fatal(err)
	}
	again, err := JoinKey(st, code)
	if err != nil || !again.(interface{ Equal(crypto.PrivateKey) bool }).Equal(key) {
		t.Fatalf("a second JoinKey gave another key, %v", err)
	}
	id := h.enrol(code, again)
	if err := st.Update(func(tx store.Tx) error { return Joined(tx, code, id) }); err != nil {
		t.Fatal(err)
	}
	var known KnownGateway
	err = st.View(func(tx store.Tx) (err error) {
		if _, err := LoadIdentity(tx, code.Deployment, Node); err != nil {
			return err
		}
		if _, err := tx.Get(bucketJoining, code.ID.String()); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the key of the invite is still there: %v", err)
		}
		known, err = LookupGateway(tx, code.Gateway)
		return err
	})
	if err != nil || known != (KnownGateway{code.Deployment, code.GatewayID}) {
		t.Errorf("after Joined: gateway %v, %v", known, err)
	}
}

func TestReadMessageIsBounded(t *testing.T) {
	for name, in := range map[string][]byte{
		"nothing":       nil,
		"half a length": {0, 0},
		"4 GiB":         {0xff, 0xff, 0xff, 0xff},
		"one too many":  binary.BigEndian.AppendUint32(nil, maxRequest+1),
		"cut off":       append(binary.BigEndian.AppendUint32(nil, 100), "{"...),
		"no JSON":       append(binary.BigEndian.AppendUint32(nil, 1), "{"...),
		"two values":    append(binary.BigEndian.AppendUint32(nil, 4), "{}{}"...),
	} {
		var req EnrolRequest
		if err := readMessage(bytes.NewReader(in), &req, maxRequest); err == nil {
			t.Errorf("%s: readMessage = nil, want an error", name)
		}
	}
}

// FuzzServeEnrol: the attacker is anybody who reaches the gateway's port.
func FuzzServeEnrol(f *testing.F) {
	seed, err := json.Marshal(EnrolRequest{enrolVersion, InviteID{1}, []byte("csr"), []byte("mac")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(binary.BigEndian.AppendUint32(nil, uint32(len(seed))), seed...))
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	st := storetest.New(f)
	if _, err := InitGateway(st, "gw", now); err != nil {
		f.Fatal(err)
	}
	r, err := OpenRegistry(st)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var out bytes.Buffer
		done, err := r.ServeEnrol(duplex{bytes.NewReader(in), &out}, tlsOf("one"), lookup, now)
		if err == nil || !done.ID.IsZero() {
			t.Fatalf("%q enrolled %+v", in, done)
		}
		if out.Len() > 256 {
			t.Errorf("%d octets answered to a stranger", out.Len())
		}
	})
}

// FuzzEnrolReply: the attacker is a gateway that went bad.
func FuzzEnrolReply(f *testing.F) {
	seed, err := json.Marshal(EnrolReply{Version: 1, Certificate: []byte{1}, CA: []byte{2}, Networks: []Network{office}, Advertise: office.Pools})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(binary.BigEndian.AppendUint32(nil, uint32(len(seed))), seed...))
	key, err := NewKey()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		_, err := Enrol(duplex{bytes.NewReader(in), io.Discard}, tlsOf("one"), sampleCode(), key)
		if err == nil {
			t.Fatalf("%q became an identity", in)
		}
	})
}
