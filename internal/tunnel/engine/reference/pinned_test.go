package reference

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
	"tunneld/internal/tunnel/engine/meter"
)

// This file holds what this package believes of wireguard-go, so that an
// update which changes it is noticed here.

// watchBind counts what a device sends, by message type, and loses it.
type watchBind struct {
	conn.Bind
	sent chan []byte
}

func (w *watchBind) Send(bufs [][]byte, _ conn.Endpoint) error {
	for _, b := range bufs {
		w.sent <- append([]byte(nil), b...)
	}
	return nil
}

// initiations reads how many initiations were sent until none comes for d.
func (w *watchBind) initiations(d time.Duration) (n int) {
	for {
		b := within(w.sent, d)
		if b == nil {
			return n
		}
		if isInitiation(b) {
			n++
		}
	}
}

// bareDevice is a wireguard-go device with one peer, on a bind that tells what
// is sent.
func bareDevice(t *testing.T, log *device.Logger) (*device.Device, *device.Peer, *watchBind) {
	t.Helper()
	e := loopback(t)
	w := &watchBind{&bind{hub: e.hub, mayShake: new(roles).mayLeave}, make(chan []byte, 100)}
	m := newMemTUN("bare")
	d := device.NewDevice(m, w, log)
	t.Cleanup(d.Close)
	if err := d.Up(); err != nil {
		t.Fatal(err)
	}
	private, _ := enginetest.NewKey(t)
	_, public := enginetest.NewKey(t)
	r := newRequest(0)
	r.key("private_key", private)
	r.peer(public, false)
	r.line("endpoint", "127.0.0.1:9")
	if err := d.IpcSet(string(r.b)); err != nil {
		t.Fatal(err)
	}
	return d, d.LookupPeer(device.NoisePublicKey(public)), w
}

func TestPinnedInitiationInterval(t *testing.T) {
	armed := make(chan *device.Peer, 10)
	d, peer, w := bareDevice(t, newLogger(loopback(t).log, func(p *device.Peer, what notice) {
		if what == sendsHandshake {
			armed <- p
		}
	}))
	_ = d
	send := func() int {
		if err := peer.SendHandshakeInitiation(false); err != nil {
			t.Fatal(err)
		}
		return w.initiations(50 * time.Millisecond)
	}
	if got := send(); got != 1 {
		t.Fatalf("first call: %d initiations, want 1", got)
	}
	select {
	case p := <-armed:
		if p != peer {
			t.Errorf("log line of %v, want %v", p, peer)
		}
	default:
		t.Error("no log line of an initiation, on which postponed handshakes rest")
	}
	if got := send(); got != 0 {
		t.Errorf("within 5 s: %d initiations, want 0 and no error", got)
	}
	peer.ExpireCurrentKeypairs()
	if got := send(); got != 1 {
		t.Errorf("after ExpireCurrentKeypairs: %d initiations, want 1", got)
	}
}

func TestPinnedKeepaliveWithoutKeypair(t *testing.T) {
	_, peer, w := bareDevice(t, device.NewLogger(device.LogLevelSilent, ""))
	peer.SendKeepalive()
	if got := w.initiations(50 * time.Millisecond); got != 1 {
		t.Errorf("SendKeepalive without a keypair: %d initiations, want 1", got)
	}
}

func TestPinnedConfiguration(t *testing.T) {
	d, peer, _ := bareDevice(t, device.NewLogger(device.LogLevelSilent, ""))
	text, err := d.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	key := strings.TrimSpace(strings.Split(strings.Split(text, "public_key=")[1], "\n")[0])
	set := func(lines ...string) {
		t.Helper()
		if err := d.IpcSet(strings.Join(lines, "\n")); err != nil {
			t.Fatal(err)
		}
	}
	has := func(want string, yes bool) {
		t.Helper()
		text, err := d.IpcGet()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text, want) != yes {
			t.Errorf("configuration has %q = %v, want %v", want, !yes, yes)
		}
	}
	set("public_key="+key, "update_only=true", "allowed_ip=10.0.0.0/24", "allowed_ip=fd00::/64")
	set("public_key="+key, "update_only=true", "allowed_ip=-10.0.0.0/24")
	has("allowed_ip=10.0.0.0/24", false)
	has("allowed_ip=fd00::/64", true)
	set("public_key="+key, "remove=true")
	set("public_key="+key, "update_only=true", "allowed_ip=10.0.0.0/24")
	has("public_key="+key, false)
	if got := d.LookupPeer([32]byte{}); got != nil || peer == nil {
		t.Errorf("LookupPeer of nobody = %v, want nil", got)
	}
}

