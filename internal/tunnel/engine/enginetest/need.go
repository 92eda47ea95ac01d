package enginetest

import (
	"crypto/ecdh"
	"crypto/rand"
	"net/netip"
	"testing"
	"time"

	"tunneld/internal/tunnel/engine"
)

// Patience is how long a test waits for what must happen: a handshake that a
// flood keeps out tries again each 5 s, on a machine that may be busy.
const Patience = 60 * time.Second

// Eventually waits until cond holds.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("after %v still not: %s", Patience, what)
}

// NewKey makes a key pair.
func NewKey(t testing.TB) (private []byte, public engine.PublicKey) {
	t.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k.Bytes(), engine.PublicKey(k.PublicKey().Bytes())
}

// Prefixes parses prefixes.
func Prefixes(s ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range s {
		ps = append(ps, netip.MustParsePrefix(p))
	}
	return ps
}
