package noise

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"net/netip"
	"testing"
	"time"

	"tunneld/internal/secret"
)

// end is one end of a handshake in tests.
type end struct {
	key  *StaticKey
	peer *Peer // the other
}

const testStart = Instant(1000 * time.Second)

var testWall = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func randomSecret(t testing.TB) secret.Value {
	t.Helper()
	b := make([]byte, KeySize)
	rand.Read(b)
	return secret.New(b)
}

func newStatic(t testing.TB) *StaticKey {
	t.Helper()
	k, err := NewStaticKey(randomSecret(t))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func pair(t testing.TB) (a, b *end) {
	t.Helper()
	ka, kb := newStatic(t), newStatic(t)
	return &end{ka, NewPeer(kb.Public())}, &end{kb, NewPeer(ka.Public())}
}

func initiate(t testing.TB, a *end, index uint32, now Instant) ([]byte, *Handshake) {
	t.Helper()
	msg, h, err := a.key.CreateInitiation(nil, a.peer, index, now, testWall)
	if err != nil {
		t.Fatal(err)
	}
	return msg, h
}

func answer(t testing.TB, b *end, msg []byte, index uint32, now Instant, psk secret.Value) ([]byte, Keys) {
	t.Helper()
	var in Initiation
	var keys Keys
	if !b.key.CheckMAC1(msg) {
		t.Fatal("mac1 of the initiation is refused")
	}
	if err := b.key.ConsumeInitiation(&in, msg); err != nil {
		t.Fatal(err)
	}
	if in.Peer() != b.peer.Public() {
		t.Fatalf("Peer() = %v, want %v", in.Peer(), b.peer.Public())
	}
	if err := in.Accept(b.peer, now); err != nil {
		t.Fatal(err)
	}
	resp, err := in.CreateResponse(nil, b.peer, index, now, &keys, psk)
	if err != nil {
		t.Fatal(err)
	}
	return resp, keys
}

// handshake is a whole one, a initiates; the pairs that come out fit.
func handshake(t testing.TB, a, b *end, now Instant) (ka, kb *Keypair) {
	t.Helper()
	msg, h := initiate(t, a, 0xa1, now)
	resp, keysB := answer(t, b, msg, 0xb2, now, secret.Value{})
	var keysA Keys
	if _, err := h.ConsumeResponse(a.key, resp, now, &keysA); err != nil {
		t.Fatal(err)
	}
	return NewKeypair(&keysA), NewKeypair(&keysB)
}

func seal(t testing.TB, k *Keypair, plaintext string) []byte {
	t.Helper()
	n, ok := k.NextCounters(1)
	if !ok {
		t.Fatal("no counter left")
	}
	return k.Seal(nil, n, []byte(plaintext), 1420)
}

func TestHandshakeAndData(t *testing.T) {
	a, b := pair(t)
	ka, kb := handshake(t, a, b, testStart)
	if ka.Local != 0xa1 || ka.Remote != 0xb2 || kb.Local != 0xb2 || kb.Remote != 0xa1 {
		t.Errorf("indices are %x %x, %x %x", ka.Local, ka.Remote, kb.Local, kb.Remote)
	}
	if !ka.Initiator || kb.Initiator {
		t.Errorf("Initiator = %v, %v, want true, false", ka.Initiator, kb.Initiator)
	}
	for _, dir := range []struct{ from, to *Keypair }{{ka, kb}, {kb, ka}} {
		for _, text := range []string{"", "x", "sixteen octets..", "a packet that is longer than one block"} {
			msg := seal(t, dir.from, text)
			if Classify(msg) != KindTransport || Receiver(msg) != dir.to.Local {
				t.Errorf("message is of kind %v for %x, want %v for %x", Classify(msg), Receiver(msg), KindTransport, dir.to.Local)
			}
			again := bytes.Clone(msg)
			got, err := dir.to.Open(msg, testStart)
			if err != nil || len(got)%PaddingMultiple != 0 || !bytes.Equal(got[:len(text)], []byte(text)) {
				t.Errorf("Open(Seal(%q)) = %q, %v", text, got, err)
			}
			if _, err := dir.to.Open(again, testStart); !errors.Is(err, ErrReplay) {
				t.Errorf("Open a second time = %v, want %v", err, ErrReplay)
			}
		}
	}
}

// The initiator alone can try two preshared keys; the answer names the one.
func TestPresharedKeys(t *testing.T) {
	old, new := randomSecret(t), randomSecret(t)
	for _, c := range []struct {
		name    string
		answers secret.Value
		tries   []secret.Value
		used    int
		err     error
	}{
		{"none at both ends", secret.Value{}, nil, 0, nil},
		{"none is all zero", secret.New(make([]byte, 32)), nil, 0, nil},
		{"the same", old, []secret.Value{old}, 0, nil},
		{"armed at both ends", new, []secret.Value{new, old}, 0, nil},
		{"not yet armed at the responder", old, []secret.Value{new, old}, 1, nil},
		{"neither", randomSecret(t), []secret.Value{new, old}, 0, ErrAuth},
		{"missing here", old, nil, 0, ErrAuth},
		{"wrong size", old, []secret.Value{secret.New([]byte("short"))}, 0, ErrBadKey},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := pair(t)
			msg, h := initiate(t, a, 1, testStart)
			resp, keysB := answer(t, b, msg, 2, testStart, c.answers)
			var keysA Keys
			used, err := h.ConsumeResponse(a.key, resp, testStart, &keysA, c.tries...)
			if used != c.used || !errors.Is(err, c.err) {
				t.Fatalf("ConsumeResponse = %d, %v, want %d, %v", used, err, c.used, c.err)
			}
			if err == nil && (keysA.Send != keysB.Receive || keysA.Receive != keysB.Send) {
				t.Error("the keys of the two ends do not fit")
			}
		})
	}
}

