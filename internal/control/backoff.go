package control

import (
	"errors"
	"io"
	"math/rand/v2"
	"syscall"
	"time"
)

// Back-off of dials and of requests that were refused: quick at first, since a
// restarted gateway is back within a moment, then slower.
const (
	backoffFirst = 25 * time.Millisecond
	BackoffQuick = 250 * time.Millisecond
	backoffMax   = 30 * time.Second
	quickTries   = 20
)

// Backoff is how long to wait after so many failures in a row, with jitter so
// that the nodes of a gateway do not come back in step.
func Backoff(failures int) time.Duration {
	d := backoffFirst
	for range min(failures-1, 40) {
		if d >= BackoffQuick && failures <= quickTries {
			break
		}
		d = min(d*3/2, backoffMax)
	}
	return d/2 + rand.N(d/2+1)
}

// Pace says when an initiator dials again. The zero value knows no gateway yet.
type Pace struct {
	spread   time.Duration
	failures int
}

// Told keeps over how long the gateway wants its nodes to come back, should it
// lose all of them at once.
func (p *Pace) Told(spread time.Duration) { p.spread = spread }

// Lost is how long to wait with the first dial after a transport ended with err:
// a moment within the spread if it was the other end that went, and with it the
// transports of all other nodes; nothing if it was the way there.
func (p *Pace) Lost(err error) time.Duration {
	p.failures = 0
	if p.spread == 0 || !wentAway(err) {
		return 0
	}
	return rand.N(p.spread)
}

// wentAway reports whether err is of a transport whose other end closed it.
func wentAway(err error) bool {
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Failed counts a failed dial and is how long to wait with the next.
func (p *Pace) Failed() time.Duration {
	p.failures++
	return max(Backoff(p.failures), p.spread/4+rand.N(p.spread/2+1))
}

// Failures is how many dials in a row have failed.
func (p *Pace) Failures() int { return p.failures }

// Forget begins anew: somebody asked for it, or a dial succeeded.
func (p *Pace) Forget() { p.failures = 0 }
