// Package redirect decides where a node goes whose gateway is about to go or
// sends it on, and when and with which words such a gateway sends its nodes away:
// docs/protocol.md, "Drain and retarget". It is pure: no clock, no connection;
// whoever calls it has those.
package redirect

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// MaxHops is how often in a row a node lets itself be sent on before it takes its
// own order again: two gateways may name each other.
const MaxHops = 4

// Patience is how long a node whose transport was lost tries the gateway of its
// connection alone. With another one its sessions end, and a gateway that is
// restarted is back within a moment.
const Patience = 5 * time.Second

// ErrLoop says that a node was sent on too often to follow any more.
var ErrLoop = errors.New("gateways send this node on to each other")

// Way is how one control connection of a node finds a gateway.
type Way struct {
	Gateways []string                  // HOST:PORT, in the order of the configuration
	Joined   func(gateway string) bool // whether it is known who must answer there

	at     string    // the gateway dialled last
	prefer string    // the gateway to be tried first: another one named it, or the node moves there
	hops   int       // sent on in a row
	lostAt time.Time // when the connection's transport was; zero: it has one, or there is no connection
	leave  *Leave
	turned bool // away: the gateway takes no new session
}

// Leave is what a node does about a gateway that is about to go: it moves to
// another one of its own, or waits.
type Leave struct {
	To string // empty: there is no other, it waits
	At time.Time

	failures int
}

// At is the gateway dialled last; empty: none was.
func (w *Way) At() string { return w.at }

// Leave is what the gateway's going leads to; nil: it stays.
func (w *Way) Leave() *Leave { return w.leave }

// Dialled: gateway has answered, and is to carry the connection.
func (w *Way) Dialled(gateway string) { w.at = gateway }

// Arrived: a transport carries the connection.
func (w *Way) Arrived() {
	w.hops, w.prefer, w.lostAt = 0, "", time.Time{}
}

// Lost: the connection has no transport any more.
func (w *Way) Lost(now time.Time) { w.lostAt = now }

// Ended: there is no connection any more.
func (w *Way) Ended() { w.leave, w.lostAt, w.turned = nil, time.Time{}, false }

// Restarted: the gateway is another process, which has forgotten that it was
// about to go.
func (w *Way) Restarted() { w.leave = nil }

// allowed is the first of the named gateways that is one of the node's own, and
// one that it has joined, so that it is known who must answer there. With none
// named any of its own will do. Nothing else in what a gateway names counts.
func (w *Way) allowed(named []string) string {
	if len(named) == 0 {
		named = w.Gateways
	}
	for _, g := range named {
		if g != w.at && slices.Contains(w.Gateways, g) && w.Joined(g) {
			return g
		}
	}
	return ""
}

// Drains takes what the gateway says of its going: the nodes should leave it at
// that time, for one of those named.
func (w *Way) Drains(leaving bool, named []string, at time.Time) {
	w.leave, w.turned = nil, false
	if leaving {
		w.leave = &Leave{To: w.allowed(named), At: at}
	}
}

// SentOn takes the gateways that one named which took no set-up.
func (w *Way) SentOn(named []string) {
	if w.hops++; w.hops > MaxHops {
		w.prefer = ""
		return
	}
	w.prefer = w.allowed(named)
}

// TurnedAway: the gateway takes no new session in the connection that it has with
// the node, since it is about to go.
func (w *Way) TurnedAway() { w.turned = true }

// Useless reports whether a connection with so many sessions is to be given up,
// because another gateway may take one and the present one does not.
func (w *Way) Useless(sessions int) bool { return w.turned && sessions == 0 && len(w.Gateways) > 1 }

// Err is why nothing was reached where that is the gateways' doing; else nil.
func (w *Way) Err() error {
	if w.hops <= MaxHops {
		return nil
	}
	return fmt.Errorf("%w: sent on %d times in a row, and none of them takes it", ErrLoop, w.hops)
}

// Next is the gateway to be tried after those: where the node was sent or moves,
// then home, which has the connection, then the others in their order. Empty:
// none is left. Home is empty where there is no connection.
func (w *Way) Next(tried []string, home string, now time.Time) string {
	order := append([]string{w.prefer, home}, w.Gateways...)
	switch {
	case home == "":
	case w.lostAt.IsZero(): // a transport beside the living one
		order = []string{home}
	case w.waits(now):
		order = []string{w.prefer, home}
	}
	for _, g := range order {
		if g != "" && !slices.Contains(tried, g) {
			return g
		}
	}
	return ""
}

// waits reports whether the gateway of a lost transport may yet come back. Of one
// that has sent the node away nobody expects that.
func (w *Way) waits(now time.Time) bool {
	return now.Before(w.lostAt.Add(Patience)) && (w.leave == nil || w.leave.To == "")
}

// Due is where to move now; empty: nowhere, but look again after wait, if that is
// not 0.
func (w *Way) Due(now time.Time) (to string, wait time.Duration) {
	if w.leave == nil || w.leave.To == "" {
		return "", 0
	}
	if left := w.leave.At.Sub(now); left > 0 {
		return "", left
	}
	return w.leave.To, 0
}

// Moves: the other gateway has answered, and the present one is given up.
func (w *Way) Moves() {
	w.prefer, w.leave = w.leave.To, nil
}

// NotMoved counts that the other gateway was not reached; backoff says when it is
// tried again.
func (w *Way) NotMoved(now time.Time, backoff func(failures int) time.Duration) {
	w.leave.failures++
	w.leave.At = now.Add(backoff(w.leave.failures))
}
