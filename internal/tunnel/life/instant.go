package life

import (
	"math"
	"time"
)

// Instant is a point on CLOCK_BOOTTIME, as what has passed since the host
// started: it goes on while the host sleeps, and nobody can set it. One of
// before the start is negative.
type Instant time.Duration

// Never is after every instant.
const Never Instant = math.MaxInt64

// Plus is the instant d later; Never stays Never.
func (b Instant) Plus(d time.Duration) Instant {
	if b == Never {
		return Never
	}
	return b + Instant(d)
}

// Since is what has passed from a to b.
func (b Instant) Since(a Instant) time.Duration { return time.Duration(b - a) }

// Wall is the instant as a Time; zero for Never.
func (b Instant) Wall(now Instant, wall time.Time) time.Time {
	if b == Never {
		return time.Time{}
	}
	return wall.Add(b.Since(now))
}
