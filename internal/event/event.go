// Package event says what happened: the events that `tunnelctl events` shows
// and the vocabulary of the log.
package event

import (
	"sync"
	"time"

	"tunneld/internal/session"
)

// Kind names what happened. The names are a contract with whoever reads
// `tunnelctl events --json`: add to them, do not rename them.
type Kind string

// The life of a session and of the nodes around it.
const (
	SessionEstablished Kind = "session-established"
	SessionSuspended   Kind = "session-suspended"
	SessionResumed     Kind = "session-resumed"
	SessionRebuilt     Kind = "session-rebuilt" // by its ticket
	SessionRekeyed     Kind = "session-rekeyed"
	RekeyFailed        Kind = "rekey-failed"
	SessionClosed      Kind = "session-closed"
	SessionExpiring    Kind = "session-expiring"  // one of its ends is near
	SessionHeld        Kind = "session-held"      // by `tunnelctl suspend`
	SessionReleased    Kind = "session-released"  // by `tunnelctl resume`
	QuarantineLifted   Kind = "quarantine-lifted" // by `tunnelctl session release`
	SessionExtended    Kind = "session-extended"  // it may live longer
	SessionChanged     Kind = "session-changed"   // its addresses, MTU, timers or lifetime
	ChangeRefused      Kind = "change-refused"
	SessionRefused     Kind = "session-refused"
	EndpointMoved      Kind = "endpoint-moved"
	RoutesChanged      Kind = "routes-changed"
	RouteRefused       Kind = "route-refused"
	NodeInvited        Kind = "node-invited"
	NodeEnrolled       Kind = "node-enrolled"
	NodeRevoked        Kind = "node-revoked"
	NodeRenewed        Kind = "node-renewed"
	ClonedState        Kind = "cloned-state"
	StateRebuilt       Kind = "state-rebuilt"     // the gateway's, after its loss
	DrainBegun         Kind = "drain-begun"       // this gateway is about to go
	DrainOver          Kind = "drain-over"        // it stays
	GatewayDrains      Kind = "gateway-drains"    // at a node: its gateway is about to go, or stays
	TunnelMoved        Kind = "tunnel-moved"      // to another gateway
	JournalFailing     Kind = "journal-failing"   // nothing new begins
	JournalRecovered   Kind = "journal-recovered" // it can be written again
	DaemonStarted      Kind = "daemon-started"
	DaemonStopping     Kind = "daemon-stopping"
)

// Event is one thing that happened. What does not apply is zero.
type Event struct {
	Time     time.Time
	Kind     Kind
	Session  session.ID
	Node     string
	Network  string
	Cause    string
	Request  session.ID // of the wish behind it: the same at both ends
	From     string     // the address of a transport that came to carry the session
	Counters *Counters  // final ones, of a session that is over
}

// Counters are a session's inner octets over its whole life.
type Counters struct{ RxBytes, TxBytes uint64 }

// historySize is how many events a Bus keeps for those who come late.
const historySize = 1024

// subscriberQueue is how far a reader may fall behind before it is cut off.
const subscriberQueue = 256

// Bus hands events to whoever listens and remembers the last of them. A reader
// that does not keep up is cut off rather than waited for. The zero Bus is
// ready to use; its methods may be called from any goroutine.
type Bus struct {
	mu      sync.Mutex // guards everything below
	history []Event    // the last of them are remembered
	readers map[chan Event]struct{}
}

// Publish records e, stamping it with the present time if it has none.
func (b *Bus) Publish(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.history) == 2*historySize { // moved once for so many
		n := copy(b.history, b.remembered())
		clear(b.history[n:])
		b.history = b.history[:n]
	}
	b.history = append(b.history, e)
	for ch := range b.readers {
		select {
		case ch <- e:
		default:
			delete(b.readers, ch)
			close(ch)
		}
	}
}

// remembered are the last events. The caller holds mu.
func (b *Bus) remembered() []Event { return b.history[max(0, len(b.history)-historySize):] }

// Subscribe returns the remembered events, oldest first, and a channel with
// those that follow, without a gap between the two. The channel is closed when
// the reader falls too far behind, or by cancel, which must be called.
func (b *Bus) Subscribe() (past []Event, next <-chan Event, cancel func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ch := make(chan Event, subscriberQueue)
	if b.readers == nil {
		b.readers = make(map[chan Event]struct{})
	}
	b.readers[ch] = struct{}{}
	cancel = func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if _, ok := b.readers[ch]; ok {
			delete(b.readers, ch)
			close(ch)
		}
	}
	return append([]Event(nil), b.remembered()...), ch, cancel
}