// TestPinnedInitiationIsHeldBack shows why the bind looks at initiations: with
// data for a peer that never started a handshake, wireguard-go starts one.
func TestPinnedInitiationIsHeldBack(t *testing.T) {
	ea, eb := loopback(t), loopback(t)
	a, b := memPair(t, ea, eb)
	if err := b.SetEndpoint(b.session.ID, ea.addr()); err != nil {
		t.Fatal(err)
	}
	b.tun.send(bToA(100))
	enginetest.Eventually(t, "b wants a handshake", func() bool { return b.sessions[b.session.ID].armedAt.Load() != 0 })
	if p := a.tun.receive(200 * time.Millisecond); p != nil {
		t.Fatalf("a responder's packet arrived before the dialler's handshake")
	}
	if s, err := a.Stats(a.session.ID); err != nil || !s.LastHandshake.IsZero() {
		t.Fatalf("stats of the dialler = %+v, %v, want no handshake", s, err)
	}
	if err := a.Handshake(a.session.ID, false); err != nil {
		t.Fatal(err)
	}
	if p := a.tun.receive(patience); len(p) != 100 {
		t.Errorf("after the dialler's handshake: %d octets arrived, want the 100 that waited", len(p))
	}
}

// opened is the meter of a session that is open.
func opened() *meter.Meter {
	m := new(meter.Meter)
	m.SetGate(engine.Open)
	return m
}

func TestRolesTellPeersApart(t *testing.T) {
	_, stock := enginetest.NewKey(t)
	_, theirs := enginetest.NewKey(t)
	_, ours := enginetest.NewKey(t)
	initiationTo := func(k engine.PublicKey) []byte {
		m := make([]byte, device.MessageInitiationSize)
		m[0] = device.MessageInitiationType
		var g device.CookieGenerator // wireguard-go's own
		g.Init(device.NoisePublicKey(k))
		g.AddMacs(m)
		return m
	}
	r := new(roles)
	if !r.mayLeave(initiationTo(ours)) {
		t.Error("without any session: held back")
	}
	r.set(theirs, opened(), true)
	if r.mayLeave(initiationTo(theirs)) {
		t.Error("to the only session, whose peer starts: not held back")
	}
	for _, more := range []engine.PublicKey{ours, stock} { // ours as rare as theirs, then the more frequent
		r.set(more, opened(), false)
		if r.mayLeave(initiationTo(theirs)) || !r.mayLeave(initiationTo(ours)) {
			t.Error("initiations of a mixed device: want held back for the peer that starts, and only for it")
		}
	}
	r.set(ours, opened(), true)
	if r.mayLeave(initiationTo(ours)) {
		t.Error("after the role changed: not held back")
	}
	shut := new(meter.Meter)
	r.forget(ours)
	r.set(ours, shut, false)
	response := func(k engine.PublicKey) []byte {
		m := message(device.MessageResponseType, 1, device.MessageResponseSize)
		var g device.CookieGenerator
		g.Init(device.NoisePublicKey(k))
		g.AddMacs(m)
		return m
	}
	if r.mayLeave(response(ours)) || r.mayLeave(initiationTo(ours)) || !r.mayLeave(response(theirs)) {
		t.Error("with one session closed: want its handshake messages held back, and those of no other")
	}
	shut.SetGate(engine.Quarantined)
	if !r.mayLeave(response(ours)) {
		t.Error("in quarantine: held back")
	}
	r.forget(theirs)
	r.forget(ours)
	if !r.mayLeave(initiationTo(theirs)) {
		t.Error("after the session is gone: held back")
	}
}

func TestPostponedHandshake(t *testing.T) {
	ea, eb := loopback(t), loopback(t)
	a, b := memPair(t, ea, eb)
	began := time.Now()
	if !arrives(a.tun, b.tun, aToB(100)) {
		t.Fatal("no packet crosses")
	}
	first := func() time.Time {
		s, err := a.Stats(a.session.ID)
		if err != nil {
			t.Fatal(err)
		}
		return s.LastHandshake
	}
	before := first()
	if err := a.Handshake(a.session.ID, false); err != nil {
		t.Fatal(err)
	}
	enginetest.Eventually(t, "a second handshake", func() bool { return first().After(before) })
	if d := first().Sub(began); d < device.RekeyTimeout {
		t.Errorf("second handshake %v after the first one at most, want %v and more", d, device.RekeyTimeout)
	}
	if err := a.Handshake(a.session.ID, false); err != nil { // pending at the end: Close cancels it
		t.Fatal(err)
	}
	if err := b.Handshake(b.session.ID, true); err == nil {
		t.Error("Handshake where the peer starts them: no error")
	}
}

