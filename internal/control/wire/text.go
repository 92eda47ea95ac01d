package wire

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// validName accepts what may stand as a name: valid UTF-8 (or US-ASCII) that
// prints. Control characters, line separators and marks that change the
// direction of writing are refused, since names go into logs and on terminals.
func validName(s string, ascii bool) error {
	if s == "" || len(s) > MaxText {
		return rangeError("text of %d octets, want 1 to %d", len(s), MaxText)
	}
	if !utf8.ValidString(s) {
		return rangeError("%s is not UTF-8", strconv.QuoteToASCII(s))
	}
	for _, r := range s {
		if !strconv.IsPrint(r) {
			return rangeError("%s holds a character that does not print", strconv.QuoteToASCII(s))
		}
		if ascii && r >= utf8.RuneSelf {
			return rangeError("%s is not US-ASCII", strconv.QuoteToASCII(s))
		}
	}
	return nil
}

// cleanText makes a text for people safe to show: what does not print becomes
// an escape like \u000a, what is not UTF-8 becomes U+FFFD, and what is beyond
// MaxText octets is cut off. Cleaning twice changes nothing more.
func cleanText(s string) string {
	if len(s) <= MaxText && validName(s, false) == nil {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		piece := string(r)
		if !strconv.IsPrint(r) {
			piece = fmt.Sprintf(`\u%04x`, r)
		}
		if b.Len()+len(piece) > MaxText {
			break
		}
		b.WriteString(piece)
	}
	return b.String()
}

var messageNames = map[MessageType]string{
	TypeSCCRQ: "SCCRQ", TypeSCCRP: "SCCRP", TypeSCCCN: "SCCCN", TypeStopCCN: "StopCCN", TypeHello: "HELLO",
	TypeICRQ: "ICRQ", TypeICRP: "ICRP", TypeICCN: "ICCN", TypeCDN: "CDN", TypeWEN: "WEN", TypeSLI: "SLI",
	TypeACK: "ACK", TypeFSQ: "FSQ", TypeFSR: "FSR", TypeCertRequest: "CRQ", TypeCertReply: "CRP",
	TypeKeyRequest: "KRQ", TypeKeyReply: "KRP", TypeKeyChanged: "KCN",
	TypeChangeOffer: "CHO", TypeChangeAnswer: "CHA",
	TypeTicket: "TKT", TypeDrain: "DRN",
}

// String names the type as the RFC does; our own are CRQ, CRP, KRQ, KRP, KCN, TKT and DRN.
func (t MessageType) String() string {
	if s, ok := messageNames[t]; ok {
		return s
	}
	if t&vendorType != 0 {
		return fmt.Sprintf("message %d of vendor %d", uint16(t&^vendorType), VendorID)
	}
	return fmt.Sprintf("message %d", uint16(t))
}

// OfSession reports whether messages of this type are about one session, so
// that trouble with one is answered by CDN; all others are answered by StopCCN.
func (t MessageType) OfSession() bool {
	switch t {
	case TypeICRQ, TypeICRP, TypeICCN, TypeCDN, TypeWEN, TypeSLI, TypeKeyRequest, TypeKeyReply, TypeKeyChanged, TypeTicket,
		TypeChangeOffer, TypeChangeAnswer:
		return true
	}
	return false
}

// RFC 3931, section 5.4.2.
var (
	stopTexts = map[ResultCode]string{
		StopGeneral:       "control connection cleared",
		StopError:         "error",
		StopAlreadyExists: "control connection already exists",
		StopNotAuthorized: "not authorized for a control connection",
		StopVersion:       "protocol version not supported",
		StopShuttingDown:  "shutting down",
		StopFSMError:      "message out of turn, or none in time",
	}
	cdnTexts = map[ResultCode]string{
		CDNCarrierLost:    "carrier lost",
		CDNError:          "error",
		CDNAdministrative: "ended for administrative reasons",
		CDNNoFacilities:   "no facilities at present",
		CDNNoFacilitiesP:  "no facilities, and none to come",
		CDNTieBreaker:     "another request for the same session won",
		CDNPWType:         "pseudowire type not supported",
		15:                "sequencing wanted without a sublayer",
		CDNFSMError:       "message out of turn, or none in time",
	}
	errorTexts = map[ErrorCode]string{
		ErrorNone:         "none",
		ErrorNoConnection: "no control connection of these ids",
		ErrorLength:       "a length is wrong",
		ErrorRange:        "a value is out of range",
		ErrorResources:    "not enough resources now",
		ErrorSessionID:    "invalid session id",
		ErrorVendor:       "something of the peer's own",
		ErrorTryAnother:   "another gateway should be tried",
		ErrorUnknownAVP:   "an unknown AVP had the M bit set",
		ErrorTryNamed:     "one of the named gateways should be tried",
	}
)

