package secret

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestValueIsNeverShown(t *testing.T) {
	type holder struct {
		Key  Value
		Ptr  *Value
		priv Value
	}
	v := New([]byte("hunter2hunter2"))
	h := holder{Key: v, Ptr: &v, priv: v}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", v, "holder", h)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", v, "holder", h)
	out := log.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		out += fmt.Sprintf(verb, v) + fmt.Sprintf(verb, h) + fmt.Sprintf(verb, &h)
	}
	if _, err := json.Marshal(h); err == nil {
		t.Error("a secret was marshalled as JSON")
	}
	for _, leak := range []string{"hunter", "68756e746572", "104 117 110"} {
		if strings.Contains(out, leak) {
			t.Errorf("%q shows in: %s", leak, out)
		}
	}
}

func TestValueOwnsItsBytes(t *testing.T) {
	b := []byte{1, 2, 3}
	v := New(b)
	b[0] = 9
	if !v.Equal(New([]byte{1, 2, 3})) {
		t.Error("the value changed with the caller's slice")
	}
	w := v
	w.Wipe()
	if !bytes.Equal(v.Reveal(), make([]byte, 3)) {
		t.Error("Wipe left a copy of the bytes")
	}
}

func TestX25519(t *testing.T) {
	one, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	two, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	want, err := one.ECDH(two.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	public := [32]byte(two.PublicKey().Bytes())
	ready, read := OfX25519(one), New(one.Bytes())
	for range 2 { // the second time with what was kept
		for name, v := range map[string]Value{"ready": ready, "read": read} {
			if got, err := v.X25519(public); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: X25519 = %x, %v, want %x", name, got, err, want)
			}
		}
	}
	for name, v := range map[string]Value{"nothing": {}, "no key": New([]byte("short"))} {
		if got, err := v.X25519(public); err == nil {
			t.Errorf("%s: X25519 = %x, want an error", name, got)
		}
	}
	if got, err := ready.X25519([32]byte{}); err == nil {
		t.Errorf("X25519 with a key of zeroes = %x, want an error", got)
	}
	ready.Wipe()
	if got, err := ready.X25519(public); err != nil || bytes.Equal(got, want) {
		t.Errorf("after Wipe X25519 = %x, %v, want that of another key", got, err)
	}
	if n := testing.AllocsPerRun(10, func() { read.X25519(public) }); n > 3 { // a public key and what is shared; a private key takes more
		t.Errorf("X25519 allocates %v times: is the key read each time?", n)
	}
}
