package control

import (
	"math/rand/v2"
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

// Backoff is how long an initiator waits after so many failures in a row, with
// jitter so that the nodes of a gateway do not come back in step.
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
