package auth

import "tunneld/internal/session"

// Limits bound what passes a node's sessions, beyond what their networks say:
// rates in bits a second, up being what the node sends, and the one direction
// that is open. The zero Limits bound nothing.
type Limits struct {
	RateUp    uint64 `json:"rate_up,omitzero"`
	RateDown  uint64 `json:"rate_down,omitzero"`
	Direction string `json:"direction,omitzero"`
}

// Limits are those of node id, from memory; none for an id that is not enrolled.
func (r *Registry) Limits(id session.ID) Limits {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.rights[id].limits
}
