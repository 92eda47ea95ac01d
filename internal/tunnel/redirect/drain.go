package redirect

import (
	"time"

	"tunneld/internal/control/wire"
)

// Drain is a gateway about to go. It is forgotten with the process; nil is one
// that stays.
type Drain struct {
	Since time.Time
	Over  time.Duration // in which the nodes are to leave, one after the other
	To    []string      // where they should go; none: whichever other they have

	// Random is a random duration in [0, n).
	Random func(n time.Duration) time.Duration
}

// Slot is when the i-th of n nodes is to leave: its part of the time, and a random
// instant in that.
func (d *Drain) Slot(i, n int) time.Time {
	part := d.Over / time.Duration(max(n, 1))
	return d.Since.Add(part*time.Duration(i) + d.Random(part+1))
}

// Late is when a node is to leave that comes back while the gateway drains.
func (d *Drain) Late(now time.Time) time.Time { return now.Add(d.Random(d.Over + 1)) }

// Refuses is what somebody is told who asks for something, with the code of a
// StopCCN or a CDN; nil: it is granted as ever. What goes on with something that
// was there is.
func (d *Drain) Refuses(code wire.ResultCode, goesOn bool) *wire.Result {
	if d == nil || goesOn {
		return nil
	}
	r := &wire.Result{Code: code, Error: wire.ErrorTryAnother, Cause: wire.CauseDraining}
	if len(d.To) > 0 {
		r.Error = wire.ErrorTryNamed
	}
	return r
}
