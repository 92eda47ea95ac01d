package control

import (
	"errors"
	"time"

	"tunneld/internal/session"
)

// Parking. A connection at rest is in its record, all of it, and that is in the
// journal: a Conn whose Config says so ends when it has been at rest for long
// enough, and whoever has its record may go on with it later, as after a restart:
// Restore, and Started with what is left of the grace.

// ErrParked says that the Conn has ended because its connection was at rest.
// Nothing of what was given to it is lost: it was not taken.
var ErrParked = errors.New("control: connection is parked")

// AtRest reports whether the connection is its record as it was saved last, and
// nothing more: it is suspended, and nothing is under way.
func (m *Machine) AtRest() bool {
	return m.state == session.Suspended && m.next == nil && !m.asked && !m.dirty && !m.rec.SuspendedAt.IsZero()
}

// rest plans the end of a Conn that has come to rest, and takes the plan back
// where it has not.
func (c *Conn) rest() {
	rests := c.m.cfg.ParkAfter > 0 && c.m.AtRest() && !c.graceTo.IsZero() && len(c.transports) == 0 && len(c.lingering) == 0 && c.again == nil
	switch {
	case !rests:
		c.rested = nil
	case c.rested == nil:
		c.rested = time.After(c.m.cfg.ParkAfter)
	}
}

// Parked reports whether the Conn has ended with ErrParked.
func (c *Conn) Parked() bool {
	select {
	case <-c.done:
		return errors.Is(c.ended, ErrParked)
	default:
		return false
	}
}

// Remaining is what is left of the grace of a parked connection.
func (c *Conn) Remaining() time.Duration { return max(0, time.Until(c.graceTo)) }