var causeTexts = map[Cause]string{
	CauseNone:           "no cause given",
	CauseUnknownNetwork: "no network of that name exists there",
	CauseNetworkRight:   "the node has no right to that network",
	CausePrefixRight:    "the node may not advertise that prefix",
	CausePrefixInUse:    "a prefix overlaps one in use",
	CausePoolExhausted:  "no address is free now",
	CauseRevoked:        "the node was revoked",
	CauseKeyProof:       "possession of the session key was not proven",
	CauseKeyInUse:       "the session key belongs to another live session",
	CauseUnknownResume:  "nothing is there to resume",
	CauseResumeProof:    "the proof of the resume does not hold",
	CauseClonedState:    "this resume was tried before by another",
	CauseGraceOver:      "the session was suspended for too long",
	CauseAdministrator:  "an administrator ended it",
	CauseUser:           "the node's user ended it",
	CauseLocal:          "the other end could not set itself up",
	CauseBusy:           "the gateway has too much to do at present",
	CauseStore:          "the journal cannot be written there",
	CauseVersion:        "the two ends have no protocol version in common",
	CauseCertificate:    "the certificate cannot be renewed",
	CauseConfiguration:  "the gateway's configuration changed",
	CauseReplaced:       "the node has begun a new session there",
	CauseCheckpoint:     "the two ends do not stand at the same checkpoint",
	CauseNoExtension:    "the session may live no longer than it does",
	CauseChanging:       "another change of that session is open",
	CauseToken:          "that is for the other end to change",
	CauseKeyEpoch:       "that key epoch is not the next one",
	CauseKeyExchange:    "a share of the key exchange is no good",
	CauseUnconfirmed:    "the new key carried no traffic in time",
	CauseTicketForeign:  "the ticket is none that the gateway gave this node",
	CauseTicketOld:      "the time of the ticket is over",
	CauseTicketUsed:     "the ticket was used before",
	CauseTicketLeased:   "the ticket's address belongs to another session by now",
	CauseDraining:       "the gateway is about to go",
	CauseIdle:           "no packet passed for too long",
	CauseAbsolute:       "the session has lived as long as it may",
	CauseReauth:         "the node did not prove itself again in time",
	CauseExpired:        "the node's certificate is over",
	CauseTooShort:       "the lifetime is shorter than the least that is taken",
	CauseUnrefreshed:    "the session was not refreshed in time",
}

// String says in a few words what the code means.
func (c ErrorCode) String() string {
	if s, ok := errorTexts[c]; ok {
		return s
	}
	return fmt.Sprintf("error code %d", uint16(c))
}

// String says in a fragment of a sentence what the cause is.
func (c Cause) String() string {
	if s, ok := causeTexts[c]; ok {
		return s
	}
	return fmt.Sprintf("cause %d", uint16(c))
}

// String names the advice: "retry later", "reconnect" or "give up".
func (a Advice) String() string {
	switch a {
	case RetryLater:
		return "retry later"
	case Reconnect:
		return "reconnect"
	case GiveUp:
		return "give up"
	}
	return fmt.Sprintf("advice %d", uint8(a))
}

// Text says in a few words what the code means in a message of type t: StopCCN
// has codes of its own, CDN and CRP share theirs.
func (c ResultCode) Text(t MessageType) string {
	texts := cdnTexts
	if t == TypeStopCCN {
		texts = stopTexts
	}
	if s, ok := texts[c]; ok {
		return s
	}
	return fmt.Sprintf("result code %d", uint16(c))
}

// Describe says in one fragment of a sentence what the result of a message of
// type t is: code, error code, cause, and the peer's text in quotes.
func (r Result) Describe(t MessageType) string {
	parts := []string{r.Code.Text(t)}
	switch {
	case t == TypeStopCCN && r.Code == StopVersion: // the Error Code is the highest version supported
		parts = append(parts, fmt.Sprintf("the highest is %d", uint16(r.Error)))
	case r.Error != ErrorNone:
		parts = append(parts, r.Error.String())
	}
	if r.Cause != CauseNone {
		parts = append(parts, r.Cause.String())
	}
	if r.Text != "" {
		parts = append(parts, `"`+cleanText(r.Text)+`"`) // no escape twice
	}
	return strings.Join(parts, ": ")
}
