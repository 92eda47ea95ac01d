package tunnel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/store"
)

// bucketEnded holds the record of each session that is over: time/id -> endedV2.
const bucketEnded = "ended"

// maxEnded is how many of them are kept; older ones go first.
const maxEnded = 10_000

// endedVersion is the version of those records. One of version 1 has no Request.
const endedVersion = 2

// endedV2 is how a session ended: once for each, whatever crashed, because it
// is written in the transaction that takes the session off its connection.
type endedV2 struct {
	Version   int
	Session   session.ID
	Node      string
	Network   string
	Addresses []netip.Addr
	Resumes   uint64
	EndedAt   time.Time
	Cause     string
	Counters  countersV1
	Request   session.ID `json:",omitzero"` // of the wish that ended it; zero: none did, or nobody knows
}

// endedLayout sorts as text the way its times do.
const endedLayout = "2006-01-02T15:04:05.000000000Z"

func (e *endedV2) key() string { return e.EndedAt.UTC().Format(endedLayout) + "/" + e.Session.String() }

// put writes the record in the caller's transaction.
func (e *endedV2) put(tx store.Tx) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return tx.Put(bucketEnded, e.key(), b)
}

// putEnds writes, in the caller's transaction, what ended with it.
func putEnds(tx store.Tx, ended []*endedV2, rests []savedRest) error {
	for _, e := range ended {
		if err := e.put(tx); err != nil {
			return err
		}
	}
	for _, r := range rests {
		if err := r.put(tx); err != nil {
			return err
		}
	}
	return nil
}

// endingsLocked are the records of the sessions that this connection's journal
// still has and live does not. What is not known of one any more, because it
// ended in a process that was killed, is said to be unknown.
func (p *peerConn) endingsLocked(live []control.Session) []*endedV2 {
	left := map[session.ID]bool{}
	for _, s := range live {
		left[s.ID] = true
	}
	var all []*endedV2
	for _, id := range p.journalled {
		if left[id] {
			continue
		}
		e := p.g.finals[id]
		if e == nil {
			e = &endedV2{Session: id, Node: p.node, EndedAt: time.Now(), Cause: "unknown"}
		}
		e.Version = endedVersion
		all = append(all, e)
	}
	return all
}

// killedCause is why a session was suspended that was not when its daemon ended.
const killedCause = "the daemon was killed"

// endings is endingsLocked for callers that do not hold gateway.mu.
func (p *peerConn) endings(live []control.Session) []*endedV2 {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	return p.endingsLocked(live)
}

// saved notes what the journal has of this connection now.
func (p *peerConn) saved(live []control.Session, ended []*endedV2) {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	p.journalled = p.journalled[:0]
	for _, s := range live {
		p.journalled = append(p.journalled, s.ID)
		if mb := p.g.members.byID[s.ID]; mb != nil {
			mb.serial = s.Changes
		}
	}
	for _, e := range ended {
		delete(p.g.finals, e.Session)
	}
}

// finalLocked keeps what is known of a session at its end for the transaction
// that records it.
func (g *gateway) finalLocked(mb *member, e event.Event, counters countersV1) {
	g.finals[mb.id] = &endedV2{
		Session: mb.id, Node: mb.node, Network: mb.network.cfg.Name, Addresses: mb.addresses, Resumes: mb.resumes,
		EndedAt: time.Now(), Cause: e.Cause, Counters: counters, Request: e.Request,
	}
}

// trim keeps bounded what is remembered of sessions that are over, and of
// tickets.
func (m *Manager) trim(context.Context) {
	if g := m.gateway; g != nil && g.tickets != nil {
		g.rotateTickets()
	}
	if err := errors.Join(m.journal.trimEnded(), m.journal.trimStories()); err != nil {
		m.log.Error("records of sessions not trimmed", event.KeyErr, err)
	}
}

// ended finds the record of a session by a beginning of its id, newest first.
func (j *journal) ended(match func(session.ID) bool) (found *endedV2, err error) {
	err = j.eachEnd(func(id session.ID, b []byte) (err error) {
		if match(id) {
			found, err = decodeEnd(b)
		}
		return err
	})
	return found, err
}

// eachEnd walks the records of ends, oldest first, without reading them.
func (j *journal) eachEnd(fn func(session.ID, []byte) error) error {
	return j.each(bucketEnded, func(key string, b []byte) error {
		_, text, _ := strings.Cut(key, "/")
		id, err := session.ParseID(text)
		if err != nil {
			return err
		}
		return fn(id, b)
	})
}

func decodeEnd(b []byte) (*endedV2, error) {
	var e endedV2
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, err
	}
	if e.Version < 1 || e.Version > endedVersion {
		return nil, fmt.Errorf("%w: version %d, this daemon knows %d", store.ErrNewer, e.Version, endedVersion)
	}
	return &e, nil
}

// trimEnded forgets the oldest records beyond maxEnded.
func (j *journal) trimEnded() error {
	var keys []string
	if err := j.each(bucketEnded, func(key string, _ []byte) error {
		keys = append(keys, key)
		return nil
	}); err != nil || len(keys) <= maxEnded {
		return err
	}
	return j.s.Update(func(tx store.Tx) error {
		for _, key := range keys[:len(keys)-maxEnded] {
			if err := tx.Delete(bucketEnded, key); err != nil {
				return err
			}
		}
		return nil
	})
}
