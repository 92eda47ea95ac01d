package control

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// conversation is two machines of which either may meet a peer that is
// authenticated and hostile, on a bad network, with a disk that fails and a clock
// that runs as it likes. A script of two octets a step says what happens.
type conversation struct {
	*pair
	over    [2]*invariants
	events  []string
	reached func(standing, event string) // nil: nobody wants to know
}

func newConversation(t *testing.T, refresher Role) *conversation {
	c := &conversation{pair: newPair(t), events: allEvents()}
	c.node.expires = wire.Expires{After: time.Hour}
	c.gateway.expires = wire.Expires{After: time.Hour, Refresher: refresher.as()}
	for i, s := range []*side{c.node, c.gateway} {
		s.cfg.MaxSessions, s.cfg.Tickets, s.sealed = 4, s == c.gateway, map[string]Session{}
		s.m = New(s.cfg)
		c.over[i] = watchOver(t, s)
	}
	return c
}

// Steps of a script, which are taken modulo their number.
const (
	stepConnect = iota
	stepCarry   // so many messages
	stepCut
	stepOpen
	stepRestart
	stepLose    // the next Save
	stepAnswer  // what the handlers say from now on
	stepHappen  // an event of the tables
	stepHappen2 // likewise
	stepForge   // a message whose header fits more or less
	stepForget  // the gateway's journal is gone, its ticket key is not
	stepClaim   // again, a drain, a refresh
	numSteps
)

// play goes through a script.
func (c *conversation) play(script []byte) {
	for n := 0; len(script) >= 2 && n < 200; n++ {
		c.step(n, script[0], script[1])
		script = script[2:]
	}
}

func (c *conversation) step(n int, what, how byte) {
	s, v := c.node, c.over[0]
	if how&1 == 1 {
		s, v = c.gateway, c.over[1]
	}
	switch what % numSteps {
	case stepConnect:
		c.connect()
	case stepCarry:
		c.carry(int(how % 10))
	case stepCut:
		c.cut()
	case stepOpen:
		c.open()
	case stepRestart:
		if s.saved != nil && !v.unsaved {
			s.restart(session.ID{6: byte(n) + 1})
		}
	case stepLose:
		s.lost = !s.lost
	case stepAnswer:
		yes := &wire.Result{Code: wire.CDNAdministrative, Cause: wire.Cause(how >> 3)}
		if how&4 == 0 {
			yes = nil
		}
		if yes != nil && how&8 != 0 {
			yes.Floor = time.Duration(how) * time.Minute
		}
		s.deny, s.refuse, s.broken, s.unarmed, s.unchanged = yes, yes, yes, yes, yes
	case stepHappen, stepHappen2: // the highest choose a change of keys, which must get far for that
		if how >= 250 {
			c.node.step(StartRekey{c.node.firstID()})
		}
		c.misfortune(s, c.events[(int(what)/numSteps*256+int(how)/2)%len(c.events)])
	case stepForge:
		c.forge(s, int(what)/numSteps, how)
	case stepForget:
		c.loseState()
		c.over[1] = watchOver(c.t, c.gateway)
		c.over[0].rebuilds++
	case stepClaim:
		c.node.step(RebuildSession{c.node.firstID()})
		c.gateway.step(TellDrain{Leaving: how&1 == 0, Delay: time.Duration(how)})
		s.step(RefreshSession{s.firstID(), time.Duration(how) * time.Minute})
	}
}

// misfortune lets one of the events of the tables happen to s, on its present
// transports.
func (c *conversation) misfortune(s *side, event string) {
	at := situation{role: s.cfg.Role}
	if s.m.cur != nil {
		at.cur = s.m.cur.id
	}
	if s.m.next != nil {
		at.next = s.m.next.id
	}
	if c.reached != nil {
		for _, where := range s.m.standing() {
			c.reached(where, event)
		}
	}
	switch event {
	case "attach":
		c.transport++
		s.step(Attached{c.transport, c.binding(s, c.transport), false})
	case "save-failed": // follows a Save only: stepLose
		s.step(Detached{at.cur, time.Now(), errors.New("cut")})
	default:
		c.happen(at, s, event)
	}
}

// standing is where a machine is: as a connection, and with its first session.
func (m *Machine) standing() []string {
	state := m.state.String()
	if m.next != nil && m.state != session.WaitCtlReply && m.state != session.WaitCtlConn {
		state += "+"
		if m.next.phase == waitConnected {
			state += "+"
		}
	}
	at := []string{situation{role: m.cfg.Role, name: state}.String()}
	phase := "none"
	if len(m.sessions) > 0 {
		s := m.sessions[0]
		phase = s.State.String()
		for what, is := range map[string]bool{" claimed": s.Rebuild, " offer": s.Offer != nil, " key offered": !s.OfferSecret.IsZero(), " key armed": !s.NextPresharedKey.IsZero()} {
			if is {
				phase += what
			}
		}
	}
	return append(at, situation{role: m.cfg.Role, name: "session " + phase}.String())
}

