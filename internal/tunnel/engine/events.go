package engine

import (
	"net/netip"
	"sync"
	"time"

	"tunneld/internal/session"
)

// EventKind is what happened in the data plane of a session.
type EventKind uint8

const (
	HandshakeDone EventKind = iota // there is a new keypair, and the peer has it
	EndpointMoved                  // the peer was heard of at another address
	NoAnswer                       // a handshake was tried for 90 s in vain
	eventKinds
)

// Event is one thing that happened.
type Event struct {
	Kind     EventKind
	Session  session.ID
	At       time.Time
	Endpoint netip.AddrPort // of EndpointMoved
}

// Events are what happened and nobody has looked at yet: of each session the
// last of each kind, so that a reader that falls behind costs bounded memory,
// and no engine waits for it. The zero value is ready to use by any goroutine.
type Events struct {
	mu      sync.Mutex // guards everything below
	ready   chan struct{}
	waiting map[session.ID]*[eventKinds]Event
	order   []session.ID // of those waiting
}

// Ready receives when there is something new to take.
func (q *Events) Ready() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.readyLocked()
}

func (q *Events) readyLocked() chan struct{} {
	if q.ready == nil {
		q.ready = make(chan struct{}, 1)
	}
	return q.ready
}

// Tell adds an event, in the place of an older one of its kind and session.
func (q *Events) Tell(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	of := q.waiting[e.Session]
	if of == nil {
		if q.waiting == nil {
			q.waiting = make(map[session.ID]*[eventKinds]Event)
		}
		of = new([eventKinds]Event)
		q.waiting[e.Session] = of
		q.order = append(q.order, e.Session)
	}
	of[e.Kind] = e
	select {
	case q.readyLocked() <- struct{}{}:
	default:
	}
}

// Take empties the queue: the sessions in the order of their first event, and
// of each the events in the order of their kinds.
func (q *Events) Take() (all []Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, id := range q.order {
		for _, e := range q.waiting[id] {
			if !e.Session.IsZero() {
				all = append(all, e)
			}
		}
	}
	q.waiting, q.order = nil, nil
	return all
}
