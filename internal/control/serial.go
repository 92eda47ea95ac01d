package control

import "tunneld/internal/session"

// Serials: docs/protocol.md, "Tokens". What somebody changes of a session is
// counted, in the write that makes it last, so that a wish can say which state of
// the session it was made for. What a session does by itself, resumes, changes of
// keys, tickets and refreshes, is not.

// Outdated: a wish was made for another state of the session than it is in, or for
// one that is over, whose Changes are 0. Nothing was done.
type Outdated struct {
	Session   Session
	RequestID session.ID
}

func (Outdated) action() {}

// touch counts a change.
func (s *Session) touch() { s.Changes++ }

// outdated refuses a wish for another state of the session; ifSerial 0 is for any.
func (m *Machine) outdated(s *Session, ifSerial uint64, request session.ID) bool {
	switch {
	case ifSerial == 0 || s != nil && s.Changes == ifSerial:
		return false
	case s == nil:
		m.do(Outdated{RequestID: request})
	default:
		m.do(Outdated{m.view(s), request})
	}
	return true
}