func TestPresharedKeyMismatch(t *testing.T) {
	ea, eb := loopback(t), loopback(t)
	a, b := memPair(t, ea, eb)
	key := session.NewID() // any 16 octets
	psk := append(key[:], key[:]...)
	b.session.PresharedKey = secretOf(psk)
	if err := b.Add(b.session); err != nil {
		t.Fatal(err)
	}
	if crosses(a.tun, b.tun, aToB(100)) {
		t.Fatal("a packet crosses with different preshared keys")
	}
	a.session.PresharedKey = secretOf(psk)
	if err := a.Add(a.session); err != nil {
		t.Fatal(err)
	}
	if err := a.Handshake(a.session.ID, true); err != nil {
		t.Fatal(err)
	}
	if got := b.tun.receive(patience); got == nil {
		t.Error("no packet crosses after both have the same preshared key")
	}
}

func TestAddKeepsKeypairs(t *testing.T) {
	ea, eb := loopback(t), loopback(t)
	a, b := memPair(t, ea, eb)
	if !arrives(a.tun, b.tun, aToB(100)) {
		t.Fatal("no packet crosses")
	}
	before, err := b.Stats(b.session.ID)
	if err != nil {
		t.Fatal(err)
	}
	b.session.AllowedIPs = enginetest.Prefixes("10.0.0.1/32", "10.7.0.0/16")
	b.session.PresharedKey = secretOf(make([]byte, engine.KeySize-1))
	if err := b.Add(b.session); err == nil {
		t.Error("Add with a preshared key of 31 octets: no error")
	}
	b.session.PresharedKey = secretOf([]byte(strings.Repeat("k", engine.KeySize)))
	if err := b.Add(b.session); err != nil {
		t.Fatal(err)
	}
	for _, src := range []string{"10.0.0.1", "10.7.1.1"} {
		if !arrives(a.tun, b.tun, packet(src, "10.0.0.2", 200)) {
			t.Errorf("a packet from %s does not cross", src)
		}
	}
	if !arrives(b.tun, a.tun, bToA(300)) {
		t.Error("no packet crosses back: the learnt endpoint was forgotten")
	}
	enginetest.Eventually(t, "status is read again", func() bool {
		s, err := b.Stats(b.session.ID)
		return err == nil && s.RxPackets == 3 && s.LastHandshake.Equal(before.LastHandshake) && s.Endpoint == ea.addr()
	})
	if err := b.SetAllowedIPs(b.session.ID, enginetest.Prefixes("10.0.0.1/32")); err != nil {
		t.Fatal(err)
	}
	if crosses(a.tun, b.tun, packet("10.7.1.1", "10.0.0.2", 200)) {
		t.Error("a packet crosses from a prefix that was taken away")
	}
	if !arrives(a.tun, b.tun, aToB(100)) {
		t.Error("no packet crosses from the prefix that was left")
	}
}

func TestNewKeyKeepsCounters(t *testing.T) {
	ea, eb := loopback(t), loopback(t)
	a, b := memPair(t, ea, eb)
	if !arrives(a.tun, b.tun, aToB(100)) {
		t.Fatal("no packet crosses")
	}
	private, public := enginetest.NewKey(t)
	if err := a.SetPrivateKey(secretOf(private)); err != nil {
		t.Fatal(err)
	}
	b.session.PeerKey = public
	if err := b.Add(b.session); err != nil {
		t.Fatal(err)
	}
	if !arrives(a.tun, b.tun, aToB(100)) {
		t.Error("no packet crosses with the new key")
	}
	if s, err := b.Stats(b.session.ID); err != nil || s.RxPackets != 2 {
		t.Errorf("stats after a change of key = %+v, %v, want 2 packets received in all", s, err)
	}
}

