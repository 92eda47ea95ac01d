package noise

import (
	"bytes"
	"crypto/ecdh"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"tunneld/internal/secret"
)

// update records the vectors anew: go test -run Golden -update.
var update = flag.Bool("update", false, "record the golden vectors with wireguard-go")

// The key derivation against wireguard-go's, for all sizes that occur.
func TestKDF(t *testing.T) {
	var chain, w0, w1, w2 [blake2s.Size]byte
	for n := range 34 {
		input := bytes.Repeat([]byte{byte(n)}, n)
		chain[0] = byte(n)
		var g0, g1, g2 [blake2s.Size]byte
		kdf(input, &chain, &g0, &g1, &g2)
		device.KDF3(&w0, &w1, &w2, chain[:], input)
		if g0 != w0 || g1 != w1 || g2 != w2 {
			t.Errorf("kdf of %d octets: %x %x %x, want %x %x %x", n, g0, g1, g2, w0, w1, w2)
		}
	}
	if initialChain != device.InitialChainKey || initialHash != device.InitialHash {
		t.Error("a handshake does not begin as wireguard-go's")
	}
}

// vector is a recorded handshake with wireguard-go. Our one-time keys, stamp
// and indices are fixed, so our octets have to come out the same; the device's
// are as they were then.
type vector map[string][]byte

var vectorFields = []struct{ name, comment string }{
	{"our static private", ""},
	{"their static private", ""},
	{"our one-time private", ""},
	{"preshared key", ""},
	{"initiation", "type, sender, one-time key, sealed static key, sealed stamp, mac1, mac2"},
	{"response", "type, sender, receiver, one-time key, tag, mac1, mac2"},
	{"our send key", ""},
	{"our receive key", ""},
	{"our packet", "type, receiver, counter, sealed inner packet with padding"},
	{"our packet inside", ""},
	{"their packet", "type, receiver, counter, sealed inner packet with padding"},
	{"their packet inside", ""},
}

func readVector(t *testing.T, name string) vector {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	v := vector{}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		key, value, _ := strings.Cut(line, " = ")
		if v[key], err = hex.DecodeString(value); err != nil {
			t.Fatalf("%s: %s: %v", name, key, err)
		}
	}
	return v
}