// forged are messages that a peer may make up about the first session.
var forged = []string{
	"ICRQ", "CDN", "SLI", "FSR", "ICCN", "ICRP", "FSQ", "TKT",
	"SLI-lifetime", "SLI-hold", "SLI-stamp", "CHO-addresses", "CHO-timers", "CHO-lifetime", "CHO-nothing", "CHO",
	"CHA", "CHA-refused", "CHA-lifetime", "KRQ", "KRP", "KCN", "DRN", "StopCCN-retarget",
	"CHO-routes", "CHO-refresh", "CHA-refresh", "CHA-floor", "CDN-floor",
}

// forge gives s a message with a header that fits more or less.
func (c *conversation) forge(s *side, which int, how byte) {
	id := TransportID(how >> 6)
	if s.m.cur != nil && how>>6 != 3 {
		id = s.m.cur.id
	}
	kind := forged[(which*8+int(how>>1&7))%len(forged)]
	if kind == "StopCCN-retarget" && s.m.next != nil { // has a place in a set-up
		id = s.m.next.id
	}
	name, variant, _ := strings.Cut(kind, "-")
	q := c.plausible(s, id, name)
	c.vary(s, q, variant, how)
	switch how >> 4 & 3 {
	case 1:
		q.Nr -= 1
	case 2:
		q.Ns -= uint16(how)
	case 3:
		q.ConnID--
	}
	s.step(Received{id, q})
}

// vary makes of a plausible message one that says something else.
func (c *conversation) vary(s *side, q *wire.Packet, variant string, how byte) {
	life := wire.Lifetime{Idle: time.Minute, Absolute: time.Duration(how) * time.Second}
	switch m := q.Message.(type) {
	case *wire.ICRQ:
		if how>>6 != 0 { // one of the tickets that were given, or none
			m.Ticket, m.KeyEpoch = fmt.Appendf(nil, "ticket %d", how>>6), uint32(how)
		}
	case *wire.SLI:
		switch m.HasRoutes = variant == ""; variant {
		case "lifetime":
			m.Lifetime = &life
		case "hold":
			m.CircuitStatus = &wire.CircuitStatus{Active: how&16 == 0}
		case "stamp":
			m.Stamp = wire.Stamp{how}
		}
	case *wire.ChangeOffer:
		switch variant {
		case "addresses":
			m.Addresses, m.Peers = []netip.Addr{netip.AddrFrom4([4]byte{10, 77, 1, how})}, []netip.Addr{netip.AddrFrom4([4]byte{10, 77, 1, 1})}
		case "timers":
			m.Timers = wire.Timers{Hello: time.Duration(how) * time.Second, Misses: uint16(how), Grace: time.Hour}
		case "lifetime":
			m.MTU, m.Lifetime = 0, &life
		case "routes":
			m.MTU, m.HasRoutes, m.Routes = 0, true, []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, how, 0}), 24)}
		case "refresh":
			m.MTU, m.Expires = 0, &wire.Expires{After: time.Duration(how) * time.Minute, Refresher: both[how>>5&1].as()}
		case "nothing":
			m.MTU = 0
		}
	case *wire.ChangeAnswer:
		if len(s.m.sessions) > 0 && s.m.sessions[0].Offer != nil && how&16 == 0 {
			m.RequestID = s.m.sessions[0].Offer.RequestID
		}
		switch variant {
		case "refused":
			m.Result = &wire.Result{Code: wire.CDNAdministrative, Cause: wire.Cause(how)}
		case "floor":
			m.Result = &wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseTooShort, Floor: time.Duration(how) * time.Minute}
		case "lifetime":
			m.Lifetime = &life
		case "refresh":
			m.Expires = &wire.Expires{After: time.Duration(how) * time.Minute, Refresher: both[how>>5&1].as()}
		}
	case *wire.CDN:
		if variant == "floor" {
			m.Result.Cause, m.Result.Floor = wire.CauseTooShort, time.Duration(how)*time.Minute
		}
	case *wire.StopCCN:
		m.Result = wire.Result{Code: wire.StopError, Error: wire.ErrorTryNamed, Cause: wire.CauseDraining}
		m.Gateways = []string{"gw-2.example:443"}
	}
}

