package sim

import (
	"fmt"
	"strings"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// pair is a situation of a machine and what happened to it there.
type pair struct{ situation, event string }

// situation names the role and the state, with a + for each step of a set-up
// beside it.
func (c *conn) situation() string {
	role := "initiator "
	if c.role == control.Responder {
		role = "responder "
	}
	s := role + c.m.State().String()
	if st := c.m.State(); c.next != 0 && (st == session.Established || st == session.Suspended || st == session.Idle) {
		s += c.phase
	}
	return s
}

// where says which transport an event is of.
func (c *conn) where(id control.TransportID) string {
	switch id {
	case c.cur:
		return "cur:"
	case c.next:
		return "new:"
	}
	return "gone:"
}

func (c *conn) eventName(ev control.Event) string {
	switch ev := ev.(type) {
	case control.Received:
		if c.isStale(ev) {
			return "gone:message"
		}
		if c.isRepeated(ev) {
			return "cur:repeated"
		}
		name := c.where(ev.Transport) + ev.Packet.Message.Type().String()
		if q, ok := ev.Packet.Message.(*wire.SCCRQ); ok && q.Recovery != nil {
			return name + " resuming"
		}
		return name
	case control.Detached:
		return c.where(ev.Transport) + "lost"
	case control.Expired:
		return ev.Timer.String()
	case control.Authorized:
		return answer("authorized", ev.Refusal)
	case control.Granted:
		return answer("granted", ev.Refusal)
	case control.SetUp:
		return answer("set-up", ev.Refusal)
	case control.SaveFailed:
		if _, denied := ev.Err.(*control.Denied); denied {
			return "save-denied"
		}
		return "save-failed"
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", ev), "control.")
}

func answer(what string, refusal *wire.Result) string {
	if refusal != nil {
		return what + " no"
	}
	return what + " yes"
}

// isStale reports whether ev is a message of a transport that was given up.
func (c *conn) isStale(ev control.Event) bool {
	r, ok := ev.(control.Received)
	return ok && r.Transport != c.cur && r.Transport != c.next
}

// isRepeated reports whether ev is a message that was taken before.
func (c *conn) isRepeated(ev control.Event) bool {
	r, ok := ev.(control.Received)
	return ok && r.Transport == c.cur && numbered(r.Packet.Message.Type()) && int16(r.Packet.Ns-c.nr) < 0
}

// follow keeps up with which transport carries the connection and which one is
// being set up.
func (c *conn) follow(ev control.Event, out []control.Action) {
	if at, ok := ev.(control.Attached); ok {
		defer func() {
			for _, a := range out {
				if d, ok := a.(control.Drop); ok && d.Transport == at.Transport {
					return
				}
			}
			c.next, c.phase = at.Transport, "+"
		}()
	}
	for _, a := range out {
		switch a := a.(type) {
		case control.Save:
			c.nr = a.Record.Nr
		case control.Send:
			if a.Packet.Message.Type() == wire.TypeSCCRP {
				c.phase = "++"
			}
		case control.Drop:
			if a.Transport == c.cur {
				c.cur = 0
			}
			if a.Transport == c.next {
				c.next = 0
			}
		case control.Opened, control.Resumed:
			if c.next != 0 { // else it is told again after a Save that failed
				c.cur, c.next = c.next, 0
			}
		}
	}
}

// describe writes an event for the trace.
func describe(ev control.Event) string {
	switch ev := ev.(type) {
	case control.Received:
		return fmt.Sprintf("[%d] %s", ev.Transport, packet(ev.Packet))
	case control.Detached:
		return fmt.Sprintf("[%d]", ev.Transport)
	case control.Attached:
		return fmt.Sprintf("[%d]", ev.Transport)
	case control.CloseSession:
		return fmt.Sprintf("%08x", ev.LocalID)
	case control.SaveFailed:
		return ev.Err.Error()
	}
	return ""
}

func packet(p *wire.Packet) string {
	text := fmt.Sprintf("%v Ns=%d Nr=%d", p.Message.Type(), p.Ns, p.Nr)
	switch m := p.Message.(type) {
	case *wire.StopCCN:
		text += " " + m.Result.Describe(wire.TypeStopCCN)
	case *wire.CDN:
		text += fmt.Sprintf(" %08x/%08x %s", m.LocalID, m.RemoteID, m.Result.Describe(wire.TypeCDN))
	case *wire.ICRQ:
		text += fmt.Sprintf(" %08x", m.LocalID)
	case *wire.ICRP:
		text += fmt.Sprintf(" %08x/%08x %v %v", m.LocalID, m.RemoteID, m.Session, m.Addresses)
	case *wire.ICCN:
		text += fmt.Sprintf(" %08x/%08x", m.LocalID, m.RemoteID)
	case *wire.SLI:
		text += fmt.Sprintf(" %08x/%08x %v", m.LocalID, m.RemoteID, m.Routes)
	case *wire.ChangeOffer:
		text += fmt.Sprintf(" %08x/%08x %v %v", m.LocalID, m.RemoteID, m.RequestID, m.Routes)
	case *wire.SCCRQ:
		if m.Recovery != nil {
			text += fmt.Sprintf(" resuming, generation %d, attempt %d, cursor %v", m.Proof.Generation, m.Proof.Attempt, *m.Cursor)
		}
	case *wire.SCCRP:
		if m.Proof != nil {
			text += fmt.Sprintf(" resuming, generation %d, attempt %d, cursor %v", m.Proof.Generation, m.Proof.Attempt, *m.Cursor)
		}
	}
	return text
}

// describeAction writes an action for the trace.
func describeAction(a control.Action) string {
	name := strings.TrimPrefix(fmt.Sprintf("%T", a), "control.")
	switch a := a.(type) {
	case control.Send:
		return fmt.Sprintf("%s [%d] %s", name, a.Transport, packet(a.Packet))
	case control.Save:
		return fmt.Sprintf("%s Ns=%d Nr=%d, %d unacknowledged, %d sessions, generation %d, attempt %d", name,
			a.Record.Ns, a.Record.Nr, len(a.Record.Unacked), len(a.Record.Sessions), a.Record.Generation, a.Record.Attempt)
	case control.Drop:
		return fmt.Sprintf("%s [%d] %v", name, a.Transport, a.Err)
	case control.Arm:
		return fmt.Sprintf("%s %v %v", name, a.Timer, a.After)
	case control.SessionUp:
		return fmt.Sprintf("%s %v", name, a.Session.ID)
	case control.SessionDown:
		return fmt.Sprintf("%s %v %s", name, a.Session.ID, a.Result.Describe(wire.TypeCDN))
	case control.SessionRefused:
		return fmt.Sprintf("%s %s %s", name, a.Label, a.Result.Describe(wire.TypeCDN))
	case control.AttemptFailed:
		return fmt.Sprintf("%s %v", name, a.Err)
	case control.WasSuspended:
		return fmt.Sprintf("%s %v", name, a.Err)
	case control.Ended:
		return fmt.Sprintf("%s %s %v", name, a.Result.Describe(wire.TypeStopCCN), a.Err)
	}
	return name
}
