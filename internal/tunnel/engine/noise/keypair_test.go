package noise

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"tunneld/internal/secret"
)

func TestPaddedSize(t *testing.T) {
	for _, c := range []struct{ n, mtu, want int }{
		{0, 1420, 0}, {1, 1420, 16}, {16, 1420, 16}, {17, 1420, 32}, {1408, 1420, 1408},
		{1409, 1420, 1420}, {1420, 1420, 1420}, {1421, 1420, 1421}, {1500, 1420, 1500}, {1409, 0, 1424},
	} {
		if got := PaddedSize(c.n, c.mtu); got != c.want {
			t.Errorf("PaddedSize(%d, %d) = %d, want %d", c.n, c.mtu, got, c.want)
		}
	}
}

// Sealing appends, in place or not, and leaves what stands before alone.
func TestSealPlaces(t *testing.T) {
	a, b := pair(t)
	ka, kb := handshake(t, a, b, testStart)
	text := []byte("seventeen octets!")
	for name, dst := range map[string][]byte{
		"no room": nil,
		"room":    make([]byte, 0, 2000),
		"behind":  append(make([]byte, 0, 2000), "before"...),
		"short":   append(make([]byte, 0, 10), "before"...),
	} {
		before := bytes.Clone(dst)
		n, _ := ka.NextCounters(1)
		out := ka.Seal(dst, n, text, 1420)
		if !bytes.HasPrefix(out, before) || len(out) != len(before)+SealedSize(len(text), 1420) {
			t.Errorf("%s: Seal gave %d octets", name, len(out))
		}
		if got, err := kb.Open(out[len(before):], testStart); err != nil || !bytes.Equal(got[:len(text)], text) {
			t.Errorf("%s: Open = %q, %v", name, got, err)
		}
	}
	buf := bytes.Repeat([]byte{0xee}, 2000) // what the padding must not carry
	copy(buf[TransportHeaderSize:], text)
	n, _ := ka.NextCounters(1)
	out := ka.Seal(buf[:0], n, buf[TransportHeaderSize:TransportHeaderSize+len(text)], 1420)
	got, err := kb.Open(out, testStart)
	if want := append(bytes.Clone(text), make([]byte, 15)...); err != nil || !bytes.Equal(got, want) {
		t.Errorf("in place: Open = %q, %v, want %q", got, err, want)
	}
}