// ways are scripts that lead to each standing, the shortest that do.
var ways = map[string][]byte{
	"nothing":            nil,
	"begun":              {stepConnect, 0},
	"asked":              {stepConnect, 0, stepCarry, 1},
	"half set up":        {stepConnect, 0, stepCarry, 2},
	"set up":             {stepConnect, 0, stepCarry, 9},
	"opened":             {stepConnect, 0, stepCarry, 9, stepOpen, 0},
	"answered":           {stepConnect, 0, stepCarry, 9, stepOpen, 0, stepCarry, 1},
	"taken":              {stepConnect, 0, stepCarry, 9, stepOpen, 0, stepCarry, 2},
	"up":                 wayUp,
	"cut":                join(wayUp, stepCut, 0),
	"beside, begun":      join(wayUp, stepConnect, 0),
	"beside, asked":      join(wayUp, stepConnect, 0, stepCarry, 1),
	"resuming, begun":    join(wayUp, stepCut, 0, stepConnect, 0),
	"resuming, asked":    join(wayUp, stepCut, 0, stepConnect, 0, stepCarry, 1),
	"closed by the node": join(wayUp, stepHappen, happens("stop", 0), stepCarry, 9),
	"terms offered":      join(wayUp, stepHappen, happens("offer", 1)),
	"extension asked":    join(wayUp, stepHappen, happens("extend", 0)),
	"key offered":        join(wayUp, stepHappen, happens("rekey", 0)),
	"key armed":          join(wayUp, stepHappen, happens("rekey", 0), stepCarry, 1),
	"key armed at both":  join(wayUp, stepHappen, happens("rekey", 0), stepCarry, 2),
	"lost by gateway":    join(wayUp, stepCut, 0, stepForget, 0, stepConnect, 0, stepCarry, 9),
	"claimed":            join(wayUp, stepCut, 0, stepForget, 0, stepConnect, 0, stepCarry, 9, stepForget, 0, stepConnect, 0, stepCarry, 2),
	"claim refused":      join(wayUp, stepCut, 0, stepForget, 0, stepConnect, 0, stepCarry, 9, stepForget, 0, stepAnswer, 5|byte(wire.CauseBusy)<<3, stepConnect, 0, stepCarry, 9),
}

var wayUp = []byte{stepConnect, 0, stepCarry, 9, stepOpen, 0, stepCarry, 9, stepCarry, 9}

func join(script []byte, more ...byte) []byte {
	return append(script[:len(script):len(script)], more...)
}

// happens is the second octet of a step in which an event happens to the node (0)
// or the gateway (1).
func happens(event string, who byte) byte {
	for i, e := range allEvents() {
		if e == event {
			return byte(i)*2 + who
		}
	}
	panic("no event " + event)
}

// standings are those of a session that a peer can meet, in which each message and
// each wish has to come at least once, beside the situations of a connection.
var standings = []string{
	"initiator session none", "initiator session wait-reply", "initiator session established", "initiator session established offer",
	"initiator session established key offered", "initiator session established key armed",
	"initiator session idle claimed", "initiator session wait-reply claimed",
	"responder session none", "responder session wait-connect", "responder session established", "responder session established offer",
	"responder session established key armed",
}

// TestConversationsReachEveryPair plays, from each standing of both ends, each
// event, and a resume after it. So what FuzzMachine begins with, and makes its way
// from, is every state and every event: all invariants hold there.
func TestConversationsReachEveryPair(t *testing.T) {
	if n := len(allEvents()); n > 128 {
		t.Fatalf("%d events, of which one octet chooses 128", n)
	}
	got := map[string]bool{}
	conversation := func(script []byte) *conversation {
		c := newConversation(t, both[len(script)/2%2])
		c.reached = func(standing, event string) { got[standing+" | "+event] = true }
		c.play(script)
		return c
	}
	after := []byte{stepCarry, 9, stepCut, 0, stepConnect, 0, stepCarry, 9, stepCarry, 9}
	been := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(ways)) {
		at := conversation(ways[name])
		for who, s := range []*side{at.node, at.gateway} {
			where := fmt.Sprint(s.m.standing())
			if been[where] {
				continue
			}
			been[where] = true
			for _, e := range allEvents() {
				conversation(append(join(ways[name], stepHappen, happens(e, byte(who))), after...))
			}
			for which := range byte(len(forged)) {
				conversation(append(join(ways[name], stepForge+which/8*numSteps, 64|which%8<<1|byte(who)), after...))
			}
		}
	}
	n := 0
	for _, at := range append(standings, names(situations)...) {
		for _, e := range allEvents() {
			if n++; !got[at+" | "+e] {
				t.Errorf("no conversation reaches %s | %s", at, e)
				break
			}
		}
	}
	t.Logf("%d pairs of a standing and an event are reached, %d of them wanted", len(got), n)
}

func names(all []situation) (out []string) {
	for _, s := range all {
		out = append(out, s.String())
	}
	return out
}

// FuzzMachine begins in every standing and goes on as it likes, against either
// role.
func FuzzMachine(f *testing.F) {
	f.Add(join(wayUp, stepHappen, happens("offer", 1), stepCarry, 9, stepCut, 0, stepRestart, 1, stepConnect, 0, stepCarry, 9))
	f.Add(join(wayUp, stepLose, 1, stepAnswer, 0, stepCarry, 9, stepForge, 200, stepHappen2, 77))
	for _, way := range ways {
		f.Add(way)
		f.Add(join(way, stepForge+numSteps, 64, stepForge+2*numSteps, 70, stepCut, 0, stepConnect, 0, stepCarry, 9))
	}
	f.Fuzz(func(t *testing.T, script []byte) { newConversation(t, both[len(script)%2]).play(script) })
}
