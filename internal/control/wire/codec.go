package wire

import (
	"encoding/binary"
	"net/netip"
	"time"

	"tunneld/internal/session"
)

// Bounds of what one message may hold.
const (
	// MaxList bounds every list of addresses, prefixes and session pairs.
	MaxList = 1024
	// MaxText bounds names and texts, in octets.
	MaxText = 255
	// MaxChunked bounds a value that is spread over several AVPs, in octets.
	MaxChunked = 16 << 10
	// MinMTU is the least MTU that a session may be given (RFC 791: every
	// host must take 576 octets).
	MinMTU = 576
)

// A codec turns values into the octets of an AVP's value and back. check is
// asked in both directions, so that nothing is sent that would be refused.
type codec[T any] struct {
	min, max int // octets
	put      func([]byte, T) []byte
	get      func([]byte) (T, error) // of min to max octets; must not keep them
	check    func(T) error           // nil: every value will do
}

// fixed is a codec of exactly n octets, where every combination is a value.
func fixed[T any](n int, put func([]byte, T) []byte, get func([]byte) T) codec[T] {
	return codec[T]{n, n, put, func(b []byte) (T, error) { return get(b), nil }, nil}
}

// where returns c for values that pass check only.
func (c codec[T]) where(check func(T) error) codec[T] {
	c.check = check
	return c
}

func (c codec[T]) parse(b []byte) (v T, err error) {
	if len(b) < c.min || len(b) > c.max {
		if c.min == c.max {
			return v, lengthError("value of %d octets, want %d", len(b), c.min)
		}
		return v, lengthError("value of %d octets, want %d to %d", len(b), c.min, c.max)
	}
	if v, err = c.get(b); err == nil && c.check != nil {
		err = c.check(v)
	}
	return v, err
}

var (
	u16 = fixed(2, binary.BigEndian.AppendUint16, binary.BigEndian.Uint16)
	u32 = fixed(4, binary.BigEndian.AppendUint32, binary.BigEndian.Uint32)
	u64 = fixed(8, binary.BigEndian.AppendUint64, binary.BigEndian.Uint64)

	uuid = fixed(16,
		func(b []byte, id session.ID) []byte { return append(b, id[:]...) },
		func(b []byte) session.ID { return session.ID(b) }).where(notZero)

	octets32 = fixed(32,
		func(b []byte, v [32]byte) []byte { return append(b, v[:]...) },
		func(b []byte) [32]byte { return [32]byte(b) })

	// present is an AVP without a value: it says yes by being there.
	present = fixed(0, func(b []byte, _ bool) []byte { return b }, func([]byte) bool { return true })

	// chunk is a part of a value that is too long for one AVP.
	chunk = codec[[]byte]{min: 1, max: avpMaxValue}
)

func notZero[T comparable](v T) error {
	var zero T
	if v == zero {
		return rangeError("must not be 0")
	}
	return nil
}

func mustBeZero(v uint32) error {
	if v != 0 {
		return rangeError("%d, must be 0: the peer has not chosen one yet", v)
	}
	return nil
}

func atLeast(least uint16) func(uint16) error {
	return func(v uint16) error {
		if v < least {
			return rangeError("%d, must be at least %d", v, least)
		}
		return nil
	}
}

// u16list is one AVP of u16 values, at least one (RFC 3931, section 5.4.3,
// Pseudowire Capabilities List).
var u16list = codec[[]uint16]{
	min: 2, max: avpMaxValue - 1,
	put: func(b []byte, list []uint16) []byte {
		for _, v := range list {
			b = binary.BigEndian.AppendUint16(b, v)
		}
		return b
	},
	get: func(b []byte) ([]uint16, error) {
		if len(b)%2 != 0 {
			return nil, lengthError("list of %d octets, want an even number", len(b))
		}
		list := make([]uint16, len(b)/2)
		for i := range list {
			list[i] = binary.BigEndian.Uint16(b[2*i:])
		}
		return list, nil
	},
	check: func(list []uint16) error {
		if len(list) == 0 || len(list) > avpMaxValue/2 {
			return rangeError("list of %d values, want 1 to %d", len(list), avpMaxValue/2)
		}
		return nil
	},
}

// appendDuration writes d in whole milliseconds; validDuration has seen it.
func appendDuration(b []byte, d time.Duration) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(d.Milliseconds()))
}

func duration(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Millisecond
}

func validDuration(d time.Duration) error {
	if ms := d.Milliseconds(); d < 0 || ms > 1<<32-1 {
		return rangeError("%v, must be 0 to %v", d, time.Duration(1<<32-1)*time.Millisecond)
	}
	return nil
}

// Family octets of addresses and prefixes.
const (
	family4 = 4
	family6 = 6
)

func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		v := a.As4()
		return append(b, v[:]...)
	}
	v := a.As16()
	return append(b, v[:]...)
}

