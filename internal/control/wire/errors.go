package wire

import (
	"errors"
	"fmt"
	"strings"
)

// What can be wrong with a message. Every error of Parse, Append and ReadPacket
// that is not the transport's is an [*Error] around one of these, or an
// [*UnknownAVPError].
var (
	ErrHeader         = errors.New("wire: not a control message")
	ErrLength         = errors.New("wire: length is wrong")
	ErrRange          = errors.New("wire: value out of range")
	ErrMissing        = errors.New("wire: mandatory AVP is missing")
	ErrRepeated       = errors.New("wire: AVP stands too often")
	ErrHidden         = errors.New("wire: AVP hiding and message authentication are not used here")
	ErrUnknownMessage = errors.New("wire: unknown message type with the M bit set")
)

// An Error says what is wrong with a message and where.
type Error struct {
	Kind   error       // one of the sentinels of this package
	Detail string      // the value, and what it should be; may be empty
	AVP    string      // name of the AVP; empty when it is about the whole message
	Type   MessageType // 0 when it was not known yet
}

func (e *Error) Error() string {
	s := e.Kind.Error()
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	switch {
	case e.AVP != "" && e.Type != 0:
		s += fmt.Sprintf(" (%s in %v)", e.AVP, e.Type)
	case e.AVP != "":
		s += fmt.Sprintf(" (%s)", e.AVP)
	case e.Type != 0:
		s += fmt.Sprintf(" (%v)", e.Type)
	}
	return s
}

// Unwrap returns the sentinel.
func (e *Error) Unwrap() error { return e.Kind }

// UnknownAVPError is an AVP with the M bit set that has no meaning in its
// message (RFC 3931, section 5.2). Receiving one ends the session or the
// control connection it is about.
type UnknownAVPError struct {
	Type           MessageType
	Vendor, Number uint16
}

func (e *UnknownAVPError) Error() string {
	return fmt.Sprintf("wire: unknown AVP %d of vendor %d with the M bit set (%v)", e.Number, e.Vendor, e.Type)
}

// ResultFor is what the peer is told about err, the error of a message of type
// t: by CDN if t is about a session, else by StopCCN. With t 0 it is the type
// that err knows, if any ([TypeOf]). The Result Code is 2 in both: "see Error
// Code". An error that is not of this package tells the peer nothing but that
// something went wrong.
func ResultFor(err error, t MessageType) Result {
	if t == 0 {
		t = TypeOf(err)
	}
	r := Result{Code: StopError}
	if t.OfSession() {
		r.Code = CDNError
	}
	r.Error, r.Text = publicly(err)
	return r
}

// TypeOf is the type of the message that err is about, 0 if that is not known.
func TypeOf(err error) MessageType {
	if e, ok := errors.AsType[*UnknownAVPError](err); ok {
		return e.Type
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Type
	}
	return 0
}

// publicly is what the peer may know of err: only this package's part of it.
func publicly(err error) (ErrorCode, string) {
	if e, ok := errors.AsType[*UnknownAVPError](err); ok {
		return ErrorUnknownAVP, public(e)
	}
	e, ok := errors.AsType[*Error](err)
	switch {
	case !ok:
		return ErrorVendor, ""
	case e.Kind == ErrLength || e.Kind == ErrHeader:
		return ErrorLength, public(e)
	}
	return ErrorRange, public(e)
}

func public(err error) string { return cleanText(strings.TrimPrefix(err.Error(), "wire: ")) }

func lengthError(format string, args ...any) error {
	return &Error{Kind: ErrLength, Detail: fmt.Sprintf(format, args...)}
}

func rangeError(format string, args ...any) error {
	return &Error{Kind: ErrRange, Detail: fmt.Sprintf(format, args...)}
}

func missing(detail string) error { return &Error{Kind: ErrMissing, Detail: detail} }

// tooMany is an error that no M bit excuses: what a peer can make us keep is
// bounded.
func tooMany(n, most int, what string) error {
	return &Error{Kind: ErrRepeated, Detail: fmt.Sprintf("%d %s, at most %d", n, what, most)}
}

// at fills in where err arose, unless that is known already.
func at(err error, t MessageType, avp string) error {
	if e, ok := err.(*Error); ok {
		if e.Type == 0 {
			e.Type = t
		}
		if e.AVP == "" {
			e.AVP = avp
		}
	}
	return err
}
