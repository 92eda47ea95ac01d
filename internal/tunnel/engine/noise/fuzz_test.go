package noise

import (
	"bytes"
	"crypto/ecdh"
	"net/netip"
	"testing"

	"tunneld/internal/secret"
)

// The attacker of these targets sends any datagram to the port. With keys: he
// knows our public key, as every former user does, and can make mac1; or he is
// the peer, and has the keys of a session.

var srcForFuzz = netip.MustParseAddrPort("192.0.2.1:1")

func FuzzClassify(f *testing.F) {
	a, b := pair(f)
	init, h := initiate(f, a, 1, testStart)
	resp, _ := answer(f, b, init, 2, testStart, secret.Value{})
	h.Wipe()
	for _, seed := range [][]byte{nil, {4}, init, resp, NewCookieChecker().Reply(nil, b.key, init, srcForFuzz, testStart), make([]byte, 32)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		kind := Classify(msg)
		want := map[Kind]int{KindInitiation: InitiationSize, KindResponse: ResponseSize, KindCookieReply: CookieReplySize}[kind]
		if want != 0 && len(msg) != want || kind == KindTransport && len(msg) < KeepaliveSize {
			t.Fatalf("%d octets are of kind %v", len(msg), kind)
		}
		if kind != KindInvalid && (msg[0] != byte(kind) || msg[1]|msg[2]|msg[3] != 0) {
			t.Fatalf("%x is of kind %v", msg[:4], kind)
		}
		Receiver(msg)
		b.key.CheckMAC1(msg)
		NewCookieChecker().CheckMAC2(msg, srcForFuzz, testStart)
	})
}

func FuzzConsumeInitiation(f *testing.F) {
	a, b := pair(f)
	good, _ := initiate(f, a, 1, testStart)
	f.Add(good, true)
	f.Add(good[:100], true)
	f.Add(make([]byte, InitiationSize), false)
	f.Fuzz(func(t *testing.T, msg []byte, fit bool) {
		if fit && Classify(msg) == KindInitiation {
			msg = remac(b.key, bytes.Clone(msg))
		}
		peer := *b.peer
		before := peer.LastStamp()
		var in Initiation
		if b.key.ConsumeInitiation(&in, msg) != nil {
			if in.accepted || in.state != (symmetric{}) {
				t.Fatal("a refused initiation left something behind")
			}
			return
		}
		if err := in.Accept(&peer, testStart); err != nil {
			if peer.LastStamp() != before {
				t.Fatal("a refused initiation moved the stamp")
			}
			return
		}
		if !bytes.Equal(msg[8:initMAC1At], good[8:initMAC1At]) {
			t.Fatalf("accepted %x", msg)
		}
	})
}

func FuzzConsumeResponse(f *testing.F) {
	a, b := pair(f)
	init, h := initiate(f, a, 1, testStart)
	good, _ := answer(f, b, init, 2, testStart, secret.Value{})
	f.Add(good)
	f.Add(good[:90])
	f.Add(make([]byte, ResponseSize))
	f.Fuzz(func(t *testing.T, msg []byte) {
		ephemeral, err := ecdh.X25519().NewPrivateKey(h.ephemeral.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		own := &Handshake{state: h.state, index: h.index, ephemeral: ephemeral}
		var keys Keys
		if _, err := own.ConsumeResponse(a.key, msg, testStart, &keys); err != nil {
			if keys != (Keys{}) || own.ephemeral == nil {
				t.Fatal("a refused response left something behind")
			}
			return
		}
		if !bytes.Equal(msg[respReceiverAt:respMAC1At], good[respReceiverAt:respMAC1At]) {
			t.Fatalf("accepted %x", msg)
		}
	})
}

func FuzzConsumeCookieReply(f *testing.F) {
	a, b := pair(f)
	init, _ := initiate(f, a, 1, testStart)
	good := NewCookieChecker().Reply(nil, b.key, init, srcForFuzz, testStart)
	f.Add(good)
	f.Add(good[:60])
	f.Fuzz(func(t *testing.T, msg []byte) {
		peer := *a.peer
		if err := peer.ConsumeCookieReply(msg, testStart); err != nil {
			if peer != *a.peer {
				t.Fatal("a refused cookie reply changed the peer")
			}
			return
		}
		if !bytes.Equal(msg[8:], good[8:]) {
			t.Fatalf("accepted %x", msg)
		}
	})
}

func FuzzOpen(f *testing.F) {
	a, b := pair(f)
	ka, kb := handshake(f, a, b, testStart)
	good := seal(f, ka, "a packet of some length")
	f.Add(good)
	f.Add(seal(f, ka, ""))
	f.Add(good[:KeepaliveSize])
	f.Add(append([]byte{4, 0, 0, 0}, bytes.Repeat([]byte{0xff}, 40)...))
	f.Fuzz(func(t *testing.T, msg []byte) {
		size := len(msg)
		last := kb.window.Last()
		got, err := kb.Open(msg, testStart)
		if err != nil && kb.window.Last() != last {
			t.Fatal("a refused message moved the window")
		}
		if err == nil && len(got) != size-KeepaliveSize {
			t.Fatalf("%d octets opened to %d", size, len(got))
		}
	})
}
