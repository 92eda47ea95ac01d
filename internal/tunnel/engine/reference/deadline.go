package reference

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootClock is CLOCK_BOOTTIME in ns: it goes on while the host sleeps, and nobody
// can set it. The kernel answers without a system call.
func bootClock() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every kernel since 2.6.39 has it
	}
	return ts.Nano()
}

// bootInstant is when a deadline is on bootClock; 0 for none.
func bootInstant(deadline time.Time) int64 {
	if deadline.IsZero() {
		return 0
	}
	left := time.Until(deadline)
	now := bootClock()
	if at := now + int64(left); at > 0 && left > 0 {
		return at
	}
	return 1 // long over
}

// over reports whether p's deadline is past. The clock is read once a batch, and
// only where a session has a deadline.
func (c *tally) over(p *peer) bool {
	ends := p.ends.Load()
	if ends == 0 {
		return false
	}
	if c.now == 0 {
		c.now = bootClock()
	}
	return c.now >= ends
}
