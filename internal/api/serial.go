package api

import "context"

// A Condition of a request that changes a session: only if it is still at that
// serial, which `status` and `session show` tell; 0: whatever it is at. So of two
// who have seen the same session one changes it, and the other is told.
type Condition struct {
	IfSerial uint64 `json:"if_serial,omitempty"`
}

// conditional is a request that may have one.
type conditional interface{ ifSerial() uint64 }

func (c Condition) ifSerial() uint64 { return c.IfSerial }

type conditionKey struct{}

// WithIfSerial is a context of requests with that condition.
func WithIfSerial(ctx context.Context, serial uint64) context.Context {
	return context.WithValue(ctx, conditionKey{}, serial)
}

// IfSerialOf is the condition of the request that a Manager's method answers; 0:
// none.
func IfSerialOf(ctx context.Context) uint64 {
	serial, _ := ctx.Value(conditionKey{}).(uint64)
	return serial
}

func conditionOf(ctx context.Context) Condition { return Condition{IfSerialOf(ctx)} }
