package wire

import (
	"encoding/binary"
	"time"
)

// Lifetime is what ends a session whatever its ends do: docs/protocol.md,
// "Life of a session". Zero: no such end. Whole seconds on the wire, rounded up,
// so that what there is never looks like none.
type Lifetime struct {
	Idle     time.Duration // without an inner packet in either direction
	Absolute time.Duration // left of the session's life when this was sent
	Reauth   time.Duration // from one proof of who the node is to the next
}

// maxLifetime is what 32 bits of seconds hold.
const maxLifetime = (1<<32 - 1) * time.Second

// Whole is l as the other end will read it.
func (l Lifetime) Whole() Lifetime {
	return Lifetime{Idle: whole(l.Idle), Absolute: whole(l.Absolute), Reauth: whole(l.Reauth)}
}

func whole(d time.Duration) time.Duration { return (d + time.Second - 1).Truncate(time.Second) }

func appendSeconds(b []byte, d time.Duration) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(whole(d)/time.Second))
}

func seconds(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Second
}

var lifetime = fixed(12,
	func(b []byte, l Lifetime) []byte {
		return appendSeconds(appendSeconds(appendSeconds(b, l.Idle), l.Absolute), l.Reauth)
	},
	func(b []byte) Lifetime {
		return Lifetime{Idle: seconds(b), Absolute: seconds(b[4:]), Reauth: seconds(b[8:])}
	},
).where(func(l Lifetime) error {
	for _, d := range [...]time.Duration{l.Idle, l.Absolute, l.Reauth} {
		if err := validSeconds(d); err != nil {
			return err
		}
	}
	return nil
})

var avpLifetime = vendor(40, "Lifetime", noMBit, lifetime)