func TestOpenRefuses(t *testing.T) {
	a, b := pair(t)
	ka, kb := handshake(t, a, b, testStart)
	good := seal(t, ka, "data")
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if i >= transReceiverAt && i < transCounterAt {
			continue // the index finds the pair; it is not authenticated
		}
		if _, err := kb.Open(bad, testStart); err == nil {
			t.Errorf("a message with octet %d changed was opened", i)
		}
	}
	for _, c := range []struct {
		name string
		msg  []byte
		at   Instant
		want error
	}{
		{"short", good[:KeepaliveSize-1], testStart, ErrMalformed},
		{"empty", nil, testStart, ErrMalformed},
		{"own message", seal(t, kb, "data"), testStart, ErrAuth},
		{"too old a keypair", bytes.Clone(good), testStart.Add(RejectAfterTime), ErrExpired},
		{"counter over the limit", ka.Seal(nil, RejectAfterMessages, nil, 0), testStart, ErrExpired},
		{"counter at the limit", ka.Seal(nil, RejectAfterMessages-1, nil, 0), testStart, nil},
		{"far behind", bytes.Clone(good), testStart, ErrReplay},
	} {
		if _, err := kb.Open(c.msg, c.at); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// Counters are given out once each, and not at all past the limit, however
// often somebody asks.
func TestCounters(t *testing.T) {
	a, b := pair(t)
	k, _ := handshake(t, a, b, testStart)
	var wg sync.WaitGroup
	got := make([][]uint64, 8)
	for i := range got {
		wg.Go(func() {
			for n := range 500 {
				first, ok := k.NextCounters(1 + n%3)
				if !ok {
					t.Error("no counter left")
					return
				}
				for j := range 1 + n%3 {
					got[i] = append(got[i], first+uint64(j))
				}
			}
		})
	}
	wg.Wait()
	all := slices.Concat(got...)
	slices.Sort(all)
	for i, n := range all {
		if n != uint64(i) {
			t.Fatalf("counter %d was given out where %d should be", n, i)
		}
	}

	k.slot.Counter.Store(RejectAfterMessages - 2)
	for _, c := range []struct {
		n  int
		ok bool
	}{{3, false}, {2, true}, {1, false}, {1 << 14, false}} {
		if _, ok := k.NextCounters(c.n); ok != c.ok {
			t.Errorf("NextCounters(%d) near the limit: %v, want %v", c.n, ok, c.ok)
		}
	}
	for range 1 << 15 { // a counter that moved at each refusal would come round
		if first, ok := k.NextCounters(1); ok {
			t.Fatalf("counter %d was given out past the limit", first)
		}
	}
	if k.MaySend(testStart) {
		t.Error("MaySend at the limit")
	}
}

func TestKeypairAges(t *testing.T) {
	a, b := pair(t)
	ka, kb := handshake(t, a, b, testStart)
	at := func(d time.Duration) Instant { return testStart.Add(d) }
	for _, c := range []struct {
		name string
		got  bool
		want bool
	}{
		{"initiator rekeys when sending at 120 s", ka.RekeyOnSend(at(RekeyAfterTime)), false},
		{"initiator rekeys when sending after 120 s", ka.RekeyOnSend(at(RekeyAfterTime + 1)), true},
		{"responder does not", kb.RekeyOnSend(at(RekeyAfterTime + 1)), false},
		{"initiator rekeys when receiving at 165 s", ka.RekeyOnReceive(at(165 * time.Second)), false},
		{"after 165 s", ka.RekeyOnReceive(at(165*time.Second + 1)), true},
		{"and says so once", ka.RekeyOnReceive(at(166 * time.Second)), false},
		{"responder does not when receiving", kb.RekeyOnReceive(at(166 * time.Second)), false},
		{"sends before 180 s", ka.MaySend(at(RejectAfterTime - 1)), true},
		{"not at 180 s", ka.MaySend(at(RejectAfterTime)), false},
		{"receives before 180 s", ka.MayReceive(at(RejectAfterTime - 1)), true},
		{"not at 180 s either", ka.MayReceive(at(RejectAfterTime)), false},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.name, c.got, c.want)
		}
	}
	kb.slot.Counter.Store(RekeyAfterMessages + 1)
	if !kb.RekeyOnSend(at(0)) {
		t.Error("no rekey after 2^60 messages")
	}
	kb.EndSending()
	if _, ok := kb.NextCounters(1); ok || kb.MaySend(at(0)) {
		t.Error("the pair sends after EndSending")
	}
	if _, err := kb.Open(seal(t, ka, "x"), at(1)); err != nil {
		t.Errorf("receiving after EndSending: %v", err)
	}
}

// The keys lie in the memory given and nowhere else: wiping that wipes them.
func TestKeysLieInMemory(t *testing.T) {
	a, b := pair(t)
	ka, kb := handshake(t, a, b, testStart)
	msg := seal(t, ka, "before")
	zero := [KeySize]byte{}
	*ka.send.key = zero
	if bytes.Equal(msg, ka.Seal(nil, 0, []byte("before"), 0)) {
		t.Error("the cipher seals with a copy of the key; x/crypto has changed, see overKey")
	}
	zeroed := newAEAD(&zero)
	want := zeroed.Seal(nil, zeroNonce[:], make([]byte, 16), nil)
	if got := ka.Seal(nil, 0, make([]byte, 16), 0); !bytes.Equal(got[TransportHeaderSize:], want) {
		t.Error("the cipher does not read the key where it lies")
	}

	freed := 0
	kb.free = func() { freed++ }
	if !kb.Hold() {
		t.Fatal("Hold of a live pair fails")
	}
	kb.Retire()
	kb.Retire()
	if kb.Hold() {
		t.Error("Hold of a retired pair works")
	}
	if _, err := kb.Open(msg, testStart); err != nil {
		t.Errorf("a holder cannot open any more: %v", err)
	}
	if freed != 0 || *kb.send.key == zero {
		t.Error("the keys were wiped under a holder")
	}
	kb.Release()
	if freed != 1 || *kb.send.key != zero || *kb.receive.key != zero {
		t.Errorf("after the last Release: freed %d times, keys %x %x", freed, *kb.send.key, *kb.receive.key)
	}
}

