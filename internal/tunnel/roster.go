package tunnel

import (
	"slices"

	"tunneld/internal/session"
)

// roster is the sessions of a gateway, found by whatever they are looked for:
// with thousands of them nothing that one of them does may walk over all.
// gateway.mu guards it.
type roster struct {
	byID        map[session.ID]*member
	byKey       map[[32]byte]*member // the peer's session key
	byNetwork   index[*network]
	byConn      index[*peerConn]
	byNode      index[session.ID]
	advertising index[*network] // those of a network that advertise prefixes
}

// index is the members that share a property.
type index[K comparable] map[K]map[*member]struct{}

func (x index[K]) add(k K, mb *member) {
	if x[k] == nil {
		x[k] = map[*member]struct{}{}
	}
	x[k][mb] = struct{}{}
}

func (x index[K]) remove(k K, mb *member) {
	delete(x[k], mb)
	if len(x[k]) == 0 {
		delete(x, k)
	}
}

// list returns the members under k, those that began first first.
func (x index[K]) list(k K) []*member {
	all := make([]*member, 0, len(x[k]))
	for mb := range x[k] {
		all = append(all, mb)
	}
	slices.SortFunc(all, func(a, b *member) int { return a.began.Compare(b.began) })
	return all
}

func newRoster() *roster {
	return &roster{
		byID: map[session.ID]*member{}, byKey: map[[32]byte]*member{}, byNetwork: index[*network]{},
		byConn: index[*peerConn]{}, byNode: index[session.ID]{}, advertising: index[*network]{},
	}
}

func (r *roster) add(mb *member) {
	r.byID[mb.id] = mb
	r.byKey[mb.peerKey] = mb
	r.byNetwork.add(mb.network, mb)
	r.byConn.add(mb.conn, mb)
	r.byNode.add(mb.nodeID, mb)
	if len(mb.advertise) > 0 {
		r.advertising.add(mb.network, mb)
	}
}

func (r *roster) remove(mb *member) {
	delete(r.byID, mb.id)
	if r.byKey[mb.peerKey] == mb {
		delete(r.byKey, mb.peerKey)
	}
	r.byNetwork.remove(mb.network, mb)
	r.byConn.remove(mb.conn, mb)
	r.byNode.remove(mb.nodeID, mb)
	r.advertising.remove(mb.network, mb)
}
