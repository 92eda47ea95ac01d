package reference

import (
	"crypto/hmac"
	"sync"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.zx2c4.com/wireguard/device"

	"tunneld/internal/tunnel/engine"
)

const (
	// indexLife is how long an index is remembered at least; at most twice as
	// long. The longest that one is of use is a handshake's 90 s of tries
	// (RekeyAttemptTime) and a keypair's 180 s (RejectAfterTime).
	indexLife = device.RekeyAttemptTime + device.RejectAfterTime
	// maxIndices bounds the indices learnt in one indexLife: four for each
	// of the peers that wireguard-go can hold.
	maxIndices = 4 << 16
)

// An indexTable remembers which device chose a receiver index. It is two
// tables: when the young one is old enough, it replaces the old one.
type indexTable struct {
	mu         sync.RWMutex // guards everything below
	young, old map[uint32]*bind
	since      time.Time // when young was made
}

// learn notes that b wants to be spoken to by index.
func (t *indexTable) learn(index uint32, b *bind) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.young == nil || time.Since(t.since) > indexLife || len(t.young) >= maxIndices {
		t.old, t.young, t.since = t.young, make(map[uint32]*bind), time.Now()
	}
	t.young[index] = b
}

// owner is who chose index; nil if nobody did.
func (t *indexTable) owner(index uint32) *bind {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if b, ok := t.young[index]; ok {
		return b
	}
	return t.old[index]
}

// forget removes what b has chosen.
func (t *indexTable) forget(b *bind) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range []map[uint32]*bind{t.young, t.old} {
		for index, o := range m {
			if o == b {
				delete(m, index)
			}
		}
	}
}

// A mac1Key recognises handshake messages meant for one public key: their mac1
// is a keyed hash of what stands before it (WireGuard paper, section 5.4.4).
type mac1Key [blake2s.Size]byte

func newMAC1Key(public engine.PublicKey) *mac1Key {
	k := mac1Key(blake2s.Sum256(append([]byte(device.WGLabelMAC1), public[:]...)))
	return &k
}

// made reports whether the mac1 of a handshake message was made for k.
func (k *mac1Key) made(message []byte) bool {
	covered := message[:len(message)-2*blake2s.Size128]
	mac, err := blake2s.New128(k[:])
	if err != nil {
		panic(err) // the key has the right size
	}
	mac.Write(covered)
	return hmac.Equal(mac.Sum(nil), message[len(covered):len(covered)+blake2s.Size128])
}