func familyOf(a netip.Addr) byte {
	if a.Is4() {
		return family4
	}
	return family6
}

// parseAddr reads an address of the family; the octets must be all of b.
func parseAddr(family byte, b []byte) (netip.Addr, error) {
	switch {
	case family == family4 && len(b) == 4:
		return netip.AddrFrom4([4]byte(b)), nil
	case family == family6 && len(b) == 16:
		return netip.AddrFrom16([16]byte(b)), nil
	case family == family4 || family == family6:
		return netip.Addr{}, lengthError("address of family %d in %d octets", family, len(b))
	}
	return netip.Addr{}, rangeError("address family %d, want %d or %d", family, family4, family6)
}

// validAddr refuses what has two spellings or means something on one host only.
func validAddr(a netip.Addr) error {
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
		return rangeError("address %v, want a plain IPv4 or IPv6 address", a)
	}
	return nil
}

var address = codec[netip.Addr]{
	min: 5, max: 17,
	put:   func(b []byte, a netip.Addr) []byte { return appendAddr(append(b, familyOf(a)), a) },
	get:   func(b []byte) (netip.Addr, error) { return parseAddr(b[0], b[1:]) },
	check: validAddr,
}

var prefix = codec[netip.Prefix]{
	min: 6, max: 18,
	put: func(b []byte, p netip.Prefix) []byte {
		return appendAddr(append(b, familyOf(p.Addr()), byte(p.Bits())), p.Addr())
	},
	get: func(b []byte) (netip.Prefix, error) {
		a, err := parseAddr(b[0], b[2:])
		if err != nil {
			return netip.Prefix{}, err
		}
		if int(b[1]) > a.BitLen() {
			return netip.Prefix{}, rangeError("prefix of %d bits, an address has %d", b[1], a.BitLen())
		}
		return netip.PrefixFrom(a, int(b[1])), nil
	},
	check: func(p netip.Prefix) error {
		if err := validAddr(p.Addr()); err != nil {
			return err
		}
		if !p.IsValid() || p != p.Masked() {
			return rangeError("prefix %v has host bits, want %v", p, p.Masked())
		}
		return nil
	},
}

// name is text that is compared or shown as somebody's name: ascii says whether
// the RFC wants US-ASCII; in both, only what prints.
func name(ascii bool) codec[string] {
	return codec[string]{
		min: 1, max: MaxText,
		put:   func(b []byte, s string) []byte { return append(b, s...) },
		get:   func(b []byte) (string, error) { return string(b), nil },
		check: func(s string) error { return validName(s, ascii) },
	}
}

// resultCode is RFC 3931, section 5.4.2. The text is cleaned, never refused: an
// end must be understood whatever its explanation looks like.
var resultCode = codec[Result]{
	min: 2, max: avpMaxValue,
	put: func(b []byte, r Result) []byte {
		b = binary.BigEndian.AppendUint16(b, uint16(r.Code))
		text := cleanText(r.Text)
		if r.Error != ErrorNone || text != "" {
			b = binary.BigEndian.AppendUint16(b, uint16(r.Error))
		}
		return append(b, text...)
	},
	get: func(b []byte) (Result, error) {
		r := Result{Code: ResultCode(binary.BigEndian.Uint16(b))}
		switch {
		case len(b) == 3:
			return r, lengthError("value of 3 octets ends within the Error Code")
		case len(b) > 3:
			r.Error = ErrorCode(binary.BigEndian.Uint16(b[2:]))
			r.Text = cleanText(string(b[4:]))
		}
		return r, nil
	},
	check: func(r Result) error {
		if r.Code == 0 {
			return rangeError("Result Code 0 is reserved")
		}
		return nil
	},
}

var cause = fixed(2,
	func(b []byte, c Cause) []byte { return binary.BigEndian.AppendUint16(b, uint16(c)) },
	func(b []byte) Cause { return Cause(binary.BigEndian.Uint16(b)) })

// circuitStatus is RFC 3931, section 5.4.5: bit 15 A, bit 14 N.
var circuitStatus = fixed(2,
	func(b []byte, s CircuitStatus) []byte {
		var v byte
		if s.Active {
			v |= 1
		}
		if s.New {
			v |= 2
		}
		return append(b, 0, v)
	},
	func(b []byte) CircuitStatus { return CircuitStatus{Active: b[1]&1 != 0, New: b[1]&2 != 0} })

