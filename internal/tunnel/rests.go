package tunnel

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"time"

	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/store"
	"tunneld/internal/tunnel/pool"
)

// Rests: an address that was given back is nobody else's before its cool-off is
// over, whatever is killed or defined anew meanwhile.

// savedRest is addresses given back, in which network, and by whose session.
type savedRest struct {
	network string
	rest    pool.Rest
	by      *peerConn
}

// put writes, in the caller's transaction, a row for each address, since other
// pools may part them. What was freed later stays.
func (r savedRest) put(tx store.Tx) error {
	b, err := json.Marshal(leaseV1{stateVersion, r.rest})
	if err != nil {
		return err
	}
	for _, a := range r.rest.Addresses {
		key := r.network + "/" + a.String()
		switch later, err := freedLater(tx, key, r.rest.FreedAt); {
		case err != nil:
			return err
		case later:
			continue
		}
		if err := tx.Put(bucketLeases, key, b); err != nil {
			return err
		}
	}
	return nil
}

// freedLater reports whether the row under key is of later than at.
func freedLater(tx store.Tx, key string, at time.Time) (bool, error) {
	b, err := tx.Get(bucketLeases, key)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	var v leaseV1
	if err == nil {
		err = decode(b, &v, &v.Version)
	}
	return v.FreedAt.After(at), err
}

// freeLocked gives a session's addresses back: they rest, and belong to the node.
func (g *gateway) freeLocked(mb *member) { g.restLocked(mb, mb.id) }

// restLocked gives back what is leased under id, the session's or that of an offer
// to it. The next write of its connection's record makes that durable, too.
func (g *gateway) restLocked(mb *member, id session.ID) {
	n := mb.network
	rest, ok := n.pool.Free(id, time.Now())
	if !ok {
		return
	}
	if n.cfg.Timers.Cooloff == 0 { // somebody else may get them at once
		g.flush(rest.Addresses)
	}
	g.freed = append(g.freed, savedRest{n.cfg.Name, rest, mb.conn})
	g.m.chores.add("rests", func(context.Context) { g.saveRests() })
}

// rests are those of this connection's sessions that are not journalled yet.
func (p *peerConn) rests() (all []savedRest) {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	for _, r := range p.g.freed {
		if r.by == p {
			all = append(all, r)
		}
	}
	return all
}

// saveRests flushes the connections of addresses that rest, long before somebody
// else gets them, and journals what no connection's record has brought along.
func (g *gateway) saveRests() {
	g.mu.Lock()
	rests := g.freed
	g.mu.Unlock()
	if len(rests) == 0 {
		return
	}
	var freed []netip.Addr
	for _, r := range rests {
		freed = append(freed, r.rest.Addresses...)
	}
	g.flush(freed)
	if err := g.m.journal.s.Update(func(tx store.Tx) error { return putEnds(tx, nil, rests) }); err != nil {
		g.m.log.Error("leases not recorded", event.KeyErr, err)
		return // the next that is freed has it tried again
	}
	g.mu.Lock()
	g.freed = g.freed[len(rests):]
	g.mu.Unlock()
}

// flush makes the host forget the connections of addresses that were given back.
// Each time it goes through all that the host knows.
func (g *gateway) flush(addresses []netip.Addr) {
	if err := g.m.host.FlushConntrack(addresses); err != nil {
		g.m.log.Warn("connection tracking not flushed", event.KeyErr, err)
	}
}