// A wrong answer leaves the handshake as it was: the right one still fits.
func TestWrongAnswerHarmsNothing(t *testing.T) {
	a, b := pair(t)
	msg, h := initiate(t, a, 7, testStart)
	resp, _ := answer(t, b, msg, 8, testStart, secret.Value{})
	var keys Keys
	for i := respReceiverAt; i < respMAC1At; i++ {
		bad := bytes.Clone(resp)
		bad[i] ^= 0x40
		if _, err := h.ConsumeResponse(a.key, bad, testStart, &keys); err == nil {
			t.Fatalf("an answer with octet %d changed is accepted", i)
		}
	}
	if keys != (Keys{}) {
		t.Error("refused answers left keys")
	}
	if _, err := h.ConsumeResponse(a.key, resp, testStart, &keys); err != nil {
		t.Errorf("the right answer after wrong ones: %v", err)
	}
	if _, err := h.ConsumeResponse(a.key, resp, testStart, &keys); !errors.Is(err, ErrMalformed) {
		t.Errorf("an answer to a wiped handshake: %v, want %v", err, ErrMalformed)
	}
}

func TestRefusedInitiations(t *testing.T) {
	a, b := pair(t)
	first, _ := initiate(t, a, 1, testStart)
	answer(t, b, first, 2, testStart, secret.Value{})
	// One test wall clock for all: each next is one tick above the last.
	second, _ := initiate(t, a, 3, testStart)
	third, _ := initiate(t, a, 4, testStart)
	stranger, _ := pair(t)
	stranger.peer = NewPeer(b.key.Public())
	foreign, _ := initiate(t, stranger, 5, testStart)

	try := func(msg []byte, at Instant) error {
		var in Initiation
		if !b.key.CheckMAC1(msg) {
			return errors.New("mac1")
		}
		if err := b.key.ConsumeInitiation(&in, msg); err != nil {
			return err
		}
		return in.Accept(b.peer, at)
	}
	later := testStart.Add(time.Second)
	for _, c := range []struct {
		name string
		msg  []byte
		at   Instant
		want error
	}{
		{"replayed", first, later, ErrReplay},
		{"within 20 ms", second, testStart.Add(InitiationInterval), ErrFlood},
		{"of somebody else", foreign, later, ErrAuth},
		{"after 20 ms", third, testStart.Add(InitiationInterval + 1), nil},
		{"older than accepted", second, later, ErrReplay},
	} {
		if err := try(c.msg, c.at); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	for i := range initMAC1At + macSize {
		bad, _ := initiate(t, a, 6, later)
		bad[i] ^= 1
		if b.key.CheckMAC1(bad) {
			t.Fatalf("mac1 holds with octet %d changed", i)
		}
	}
	for i := senderAt + 4; i < initMAC1At; i++ { // past mac1, by one who knows the public key
		bad, _ := initiate(t, a, 6, later)
		bad[i] ^= 0x80 // also the top bit of the one-time key, which X25519 ignores
		if err := try(remac(b.key, bad), later.Add(time.Minute)); !errors.Is(err, ErrAuth) {
			t.Fatalf("octet %d changed: %v, want %v", i, err, ErrAuth)
		}
	}
}

// remac gives a changed message a mac1 that fits, as anyone can.
func remac(k *StaticKey, msg []byte) []byte {
	public := k.Public()
	key := hash2([]byte(labelMAC1), public[:])
	at := len(msg) - 2*macSize
	copy(msg[at:], newMAC(key[:]).of(msg[:at])[:])
	return msg
}

func TestLowOrderKeys(t *testing.T) {
	k := newStatic(t)
	if _, _, err := k.CreateInitiation(nil, NewPeer(PublicKey{}), 1, testStart, testWall); !errors.Is(err, ErrBadKey) {
		t.Errorf("initiation to a peer key of low order: %v, want %v", err, ErrBadKey)
	}
	a, b := pair(t)
	msg, h := initiate(t, a, 1, testStart)
	resp, _ := answer(t, b, msg, 2, testStart, secret.Value{})
	clear(msg[initEphemeralAt:initStaticAt])
	var in Initiation
	if err := b.key.ConsumeInitiation(&in, msg); !errors.Is(err, ErrAuth) {
		t.Errorf("initiation with a one-time key of low order: %v, want %v", err, ErrAuth)
	}
	clear(resp[respEphemeralAt:respEmptyAt])
	var keys Keys
	if _, err := h.ConsumeResponse(a.key, resp, testStart, &keys); !errors.Is(err, ErrAuth) {
		t.Errorf("response with a one-time key of low order: %v, want %v", err, ErrAuth)
	}
	for _, size := range []int{0, 31, 33} {
		if _, err := NewStaticKey(secret.New(make([]byte, size))); !errors.Is(err, ErrBadKey) {
			t.Errorf("NewStaticKey of %d octets: %v, want %v", size, err, ErrBadKey)
		}
	}
}

// A response is built only on a proven initiation, of the same peer, once.
func TestResponseNeedsAcceptance(t *testing.T) {
	a, b := pair(t)
	msg, _ := initiate(t, a, 1, testStart)
	var in Initiation
	var keys Keys
	if err := b.key.ConsumeInitiation(&in, msg); err != nil {
		t.Fatal(err)
	}
	if _, err := in.CreateResponse(nil, b.peer, 2, testStart, &keys, secret.Value{}); !errors.Is(err, errNotAccepted) {
		t.Errorf("before Accept: %v, want %v", err, errNotAccepted)
	}
	if err := b.key.ConsumeInitiation(&in, msg); err != nil {
		t.Fatal(err)
	}
	if err := in.Accept(NewPeer(b.key.Public()), testStart); !errors.Is(err, ErrAuth) {
		t.Errorf("Accept with another peer: %v, want %v", err, ErrAuth)
	}
	if err := in.Accept(b.peer, testStart); err != nil {
		t.Fatal(err)
	}
	if _, err := in.CreateResponse(nil, b.peer, 2, testStart, &keys, secret.New([]byte("short"))); !errors.Is(err, ErrBadKey) {
		t.Errorf("short preshared key: %v, want %v", err, ErrBadKey)
	}
	if _, err := in.CreateResponse(nil, b.peer, 2, testStart, &keys, secret.Value{}); !errors.Is(err, errNotAccepted) {
		t.Errorf("after it was wiped: %v, want %v", err, errNotAccepted)
	}
}

// A clock that went back at the initiator is mended by the other end's word.
func TestStamps(t *testing.T) {
	a, b := pair(t)
	msg, _ := initiate(t, a, 1, testStart)
	answer(t, b, msg, 2, testStart, secret.Value{})
	last := b.peer.LastStamp()
	if last != StampOf(testWall) {
		t.Errorf("LastStamp = %x, want that of %v", last, testWall)
	}

	restarted := &end{a.key, NewPeer(b.key.Public())} // knows nothing of its last stamp
	back := testWall.Add(-24 * time.Hour)
	try := func() error {
		msg, _, err := restarted.key.CreateInitiation(nil, restarted.peer, 3, testStart, back)
		if err != nil {
			t.Fatal(err)
		}
		var in Initiation
		if err := b.key.ConsumeInitiation(&in, msg); err != nil {
			t.Fatal(err)
		}
		return in.Accept(b.peer, testStart.Add(time.Minute))
	}
	if err := try(); !errors.Is(err, ErrReplay) {
		t.Errorf("with the clock set back: %v, want %v", err, ErrReplay)
	}
	restarted.peer.SetSendFloor(last)
	restarted.peer.SetSendFloor(Stamp{}) // never lowers
	if err := try(); err != nil {
		t.Errorf("after the last accepted stamp was told: %v", err)
	}
	if got := b.peer.LastStamp(); got != last.next() {
		t.Errorf("LastStamp = %x, want one tick above %x", got, last)
	}

	b.peer.SetStampFloor(Stamp{1})
	if got := b.peer.LastStamp(); got != last.next() {
		t.Errorf("the floor was lowered to %x", got)
	}
	if p := NewPeer(a.key.Public()); true {
		p.SetStampFloor(last)
		var in Initiation
		if err := b.key.ConsumeInitiation(&in, msg); err != nil {
			t.Fatal(err)
		}
		if err := in.Accept(p, testStart); !errors.Is(err, ErrReplay) {
			t.Errorf("at the floor itself: %v, want %v", err, ErrReplay)
		}
	}
}

func TestStampTicks(t *testing.T) {
	s := StampOf(time.Unix(1, 999_999_999))
	for range 200 {
		n := s.next()
		if !n.After(s) || s.After(n) {
			t.Fatalf("%x is not after %x", n, s)
		}
		if nanos := uint32(n[8])<<24 | uint32(n[9])<<16 | uint32(n[10])<<8 | uint32(n[11]); nanos >= second {
			t.Fatalf("%x has %d nanoseconds", n, nanos)
		}
		s = n
	}
	top := Stamp(bytes.Repeat([]byte{0xff}, StampSize))
	if top.next() != top {
		t.Errorf("after the last stamp comes %x", top.next())
	}
}

func TestCookies(t *testing.T) {
	a, b := pair(t)
	src, other := netip.MustParseAddrPort("192.0.2.1:51820"), netip.MustParseAddrPort("192.0.2.1:51821")
	checker := NewCookieChecker()
	now := testStart
	msg, h := initiate(t, a, 0x77, now)
	if checker.CheckMAC2(msg, src, now) {
		t.Fatal("mac2 holds before there is a cookie")
	}
	reply := checker.Reply(nil, b.key, msg, src, now)
	if Classify(reply) != KindCookieReply || Receiver(reply) != h.Index() {
		t.Fatalf("reply is of kind %v for %x", Classify(reply), Receiver(reply))
	}
	if checker.CheckMAC2(msg, src, now) {
		t.Fatal("mac2 of zeros holds")
	}
	bad := bytes.Clone(reply)
	bad[40] ^= 1
	if err := a.peer.ConsumeCookieReply(bad, now); !errors.Is(err, ErrAuth) {
		t.Errorf("changed reply: %v, want %v", err, ErrAuth)
	}
	if err := a.peer.ConsumeCookieReply(reply[:63], now); !errors.Is(err, ErrMalformed) {
		t.Errorf("cut reply: %v, want %v", err, ErrMalformed)
	}
	if err := a.peer.ConsumeCookieReply(reply, now); err != nil {
		t.Fatal(err)
	}
	if err := a.peer.ConsumeCookieReply(reply, now); !errors.Is(err, ErrReplay) {
		t.Errorf("the same reply again: %v, want %v", err, ErrReplay)
	}
	for _, c := range []struct {
		name  string
		after time.Duration
		src   netip.AddrPort
		want  bool
	}{
		{"from there", time.Second, src, true},
		{"from there, mapped", time.Second, netip.AddrPortFrom(netip.AddrFrom16(src.Addr().As16()), src.Port()), true},
		{"from another port", time.Second, other, false},
		{"just in time", CookieRefreshTime - 1, src, true},
		{"too late", CookieRefreshTime, src, false},
	} {
		msg, _ := initiate(t, a, 0x78, now.Add(c.after))
		if !b.key.CheckMAC1(msg) {
			t.Fatal("mac1 is wrong")
		}
		if got := checker.CheckMAC2(msg, c.src, now.Add(c.after)); got != c.want {
			t.Errorf("%s: CheckMAC2 = %v, want %v", c.name, got, c.want)
		}
		if late := c.after >= CookieRefreshTime; late != bytes.Equal(msg[initMAC1At+macSize:], make([]byte, macSize)) {
			t.Errorf("%s: mac2 is %x", c.name, msg[initMAC1At+macSize:])
		}
	}
	// Anyone under load may ask it of a response, too.
	init, _ := initiate(t, a, 0x79, now)
	resp, _ := answer(t, b, init, 0x80, now, secret.Value{})
	reply = NewCookieChecker().Reply(nil, a.key, resp, other, now)
	if err := b.peer.ConsumeCookieReply(reply, now); err != nil {
		t.Errorf("cookie for a response: %v", err)
	}
	later := now.Add(CookieRefreshTime)
	checker.Reply(nil, b.key, msg, src, later)
	msg, _ = initiate(t, a, 0x81, now.Add(time.Second))
	if checker.CheckMAC2(msg, src, later) {
		t.Error("a cookie of the last secret still holds")
	}
}

func TestRateLimiter(t *testing.T) {
	l := NewRateLimiter(64)
	now := testStart
	count := func(src string, n int) (passed int) {
		for range n {
			if l.Allow(netip.MustParseAddr(src), now) {
				passed++
			}
		}
		return passed
	}
	for _, c := range []struct {
		src  string
		n    int
		want int
		then time.Duration
	}{
		{"192.0.2.1", 100, handshakeBurst, 0},
		{"::ffff:192.0.2.1", 100, 0, 0}, // the same address
		{"192.0.2.2", 3, 3, 0},
		{"2001:db8::1", 100, handshakeBurst, 0},
		{"2001:db8::ffff:2", 100, 0, 0}, // the same /64
		{"2001:db8:0:1::1", 1, 1, time.Second / 2},
		{"192.0.2.1", 100, handshakeBurst, 50 * time.Millisecond},
		{"192.0.2.1", 100, 1, 0},
	} {
		if got := count(c.src, c.n); got != c.want {
			t.Errorf("%s: %d of %d passed, want %d", c.src, got, c.n, c.want)
		}
		now = now.Add(c.then)
	}
	// A flood from everywhere takes no more memory and shuts nobody out.
	for i := range 1 << 16 {
		l.Allow(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), now)
	}
	if got := count("198.51.100.7", 1); got != 1 {
		t.Error("a new source is shut out by a flood of others")
	}
	if got := len(l.buckets) * limiterWays; got != 64 {
		t.Errorf("the limiter grew to %d places, want 64", got)
	}
}