func (v vector) write(t *testing.T, name, title string) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "# %s Recorded with wireguard-go; hex.\n", title)
	for _, f := range vectorFields {
		if f.comment != "" {
			fmt.Fprintf(&b, "# %s\n", f.comment)
		}
		fmt.Fprintf(&b, "%s = %x\n", f.name, v[f.name])
	}
	if err := os.WriteFile(filepath.Join("testdata", name), []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// fixGenerate makes the next one-time keys this one.
func fixGenerate(t *testing.T, private []byte) {
	t.Helper()
	keep := generate
	generate = func() (*ecdh.PrivateKey, error) { return ecdh.X25519().NewPrivateKey(private) }
	t.Cleanup(func() { generate = keep })
}

const goldenIndex = 0x01020304

// ends are both ends of a vector; of theirs only the public key is used.
func (v vector) ends(t *testing.T) *end {
	t.Helper()
	our, err := NewStaticKey(secret.New(v["our static private"]))
	if err != nil {
		t.Fatal(err)
	}
	their, err := NewStaticKey(secret.New(v["their static private"]))
	if err != nil {
		t.Fatal(err)
	}
	fixGenerate(t, v["our one-time private"])
	return &end{our, NewPeer(their.Public())}
}

func (v vector) compare(t *testing.T, name string, got []byte) {
	t.Helper()
	if !bytes.Equal(got, v[name]) {
		t.Errorf("%s:\n got %x\nwant %x", name, got, v[name])
	}
}

// data checks keys, our packet and theirs.
func (v vector) data(t *testing.T, keys *Keys) {
	t.Helper()
	v.compare(t, "our send key", keys.Send[:])
	v.compare(t, "our receive key", keys.Receive[:])
	k := NewKeypair(keys)
	v.compare(t, "our packet", k.Seal(nil, 0, v["our packet inside"], 1420))
	inside, err := k.Open(v["their packet"], testStart)
	if err != nil {
		t.Fatal(err)
	}
	v.compare(t, "their packet inside", inside[:len(v["their packet inside"])])
}

func TestGoldenInitiator(t *testing.T) {
	const file = "we-initiate.txt"
	if *update {
		recordInitiator(t).write(t, file, "A handshake that we initiate.")
	}
	v := readVector(t, file)
	us := v.ends(t)
	msg, h, err := us.key.CreateInitiation(nil, us.peer, goldenIndex, testStart, testWall)
	if err != nil {
		t.Fatal(err)
	}
	v.compare(t, "initiation", msg)
	var keys Keys
	if _, err := h.ConsumeResponse(us.key, v["response"], testStart, &keys, secret.New(v["preshared key"])); err != nil {
		t.Fatal(err)
	}
	v.data(t, &keys)
}

func TestGoldenResponder(t *testing.T) {
	const file = "we-respond.txt"
	if *update {
		recordResponder(t).write(t, file, "A handshake that wireguard-go initiates.")
	}
	v := readVector(t, file)
	us := v.ends(t)
	var in Initiation
	if err := us.key.ConsumeInitiation(&in, v["initiation"]); err != nil {
		t.Fatal(err)
	}
	if err := in.Accept(us.peer, testStart); err != nil {
		t.Fatal(err)
	}
	var keys Keys
	msg, err := in.CreateResponse(nil, us.peer, goldenIndex, testStart, &keys, secret.New(v["preshared key"]))
	if err != nil {
		t.Fatal(err)
	}
	v.compare(t, "response", msg)
	v.data(t, &keys)
}

// record begins a vector with a live device and keys whose octets can be told
// apart.
func record(t *testing.T) (vector, *foreign) {
	t.Helper()
	fill := func(b byte) []byte { return bytes.Repeat([]byte{b}, KeySize) }
	v := vector{
		"our static private": fill(0x11), "their static private": fill(0x22),
		"our one-time private": fill(0x33), "preshared key": fill(0x44),
	}
	f := newForeignWith(t, secret.New(fill(0x11)), secret.New(fill(0x22)), secret.New(fill(0x44)), "")
	fixGenerate(t, fill(0x33))
	return v, f
}

func (v vector) record(f *foreign, keys Keys) vector {
	v["our send key"], v["our receive key"] = keys.Send[:], keys.Receive[:]
	k := NewKeypair(&keys)
	inside := tuntest.Ping(theirInner, ourInner)
	n, _ := k.NextCounters(1)
	v["our packet inside"], v["our packet"] = inside, k.Seal(nil, n, inside, 1420)
	f.wire.in <- bytes.Clone(v["our packet"])
	select {
	case <-f.tun.Inbound:
	case <-time.After(patience):
		f.t.Fatal("the device did not deliver our packet")
	}
	v["their packet inside"] = f.theirData()
	for len(v["their packet"]) <= KeepaliveSize {
		v["their packet"] = f.receive(KindTransport)
	}
	return v
}

func recordInitiator(t *testing.T) vector {
	v, f := record(t)
	msg, h, err := f.us.key.CreateInitiation(nil, f.us.peer, goldenIndex, testStart, testWall)
	if err != nil {
		t.Fatal(err)
	}
	f.wire.in <- bytes.Clone(msg)
	v["initiation"], v["response"] = msg, f.receive(KindResponse)
	var keys Keys
	if _, err := h.ConsumeResponse(f.us.key, v["response"], testStart, &keys, f.psk); err != nil {
		t.Fatal(err)
	}
	return v.record(f, keys)
}

func recordResponder(t *testing.T) vector {
	v, f := record(t)
	f.theirData()
	v["initiation"] = f.receive(KindInitiation)
	resp, keys := answer(t, f.us, v["initiation"], goldenIndex, testStart, f.psk)
	v["response"] = resp
	f.wire.in <- bytes.Clone(resp)
	f.receive(KindTransport) // what waited for the handshake
	return v.record(f, keys)
}