func TestRefusals(t *testing.T) {
	e := loopback(t)
	a, _ := memPair(t, e, loopback(t))
	_, other := enginetest.NewKey(t)
	unknown := session.NewID()
	good := engine.Session{ID: unknown, PeerKey: other, AllowedIPs: enginetest.Prefixes("10.0.0.9/32")}
	with := func(f func(*engine.Session)) engine.Session {
		s := good
		f(&s)
		return s
	}
	bare, err := newDevice(e, newMemTUN("bare"))
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"key in use":        {a.Add(with(func(s *engine.Session) { s.PeerKey = a.session.PeerKey })), engine.ErrKeyInUse.Error()},
		"own key":           {a.Add(with(func(s *engine.Session) { s.PeerKey = a.public })), "no peer's"},
		"no key":            {a.Add(with(func(s *engine.Session) { s.PeerKey = engine.PublicKey{} })), "no peer's"},
		"bad prefix":        {a.Add(with(func(s *engine.Session) { s.AllowedIPs = []netip.Prefix{{}} })), "no prefix"},
		"no private key":    {bare.Add(good), "private key"},
		"short private key": {a.SetPrivateKey(secretOf(make([]byte, 31))), "31 octets"},
		"zero private key":  {a.SetPrivateKey(secretOf(make([]byte, 32))), "zero"},
		"unknown gate":      {a.SetGate(unknown, engine.Open), engine.ErrUnknownSession.Error()},
		"unknown endpoint":  {a.SetEndpoint(unknown, e.addr()), engine.ErrUnknownSession.Error()},
		"no endpoint":       {a.SetEndpoint(a.session.ID, netip.AddrPort{}), "no address"},
		"unknown prefixes":  {a.SetAllowedIPs(unknown, nil), engine.ErrUnknownSession.Error()},
		"unknown handshake": {a.Handshake(unknown, true), engine.ErrUnknownSession.Error()},
		"unknown probe":     {a.Probe(unknown), engine.ErrUnknownSession.Error()},
		"unknown stats":     {statsError(a.Device, unknown), engine.ErrUnknownSession.Error()},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: error = %v, want one with %q", name, c.err, c.want)
		}
	}
	if err := a.Remove(unknown); err != nil {
		t.Errorf("Remove of an unknown session = %v, want nil", err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if err := a.Add(good); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Add after Close = %v, want %v", err, engine.ErrClosed)
	}
	if err := a.Close(); err != nil {
		t.Errorf("second Close = %v, want nil", err)
	}
}

func statsError(d *Device, id session.ID) error {
	_, err := d.Stats(id)
	return err
}

func TestRemoveForgets(t *testing.T) {
	ea, eb := loopback(t), loopback(t)
	a, b := memPair(t, ea, eb)
	if !arrives(a.tun, b.tun, aToB(100)) {
		t.Fatal("no packet crosses")
	}
	if err := b.Remove(b.session.ID); err != nil {
		t.Fatal(err)
	}
	if crosses(a.tun, b.tun, aToB(100)) {
		t.Error("a packet crosses into a session that was removed")
	}
	if text, err := b.wg.IpcGet(); err != nil || strings.Contains(text, "public_key") {
		t.Errorf("after Remove wireguard-go still has a peer (%v)", err)
	}
	if err := b.Add(b.session); err != nil {
		t.Fatal(err)
	}
	if err := a.Handshake(a.session.ID, true); err != nil {
		t.Fatal(err)
	}
	if !arrives(a.tun, b.tun, aToB(100)) {
		t.Error("no packet crosses after the session was added again")
	}
}

// TestNoAnswerIsTold rests on a log line of wireguard-go that takes 90 s to
// come: the format must stand in its source.
func TestNoAnswerIsTold(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "golang.zx2c4.com/wireguard/device").Output()
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "timers.go"))
	if err != nil {
		t.Fatal(err)
	}
	a, _ := memPair(t, loopback(t), loopback(t))
	for format, what := range notices {
		if what == gaveUp {
			if !strings.Contains(string(source), strconv.Quote(format)) {
				t.Errorf("wireguard-go has no log line %q", format)
			}
			a.heardOf(a.sessions[a.session.ID].wg, what)
		}
	}
	for _, e := range a.engine.Events().Take() {
		if e.Kind == engine.NoAnswer && e.Session == a.session.ID {
			return
		}
	}
	t.Error("no event of a handshake without an answer")
}

// TestEventsOfStatus: handshakes and endpoints of both ends are told although
// wireguard-go tells nobody.
func TestEventsOfStatus(t *testing.T) {
	a, b := memPair(t, loopback(t), loopback(t))
	a.tun.send(aToB(100))
	done := map[string]bool{}
	enginetest.Eventually(t, "both ends tell of the handshake, the responder of where its peer is", func() bool {
		for _, x := range []*memEnd{a, b} {
			for _, e := range x.engine.Events().Take() {
				done[fmt.Sprint(x == a, e.Kind, e.Endpoint)] = true
			}
		}
		return done[fmt.Sprint(true, engine.HandshakeDone, netip.AddrPort{})] && done[fmt.Sprint(false, engine.HandshakeDone, netip.AddrPort{})] &&
			done[fmt.Sprint(false, engine.EndpointMoved, a.engine.addr())]
	})
	if done[fmt.Sprint(true, engine.EndpointMoved, b.engine.addr())] {
		t.Error("the dialler tells as news where it was told to dial")
	}
}
