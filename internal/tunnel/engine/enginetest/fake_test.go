package enginetest

import (
	"errors"
	"net/netip"
	"testing"

	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

func opened(t *testing.T, f *Fake) *Device {
	t.Helper()
	d, err := f.Open(engine.DeviceConfig{Interface: "tnl0", MTU: 1420})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SetPrivateKey(secret.New(make([]byte, engine.KeySize))); err != nil {
		t.Fatal(err)
	}
	return f.Device("tnl0")
}

func TestFakeRemembers(t *testing.T) {
	var f Fake
	d := opened(t, &f)
	id := session.NewID()
	at := netip.MustParseAddrPort("192.0.2.1:443")
	s := engine.Session{ID: id, PeerKey: engine.PublicKey{1}, Endpoint: at}
	for what, err := range map[string]error{
		"Add":             d.Add(s),
		"Add again":       d.Add(engine.Session{ID: id, PeerKey: engine.PublicKey{1}}),
		"SetGate":         d.SetGate(id, engine.Open),
		"SetAllowedIPs":   d.SetAllowedIPs(id, []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}),
		"SetPresharedKey": d.SetPresharedKey(id, secret.New([]byte{7})),
		"Handshake":       errors.Join(d.Handshake(id, false), d.Handshake(id, true)),
		"Probe":           d.Probe(id),
	} {
		if err != nil {
			t.Errorf("%s = %v, want nil", what, err)
		}
	}
	other := session.NewID()
	f.Keep(map[session.ID][]uint32{other: {3, 4}})
	if err := d.Add(engine.Session{ID: other, PeerKey: engine.PublicKey{2}}); err != nil {
		t.Fatal(err)
	}
	kept, err := d.Keypairs(other)
	if err := errors.Join(err, d.SendWith(other, 4), d.PeerRestarted(other, kept), d.PeerRestarted(other, kept[:1])); err != nil {
		t.Fatal(err)
	}
	if got, _ := d.Session(other); got.Fresh != 1 || len(kept) != 2 {
		t.Errorf("%d handshakes after a restart of a peer that has kept %v, and then less, want 1", got.Fresh, kept)
	}
	f.PathChanged()
	got, ok := d.Session(id)
	if !ok || got.Handshakes != 2 || got.Fresh != 1 || got.Probes != 1 || got.Endpoint != at || !got.PresharedKey.Equal(secret.New([]byte{7})) {
		t.Errorf("session = %+v, %v, want 2 handshakes, 1 fresh, 1 probe, endpoint kept, the new preshared key", got, ok)
	}
	if f.PathChanges() != 1 {
		t.Errorf("path changes = %d, want 1", f.PathChanges())
	}
}

func TestFakeRefuses(t *testing.T) {
	var f Fake
	d := opened(t, &f)
	id := session.NewID()
	if err := d.Add(engine.Session{ID: id, PeerKey: engine.PublicKey{1}, Responder: true}); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	f.Fail("SetGate", boom)
	_, taken := f.Open(engine.DeviceConfig{Interface: "tnl0"})
	for what, c := range map[string]struct{ got, want error }{
		"injected":        {d.SetGate(id, engine.Open), boom},
		"key in use":      {d.Add(engine.Session{ID: session.NewID(), PeerKey: engine.PublicKey{1}}), engine.ErrKeyInUse},
		"unknown session": {d.Probe(session.NewID()), engine.ErrUnknownSession},
		"interface taken": {taken, engine.ErrInterfaceTaken},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: error = %v, want %v", what, c.got, c.want)
		}
	}
	if d.Handshake(id, true) == nil {
		t.Error("Handshake where the peer starts them: no error")
	}
	if err := errors.Join(d.Close(), d.Remove(id)); err != nil {
		t.Errorf("Close, then Remove = %v, want nil", err)
	}
	if err := d.Add(engine.Session{ID: id}); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Add after Close = %v, want %v", err, engine.ErrClosed)
	}
	if opened(t, &f) == d {
		t.Error("the name of a closed device is not free")
	}
}
