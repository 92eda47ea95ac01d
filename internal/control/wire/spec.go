package wire

import "slices"

// Numbers of AVPs that are looked at by themselves.
const (
	numMessageType   = 0
	numRandomVector  = 36
	numMessageDigest = 59
	numAuthNonce     = 73
)

// An avp is a kind of AVP together with how its value is spelt.
type avp[T any] struct {
	*attr
	codec[T]
}

const (
	mBit   = true  // the peer must not go on without understanding it
	noMBit = false // the peer may leave it aside
)

func standard[T any](number uint16, name string, mandatory bool, c codec[T]) avp[T] {
	return avp[T]{&attr{ietf, number, name, mandatory, c.min, c.max}, c}
}

func vendor[T any](number uint16, name string, mandatory bool, c codec[T]) avp[T] {
	return avp[T]{&attr{VendorID, number, name, mandatory, c.min, c.max}, c}
}

// AVPs of RFC 3931, section 5.4, with the M bits it recommends, and of RFC 4951,
// section 5. What a message asks of a value beyond its layout stands with the
// message.
var (
	avpResultCode     = standard(1, "Result Code", mBit, resultCode)
	avpTieBreaker     = standard(5, "Tie Breaker", mBit, u64.where(notZero))
	avpHostName       = standard(7, "Host Name", mBit, name(true))
	avpVendorName     = standard(8, "Vendor Name", noMBit, name(true))
	avpReceiveWindow  = standard(10, "Receive Window Size", mBit, u16.where(notZero))
	avpSerial         = standard(15, "Serial Number", noMBit, u32)
	avpCircuitErrors  = standard(34, "Circuit Errors", noMBit, circuitErrors)
	avpRouterID       = standard(60, "Router ID", mBit, u32)
	avpAssignedID     = standard(61, "Assigned Control Connection ID", mBit, u32.where(notZero))
	avpPseudowires    = standard(62, "Pseudowire Capabilities List", mBit, u16list)
	avpLocalID        = standard(63, "Local Session ID", mBit, u32.where(notZero))
	avpLocalIDOrNone  = standard(63, "Local Session ID", mBit, u32)
	avpRemoteID       = standard(64, "Remote Session ID", mBit, u32.where(notZero))
	avpRemoteIDOrNone = standard(64, "Remote Session ID", mBit, u32)
	avpNoRemoteID     = standard(64, "Remote Session ID", mBit, u32.where(mustBeZero))
	avpRemoteEnd      = standard(66, "Remote End ID", mBit, name(false))
	avpPWType         = standard(68, "Pseudowire Type", mBit, u16)
	avpCircuitStatus  = standard(71, "Circuit Status", mBit, circuitStatus)
	avpFailover       = standard(76, "Failover Capability", noMBit, failover)
	avpRecovery       = standard(77, "Tunnel Recovery", mBit, recovery)
	avpSessionState   = standard(79, "Failover Session State", noMBit, sessionPair.where(notZero))
	avpAskedSession   = standard(79, "Failover Session State", noMBit, askedPair)
)

// AVPs of our own: docs/protocol.md, "AVPs". Number 0 is the Message Type of
// our own messages. Numbers are never given out twice.
var (
	avpVersion        = vendor(1, "Protocol Version", mBit, u16.where(notZero))
	avpCapabilities   = vendor(2, "Capabilities", noMBit, u32)
	avpBootID         = vendor(3, "Boot ID", mBit, uuid)
	avpKeyShare       = vendor(4, "Key Share", mBit, octets32)
	avpProof          = vendor(5, "Resume Proof", mBit, proof)
	avpCursor         = vendor(6, "Cursor", mBit, cursor)
	avpRecoveryBootID = vendor(7, "Recovery Boot ID", mBit, uuid)
	avpPublicKey      = vendor(8, "Public Key", mBit, octets32)
	avpKeyProof       = vendor(9, "Key Proof", mBit, octets32)
	avpKeyEpoch       = vendor(10, "Key Epoch", mBit, u32)
	avpSession        = vendor(11, "Session UUID", mBit, uuid)
	avpAdvertise      = vendor(12, "Advertised Prefix", mBit, prefix)
	avpAddress        = vendor(13, "Address", mBit, address)
	avpPeer           = vendor(14, "Peer Address", noMBit, address)
	avpRoute          = vendor(15, "Route", mBit, prefix)
	avpReplaceRoutes  = vendor(16, "Replace Routes", mBit, present)
	avpMTU            = vendor(17, "MTU", mBit, u16.where(atLeast(MinMTU)))
	avpTimers         = vendor(18, "Timers", mBit, timers)
	avpStatistics     = vendor(19, "Statistics", noMBit, statistics)
	avpCause          = vendor(20, "Cause", noMBit, cause)
	avpRequestID      = vendor(21, "Request ID", noMBit, uuid)
	avpCSR            = vendor(22, "Certificate Request", mBit, chunk)
	avpCertificate    = vendor(23, "Certificate", mBit, chunk)
	avpEncapsulation  = vendor(24, "Encapsulation Key", mBit, chunk)
	avpCiphertext     = vendor(25, "Key Ciphertext", mBit, chunk)
	avpCheckpoint     = vendor(30, "Checkpoint", noMBit, u64.where(notZero))
)

// A spec is one message type: its AVPs in the order in which they are sent (any
// order is read, after the Message Type).
type spec struct {
	typ    MessageType
	make   func() Message
	fields []field
	check  func(Message) error // what ties fields together; nil: nothing
}