// A new process goes on with what lies in the memory: counter and window.
func TestAdoptKeypair(t *testing.T) {
	a, b := pair(t)
	msg, h := initiate(t, a, 1, testStart)
	resp, keysB := answer(t, b, msg, 2, testStart, secret.Value{})
	var keysA Keys
	if _, err := h.ConsumeResponse(a.key, resp, testStart, &keysA); err != nil {
		t.Fatal(err)
	}
	slotA, slotB := new(Slot), new(Slot)
	ka, kb := NewKeypairAt(slotA, &keysA, nil), NewKeypairAt(slotB, &keysB, nil)
	first := seal(t, ka, "one")
	replay := bytes.Clone(first)
	if _, err := kb.Open(first, testStart); err != nil {
		t.Fatal(err)
	}
	keysA.Wipe()
	keysB.Wipe()
	ka, kb = AdoptKeypair(slotA, nil), AdoptKeypair(slotB, nil)
	if n, ok := ka.NextCounters(1); !ok || n != 1 {
		t.Errorf("the adopted pair goes on at %d, want 1", n)
	}
	if _, err := kb.Open(replay, testStart); !errors.Is(err, ErrReplay) {
		t.Errorf("replay at the adopted pair: %v, want %v", err, ErrReplay)
	}
	if _, err := kb.Open(seal(t, ka, "two"), testStart); err != nil {
		t.Errorf("data over adopted pairs: %v", err)
	}
}

func TestTransportAllocatesNothing(t *testing.T) {
	a, b := pair(t)
	ka, kb := handshake(t, a, b, testStart)
	buf := make([]byte, 0, 2048)
	text := make([]byte, 1300)
	var timers Timers
	if n := testing.AllocsPerRun(200, func() {
		if !ka.Hold() {
			t.Fatal("Hold")
		}
		n, _ := ka.NextCounters(1)
		msg := ka.Seal(buf, n, text, 1420)
		timers.DataSent(testStart)
		ka.Release()
		if _, err := kb.Open(msg, testStart); err != nil {
			t.Fatal(err)
		}
		timers.DataReceived(testStart)
	}); n != 0 {
		t.Errorf("one packet costs %v allocations, want 0", n)
	}
	msg, _ := initiate(t, a, 1, testStart.Add(time.Second))
	b.key.CheckMAC1(msg)
	// The pool may be emptied by a collection, so not always nothing.
	if n := testing.AllocsPerRun(200, func() { b.key.CheckMAC1(msg) }); n > 0.5 && !raceEnabled {
		t.Errorf("mac1 costs %v allocations, want 0", n)
	}
}