// What a handshake knew is gone when it is over.
func TestSecretsAreWiped(t *testing.T) {
	var made []*ecdh.PrivateKey
	keep := generate
	generate = func() (*ecdh.PrivateKey, error) {
		k, err := keep()
		made = append(made, k)
		return k, err
	}
	t.Cleanup(func() { generate = keep })

	a, b := pair(t)
	msg, h := initiate(t, a, 1, testStart)
	resp, keysB := answer(t, b, msg, 2, testStart, secret.Value{})
	var keysA Keys
	if _, err := h.ConsumeResponse(a.key, resp, testStart, &keysA); err != nil {
		t.Fatal(err)
	}
	if h.state != (symmetric{}) || h.ephemeral != nil {
		t.Error("the handshake's state is still there")
	}
	for i, k := range made {
		if !bytes.Equal(k.Bytes(), make([]byte, KeySize)) {
			t.Errorf("one-time key %d is still there", i)
		}
	}
	var in Initiation
	if err := b.key.ConsumeInitiation(&in, msg); err != nil {
		t.Fatal(err)
	}
	in.Wipe()
	if in.state != (symmetric{}) || in.sealed != [StampSize + TagSize]byte{} {
		t.Error("the initiation's state is still there")
	}
	keysB.Wipe()
	if keysB != (Keys{}) {
		t.Error("Keys.Wipe left something")
	}
	b.peer.Wipe()
	if b.peer.shared != [KeySize]byte{} || b.peer.cookie != [macSize]byte{} {
		t.Error("Peer.Wipe left something")
	}
	b.key.Wipe()
	if !bytes.Equal(b.key.private.Bytes(), make([]byte, KeySize)) {
		t.Error("StaticKey.Wipe left the key")
	}
}

// The static-static secret follows the interface's key.
func TestPeerFollowsKeyChange(t *testing.T) {
	a, b := pair(t)
	handshake(t, a, b, testStart)
	next := newStatic(t)
	last := b.peer.LastStamp()
	b.key, a.peer = next, NewPeer(next.Public())
	a.peer.SetSendFloor(last)
	handshake(t, a, b, testStart.Add(time.Second))
}