// circuitErrors is RFC 3931, section 5.4.5. The section draws 18 octets of value
// and gives the Length as 32, that of RFC 2661, section 4.4.6, which has CRC and
// framing errors before the four counters. The longer form is what stands in the
// Length and what others decode, so it is sent; both are read.
var circuitErrors = codec[CircuitErrors]{
	min: 18, max: 26,
	put: func(b []byte, e CircuitErrors) []byte {
		b = append(b, make([]byte, 10)...) // reserved, CRC errors, framing errors
		for _, v := range [...]uint32{e.HardwareOverruns, e.BufferOverruns, e.Timeouts, e.Alignment} {
			b = binary.BigEndian.AppendUint32(b, v)
		}
		return b
	},
	get: func(b []byte) (CircuitErrors, error) {
		if len(b) != 18 && len(b) != 26 {
			return CircuitErrors{}, lengthError("value of %d octets, want 18 or 26", len(b))
		}
		c := b[len(b)-16:]
		return CircuitErrors{
			HardwareOverruns: binary.BigEndian.Uint32(c),
			BufferOverruns:   binary.BigEndian.Uint32(c[4:]),
			Timeouts:         binary.BigEndian.Uint32(c[8:]),
			Alignment:        binary.BigEndian.Uint32(c[12:]),
		}, nil
	},
}

// failover is RFC 4951, section 5.1.
var failover = fixed(6,
	func(b []byte, f Failover) []byte {
		var flags byte
		if f.Control {
			flags |= 1
		}
		if f.Data {
			flags |= 2
		}
		return appendDuration(append(b, 0, flags), f.RecoveryTime)
	},
	func(b []byte) Failover {
		return Failover{Control: b[1]&1 != 0, Data: b[1]&2 != 0, RecoveryTime: duration(b[2:])}
	},
).where(func(f Failover) error {
	if !f.Control && !f.Data {
		return rangeError("neither control nor data can be recovered: leave the AVP out")
	}
	return validDuration(f.RecoveryTime)
})

// recovery is RFC 4951, section 5.2: two reserved octets and two ids.
var recovery = fixed(10,
	func(b []byte, r Recovery) []byte { return appendPair(b, r.LocalID, r.RemoteID) },
	func(b []byte) Recovery { l, r := pair(b); return Recovery{l, r} },
).where(func(r Recovery) error {
	if r.LocalID == 0 || r.RemoteID == 0 {
		return rangeError("ids %d and %d, neither may be 0", r.LocalID, r.RemoteID)
	}
	return nil
})

// sessionPair is RFC 4951, section 5.4: as recovery. In an answer one id may be
// 0 for "not known here".
var (
	sessionPair = fixed(10,
		func(b []byte, p SessionPair) []byte { return appendPair(b, p.LocalID, p.RemoteID) },
		func(b []byte) SessionPair { l, r := pair(b); return SessionPair{l, r} })
	askedPair = sessionPair.where(func(p SessionPair) error {
		if p.LocalID == 0 || p.RemoteID == 0 {
			return rangeError("ids %d and %d, neither may be 0", p.LocalID, p.RemoteID)
		}
		return nil
	})
)

func appendPair(b []byte, local, remote uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(append(b, 0, 0), local), remote)
}

func pair(b []byte) (local, remote uint32) {
	return binary.BigEndian.Uint32(b[2:]), binary.BigEndian.Uint32(b[6:])
}

var proof = fixed(48,
	func(b []byte, p Proof) []byte {
		b = binary.BigEndian.AppendUint64(b, p.Generation)
		b = binary.BigEndian.AppendUint64(b, p.Attempt)
		return append(b, p.MAC[:]...)
	},
	func(b []byte) Proof {
		return Proof{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), [32]byte(b[16:])}
	})

var cursor = fixed(4,
	func(b []byte, c Cursor) []byte {
		return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, c.Ns), c.Nr)
	},
	func(b []byte) Cursor { return Cursor{binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])} })

// timers refuses an interval or a count of 0: a peer must not be made to send
// without pause, nor to suspend without reason.
var timers = fixed(10,
	func(b []byte, t Timers) []byte {
		b = binary.BigEndian.AppendUint16(appendDuration(b, t.Hello), t.Misses)
		return appendDuration(b, t.Grace)
	},
	func(b []byte) Timers {
		return Timers{Hello: duration(b), Misses: binary.BigEndian.Uint16(b[4:]), Grace: duration(b[6:])}
	},
).where(func(t Timers) error {
	if t.Hello < time.Millisecond || t.Misses == 0 {
		return rangeError("hello %v and misses %d, want at least 1ms and 1", t.Hello, t.Misses)
	}
	if err := validDuration(t.Hello); err != nil {
		return err
	}
	return validDuration(t.Grace)
})

var statistics = fixed(32,
	func(b []byte, s Statistics) []byte {
		for _, v := range [...]uint64{s.RxPackets, s.TxPackets, s.RxBytes, s.TxBytes} {
			b = binary.BigEndian.AppendUint64(b, v)
		}
		return b
	},
	func(b []byte) Statistics {
		return Statistics{
			RxPackets: binary.BigEndian.Uint64(b), TxPackets: binary.BigEndian.Uint64(b[8:]),
			RxBytes: binary.BigEndian.Uint64(b[16:]), TxBytes: binary.BigEndian.Uint64(b[24:]),
		}
	})
