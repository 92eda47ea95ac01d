package reference

import (
	"sync"

	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/meter"
)

// roles remembers who starts the handshakes of each session, and by its meter
// whether it has any.
type roles struct {
	mu     sync.RWMutex // guards everything below
	theirs map[engine.PublicKey]role
	ours   map[engine.PublicKey]role
}

type role struct {
	mac1  *mac1Key
	meter *meter.Meter
}

// set notes whether the peer of that key starts every handshake.
func (r *roles) set(key engine.PublicKey, m *meter.Meter, responder bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.theirs == nil {
		r.theirs, r.ours = make(map[engine.PublicKey]role), make(map[engine.PublicKey]role)
	}
	to, from := r.ours, r.theirs
	if responder {
		to, from = from, to
	}
	delete(from, key)
	if to[key].mac1 == nil {
		to[key] = role{newMAC1Key(key), m}
	}
}

func (r *roles) forget(key engine.PublicKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ours, key)
	delete(r.theirs, key)
}

// mayLeave decides whether a handshake message may leave: not an initiation to
// a peer that starts every handshake itself, and nothing to one that is closed
// or over. A message names its receiver by nothing but mac1, so where both kinds
// of session share a device the keys of the rarer kind are tried, and those of
// the closed ones.
func (r *roles) mayLeave(message []byte) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	now := meter.Now()
	for _, all := range [...]map[engine.PublicKey]role{r.ours, r.theirs} {
		for _, role := range all {
			if role.meter.Shut(now) && role.mac1.made(message) {
				return false
			}
		}
	}
	switch {
	case !isInitiation(message), len(r.theirs) == 0:
		return true
	case len(r.ours) < len(r.theirs):
		return madeByAny(r.ours, message)
	}
	return !madeByAny(r.theirs, message)
}

func madeByAny(roles map[engine.PublicKey]role, message []byte) bool {
	for _, role := range roles {
		if role.mac1.made(message) {
			return true
		}
	}
	return false
}