// A field is an AVP in a message.
type field struct {
	*attr
	required bool
	repeats  bool                                      // may stand more than once
	append   func(b []byte, m Message) ([]byte, error) // nothing if it is absent
	parse    func(m Message, value []byte) error       // changes m only when it succeeds
}

// define makes the spec of message M.
func define[M any, PM interface {
	*M
	Message
}](check func(PM) error, fields ...[]field) *spec {
	s := &spec{typ: PM(nil).Type(), make: func() Message { return PM(new(M)) }, fields: slices.Concat(fields...)}
	if check != nil {
		s.check = func(m Message) error { return check(m.(PM)) }
	}
	return s
}

// appendOne writes one AVP.
func appendOne[T any](b []byte, a avp[T], v T) ([]byte, error) {
	if a.check != nil {
		if err := a.check(v); err != nil {
			return nil, err
		}
	}
	start := len(b)
	return closeAVP(a.put(appendAVPHeader(b, a.attr), v), start)
}

// must is a field that has to be there.
func must[M, T any](a avp[T], of func(*M) *T) []field {
	return []field{{
		attr:     a.attr,
		required: true,
		append:   func(b []byte, m Message) ([]byte, error) { return appendOne(b, a, *of(any(m).(*M))) },
		parse: func(m Message, value []byte) error {
			v, err := a.parse(value)
			if err == nil {
				*of(any(m).(*M)) = v
			}
			return err
		},
	}}
}

// may is a field whose zero value says that it is absent.
func may[M any, T comparable](a avp[T], of func(*M) *T) []field {
	f := must(a, of)
	write := f[0].append
	f[0].required = false
	f[0].append = func(b []byte, m Message) ([]byte, error) {
		var zero T
		if *of(any(m).(*M)) == zero {
			return b, nil
		}
		return write(b, m)
	}
	return f
}

// mayPoint is a field that is absent when nil.
func mayPoint[M, T any](a avp[T], of func(*M) **T) []field {
	return []field{{
		attr: a.attr,
		append: func(b []byte, m Message) ([]byte, error) {
			if v := *of(any(m).(*M)); v != nil {
				return appendOne(b, a, *v)
			}
			return b, nil
		},
		parse: func(m Message, value []byte) error {
			v, err := a.parse(value)
			if err == nil {
				*of(any(m).(*M)) = &v
			}
			return err
		},
	}}
}

// list is a field of up to MaxList AVPs, one a value.
func list[M, T any](a avp[T], of func(*M) *[]T) []field {
	return []field{{
		attr:    a.attr,
		repeats: true,
		append: func(b []byte, m Message) (_ []byte, err error) {
			values := *of(any(m).(*M))
			if len(values) > MaxList {
				return nil, tooMany(len(values), MaxList, "values")
			}
			for _, v := range values {
				if b, err = appendOne(b, a, v); err != nil {
					return nil, err
				}
			}
			return b, nil
		},
		parse: func(m Message, value []byte) error {
			to := of(any(m).(*M))
			if len(*to) == MaxList {
				return tooMany(MaxList+1, MaxList, "values")
			}
			v, err := a.parse(value)
			if err == nil {
				*to = append(*to, v)
			}
			return err
		},
	}}
}

// chunked is a field whose value is spread, in order, over as many AVPs as it
// takes; all are full but the last.
func chunked[M any](a avp[[]byte], required bool, of func(*M) *[]byte) []field {
	return []field{{
		attr:     a.attr,
		required: required,
		repeats:  true,
		append: func(b []byte, m Message) (_ []byte, err error) {
			value := *of(any(m).(*M))
			if len(value) > MaxChunked || required && len(value) == 0 {
				return nil, lengthError("value of %d octets, want 1 to %d", len(value), MaxChunked)
			}
			for part := range slices.Chunk(value, avpMaxValue) {
				start := len(b)
				if b, err = closeAVP(append(appendAVPHeader(b, a.attr), part...), start); err != nil {
					return nil, err
				}
			}
			return b, nil
		},
		parse: func(m Message, value []byte) error {
			to := of(any(m).(*M))
			switch n := len(*to) + len(value); {
			case len(value) == 0:
				return lengthError("empty part")
			case n > MaxChunked:
				return tooMany(n, MaxChunked, "octets")
			}
			*to = append(*to, value...)
			return nil
		},
	}}
}

// result is a Result Code and our Cause beside it. of returns where they are
// kept; asked with grow it makes room, else it may return nil for absent.
func result[M any](required bool, of func(m *M, grow bool) *Result) []field {
	return []field{{
		attr:     avpResultCode.attr,
		required: required,
		append: func(b []byte, m Message) ([]byte, error) {
			if r := of(any(m).(*M), false); r != nil {
				return appendOne(b, avpResultCode, *r)
			}
			return b, nil
		},
		parse: func(m Message, value []byte) error {
			v, err := avpResultCode.parse(value)
			if err == nil {
				r := of(any(m).(*M), true)
				v.Cause, v.Floor = r.Cause, r.Floor // which may have stood before
				*r = v
			}
			return err
		},
	}, {
		attr: avpCause.attr,
		append: func(b []byte, m Message) ([]byte, error) {
			if r := of(any(m).(*M), false); r != nil && r.Cause != CauseNone {
				return appendOne(b, avpCause, r.Cause)
			}
			return b, nil
		},
		parse: func(m Message, value []byte) error {
			v, err := avpCause.parse(value)
			if err == nil {
				of(any(m).(*M), true).Cause = v
			}
			return err
		},
	}}
}