// The ring drops what can receive no more, and keeps what may be on its way.
func TestKeypairsRotate(t *testing.T) {
	at := func(s int) Instant { return testStart.Add(time.Duration(s) * time.Second) }
	made := func(s int) *Keypair { return NewKeypair(&Keys{Local: uint32(s + 1), Created: at(s)}) }
	var r Keypairs
	if d := r.Initiated(made(0), at(0)); d != (Dropped{}) {
		t.Errorf("the first pair drops %v", d)
	}
	first, second, third, fourth := r.Current, made(120), made(121), made(300)
	if d := r.Initiated(second, at(120)); d != (Dropped{}) || r.Previous != [2]*Keypair{first} {
		t.Errorf("the second pair drops %v and leaves %v", d, r.Previous)
	}
	if d := r.Responded(third); d != (Dropped{}) || r.Current != second {
		t.Errorf("an answer drops %v", d)
	}
	if _, promoted := r.Confirmed(first, at(122), false); promoted || r.Current != second {
		t.Error("a previous pair was promoted")
	}
	if d, promoted := r.Confirmed(third, at(122), false); !promoted || d != (Dropped{}) || r.Current != third || r.Next != nil || r.Previous != [2]*Keypair{second, first} {
		t.Errorf("confirmed = %v, %v, ring %v", d, promoted, r)
	}
	if d := r.Responded(fourth); d != (Dropped{}) {
		t.Errorf("an answer drops %v", d)
	}
	fifth := made(301)
	if d := r.Responded(fifth); d != (Dropped{fourth}) {
		t.Errorf("another answer drops %v, want the first, never used", d)
	}
	if d, _ := r.Confirmed(fifth, at(301), true); d != (Dropped{first, second}) || r.Previous != [2]*Keypair{third} {
		t.Errorf("at 301 s %v is dropped, want what is older than 180 s", d)
	}
	if all := r.Clear(); all != [4]*Keypair{fifth, nil, third, nil} || r != (Keypairs{}) {
		t.Errorf("Clear = %v", all)
	}
}

// TestForeignSlot: whoever has taken a counter of a slot that was wiped, or
// that another keypair lives in, may not send with it.
func TestForeignSlot(t *testing.T) {
	slot := new(Slot)
	k := NewKeypairAt(slot, &Keys{Local: 1}, nil)
	if _, ok := k.NextCounters(1); !ok {
		t.Fatal("no counter of one's own slot")
	}
	other := NewKeypairAt(slot, &Keys{Local: 2}, nil)
	if _, ok := k.NextCounters(1); ok {
		t.Error("a counter of another keypair's slot")
	}
	if _, ok := other.NextCounters(1); !ok {
		t.Error("no counter for the keypair that lives in the slot")
	}
	if !other.Hold() {
		t.Fatal("Hold")
	}
	other.Retire()
	if _, ok := other.NextCounters(1); ok {
		t.Error("a counter after Retire")
	}
	if slot.Keys == (Keys{}) {
		t.Error("the keys were wiped under a holder")
	}
	other.Release()
	if slot.Keys != (Keys{}) || slot.Counter.Load() != 0 {
		t.Error("the slot was not wiped")
	}
}

// TestRestoreRing: the ring is what it was, whatever order its slots are found in.
func TestRestoreRing(t *testing.T) {
	var r Keypairs
	var slots []*Slot
	made := func(n int) *Keypair {
		slots = append(slots, new(Slot))
		return NewKeypairAt(slots[len(slots)-1], &Keys{Local: uint32(n), Created: testStart.Add(time.Duration(n) * time.Second)}, nil)
	}
	r.Initiated(made(1), testStart)
	r.Responded(made(2))
	r.Confirmed(r.Next, testStart, false)
	r.Initiated(made(3), testStart)
	r.Responded(made(4)) // gives way to the next
	r.Responded(made(5))
	for range 20 {
		rand.Shuffle(len(slots), func(i, j int) { slots[i], slots[j] = slots[j], slots[i] })
		var pairs []*Keypair
		for _, s := range slots {
			pairs = append(pairs, AdoptKeypair(s, nil))
		}
		var again Keypairs
		dropped := again.Restore(pairs)
		got := []uint32{again.Current.Local, again.Next.Local, again.Previous[0].Local, again.Previous[1].Local, dropped[0].Local}
		if want := []uint32{3, 5, 2, 1, 4}; !slices.Equal(got, want) || len(dropped) != 1 {
			t.Fatalf("current, next, previous, dropped = %v, want %v", got, want)
		}
	}
}
