package wire

import "time"

// Refresher says which end refreshes a session (RFC 4028, section 7.1).
type Refresher uint8

// The refreshers. RefresherAny leaves it to the gateway; only a node's proposal
// may.
const (
	RefresherAny Refresher = iota
	RefresherNode
	RefresherGateway
)

// String names the refresher in the words of the configuration.
func (r Refresher) String() string {
	return [...]string{"", "node", "gateway"}[min(r, RefresherGateway)]
}

// Expires is how long a session lives after it was refreshed last, and who
// refreshes it: docs/protocol.md, "Lifetime and refresher". Whole seconds on the
// wire, rounded up.
type Expires struct {
	After     time.Duration // 0: without a bound, or no wish
	Refresher Refresher
}

// Whole is e as the other end will read it.
func (e Expires) Whole() Expires { return Expires{whole(e.After), e.Refresher} }

// Agrees reports whether e answers what was asked: no longer than that, and
// refreshed by the end that was named, if there was one.
func (e Expires) Agrees(asked Expires) bool {
	return e.After > 0 && (asked.After == 0 || e.After <= asked.After) &&
		e.Refresher != RefresherAny && (asked.Refresher == RefresherAny || e.Refresher == asked.Refresher)
}

func validSeconds(d time.Duration) error {
	if d < 0 || d > maxLifetime {
		return rangeError("%v, must be 0 to %v", d, time.Duration(maxLifetime))
	}
	return nil
}

var (
	avpExpires = vendor(41, "Session Expires", noMBit, fixed(5,
		func(b []byte, e Expires) []byte { return append(appendSeconds(b, e.After), byte(e.Refresher)) },
		func(b []byte) Expires { return Expires{seconds(b), Refresher(b[4])} },
	).where(func(e Expires) error {
		if e.Refresher > RefresherGateway {
			return rangeError("refresher %d, must be 0 to %d", e.Refresher, RefresherGateway)
		}
		return validSeconds(e.After)
	}))
	avpFloor = vendor(42, "Minimum Expires", noMBit, fixed(4, appendSeconds, seconds).where(func(d time.Duration) error {
		if d == 0 {
			return rangeError("must not be 0")
		}
		return validSeconds(d)
	}))
)

// floor is the least lifetime, beside the Result Code and the Cause of a refusal.
func floor[M any](of func(m *M, grow bool) *Result) []field {
	return []field{{
		attr: avpFloor.attr,
		append: func(b []byte, m Message) ([]byte, error) {
			if r := of(any(m).(*M), false); r != nil && r.Floor != 0 {
				return appendOne(b, avpFloor, r.Floor)
			}
			return b, nil
		},
		parse: func(m Message, value []byte) error {
			v, err := avpFloor.parse(value)
			if err == nil {
				of(any(m).(*M), true).Floor = v
			}
			return err
		},
	}}
}
