package control

import (
	"crypto/mlkem"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// A situation is a state of a control connection with the transports that carry
// it and that are being set up, 0 for none. The peer's next message, if it owes
// one, waits in its out.
type situation struct {
	role      Role
	name      string // the state; each + is a step of a set-up beside it
	cur, next TransportID
	build     func(t *testing.T) *pair
}

func (s situation) String() string {
	return map[Role]string{Initiator: "initiator", Responder: "responder"}[s.role] + " " + s.name
}

// state is what the machine calls the situation.
func (s situation) state() string { return strings.TrimRight(s.name, "+") }

// reach returns a builder: set up with a session or not, cut, with a new
// transport on which n messages were carried (-1: no new transport).
func reach(up, cut bool, n int) func(*testing.T) *pair {
	return func(t *testing.T) *pair {
		p := newPair(t)
		if up {
			p = established(t)
		}
		if cut {
			p.cut()
		}
		if n >= 0 {
			p.connect()
			for range n {
				p.carry(1)
			}
		}
		return p
	}
}

func closedPair(t *testing.T) *pair {
	p := established(t)
	p.node.step(Stop{Result: wire.Result{Code: wire.StopShuttingDown}})
	p.carry(-1)
	return p
}

var situations = []situation{
	{Initiator, "idle", 0, 0, reach(false, false, -1)},
	{Initiator, "wait-ctl-reply", 0, 1, reach(false, false, 1)},
	{Initiator, "established", 1, 0, reach(true, false, -1)},
	{Initiator, "established+", 1, 2, reach(true, false, 1)},
	{Initiator, "suspended", 0, 0, reach(true, true, -1)},
	{Initiator, "suspended+", 0, 2, reach(true, true, 1)},
	{Initiator, "closed", 0, 0, closedPair},
	{Responder, "idle", 0, 0, reach(false, false, -1)},
	{Responder, "idle+", 0, 1, reach(false, false, 0)}, // waits for SCCRQ
	{Responder, "wait-ctl-conn", 0, 1, reach(false, false, 2)},
	{Responder, "established", 1, 0, reach(true, false, -1)},
	{Responder, "established+", 1, 2, reach(true, false, 0)},  // waits for SCCRQ
	{Responder, "established++", 1, 2, reach(true, false, 2)}, // waits for SCCCN
	{Responder, "suspended", 0, 0, reach(true, true, -1)},
	{Responder, "suspended+", 0, 2, reach(true, true, 0)},
	{Responder, "suspended++", 0, 2, reach(true, true, 2)},
	{Responder, "closed", 0, 0, closedPair},
}

// What arrives, on the transport in use ("cur:"), on the one being set up
// ("new:") and on one that was given up ("gone:"), and what else happens.
const (
	anywhere = "HELLO ACK ICRQ ICRP ICCN CDN SLI WEN FSQ FSR CRQ CRP KRQ KRP KCN TKT DRN CHO CHA unknown malformed lost"
	onCur    = "SCCRQ SCCRP SCCCN StopCCN ahead repeat false-ack other-header " + anywhere
	onNew    = "SCCRQ SCCRQ-version SCCRQ-kind SCCRQ-denied SCCRP SCCRP-version SCCRP-header SCCRP-proof SCCCN SCCCN-header StopCCN-retry StopCCN-reconnect StopCCN-give-up " + anywhere
	local    = "setup hello grace attach open close stop routes hold lifetime stamp trouble renew rekey confirm unconfirmed offer extend ticket rebuild drain refresh save-failed authorized granted set-up signed armed changed extended agreed ticketed"
)

// on puts a prefix before each word.
func on(prefix, events string) string {
	words := strings.Fields(events)
	for i := range words {
		words[i] = prefix + words[i]
	}
	return strings.Join(words, " ")
}

// but returns events without those of less.
func but(events, less string) string {
	var left []string
	for _, e := range strings.Fields(events) {
		if !strings.Contains(" "+less+" ", " "+e+" ") {
			left = append(left, e)
		}
	}
	return strings.Join(left, " ")
}

func allEvents() []string {
	return strings.Fields(on("cur:", onCur) + " " + on("new:", onNew) + " gone:HELLO gone:malformed gone:lost " + local)
}

// A row says for some situations of a role and some events, each pair of them,
// which state follows ("": the same) and which actions, in their order.
type row struct {
	role               Role
	situations, events string
	next, actions      string
}

// Parts of the expectations below.
const (
	over    = " disarm:setup disarm:hello disarm:grace Ended" // ends every ending, before the codes
	lost    = "drop@1 disarm:hello arm:grace WasSuspended"
	failed  = "drop@2 disarm:setup AttemptFailed"
	nothing = "" // ignored
)

// The messages that have no place in a set-up, whoever waits.
var (
	strayInSetup = on("new:", but(anywhere, "malformed lost"))
	toInitiator  = strayInSetup + " new:SCCRQ new:SCCRQ-version new:SCCRQ-kind new:SCCRQ-denied new:SCCCN new:SCCCN-header new:SCCRP-header"
	toRequested  = strayInSetup + " new:SCCRP new:SCCRP-version new:SCCRP-header new:SCCRP-proof new:SCCCN new:SCCCN-header"
	toConnecting = strayInSetup + " new:SCCRQ new:SCCRQ-version new:SCCRQ-kind new:SCCRQ-denied new:SCCRP new:SCCRP-version new:SCCRP-header new:SCCRP-proof new:SCCCN-header"
	elsewhere    = "gone:HELLO gone:malformed gone:lost authorized granted set-up signed armed changed extended agreed ticketed ticket rebuild confirm unconfirmed refresh" // means nothing in any state
	both         = []Role{Initiator, Responder}
)

func connectionRows() (rows []row) {
	add := func(role Role, situations, events, next, actions string) {
		rows = append(rows, row{role, situations, events, next, actions})
	}
	for _, r := range both {
		all, beside, none := "idle wait-ctl-reply established established+ suspended suspended+ closed", "established+", "idle suspended closed"
		if r == Responder {
			all, beside = "idle idle+ wait-ctl-conn established established+ established++ suspended suspended+ suspended++ closed", "established+ established++"
		}
		add(r, all, elsewhere, "", nothing)
		add(r, none+" established", on("new:", onNew), "", nothing)
		add(r, but(all, "established established+ established++"), on("cur:", onCur), "", nothing)
		add(r, but(all, "established established+ established++"), "hello trouble", "", nothing)
		add(r, but(all, "suspended suspended+ suspended++"), "grace", "", nothing)
		add(r, none+" established", "setup", "", nothing)
		add(r, none, "save-failed", "", nothing)

		// The transport in use: RFC 3931, section 7.2, "established".
		for _, e := range []struct{ situations, others string }{{"established", ""}, {beside, "drop@2 "}} {
			end := func(code string) string {
				return "arm:hello SessionDown/" + code + " forget " + e.others + "drop@1" + over + "/" + code
			}
			wrong := "arm:hello send:StopCCN/7@1 " + end("7")
			add(r, e.situations, "cur:SCCRQ cur:SCCRP cur:SCCCN cur:false-ack cur:other-header", "closed", wrong)
			add(r, e.situations, "cur:StopCCN", "closed", "arm:hello "+end("6"))
			add(r, e.situations, "cur:malformed", "closed", "send:StopCCN/2@1 "+end("2"))
			add(r, e.situations, "stop", "closed", "send:StopCCN/6@1 "+end("6"))
			if r == Initiator {
				add(r, e.situations, "cur:CRQ", "closed", wrong)
			} else {
				add(r, e.situations, "cur:CRP cur:TKT cur:DRN", "closed", wrong)
			}
		}
		up := "established " + beside
		add(r, up, "cur:HELLO cur:repeat", "", "arm:hello send:ACK@1")
		add(r, up, "cur:ACK cur:FSR", "", "arm:hello")
		add(r, up, "cur:ICRP cur:ICCN cur:KRP cur:KCN cur:CHA", "", "arm:hello arm:hello SessionDown/16 save send:CDN/16@1")
		add(r, up, "cur:CDN", "", "arm:hello arm:hello SessionDown/3 save send:ACK@1")
		add(r, up, "cur:WEN", "", "arm:hello TroubleReported")
		add(r, up, "cur:FSQ", "", "arm:hello send:FSR@1")
		add(r, up, "cur:unknown", "", "arm:hello save send:ACK@1")
		add(r, up, "cur:ahead", "suspended", "arm:hello "+lost+" save")
		add(r, up, "cur:lost", "suspended", lost+" save")
		add(r, up, "hello", "", "send:HELLO@1 arm:hello")
		add(r, up, "close", "", "arm:hello SessionDown/3 save send:CDN/3@1")
		add(r, up, "trouble", "", "send:WEN@1")
		add(r, "established", "save-failed", "suspended", lost)

		// Nothing carries the connection.
		add(r, "idle", "stop", "closed", "forget"+over+"/6")
		add(r, "suspended", "stop", "closed", "SessionDown/6 forget"+over+"/6")
		add(r, "suspended", "grace", "closed", "SessionDown/1.12 forget"+over+"/1.12")
		add(r, but(all, "suspended suspended+ suspended++ "+up), "close", "", nothing)
		add(r, "closed", "stop", "", nothing)
		add(r, "closed", "attach", "", "drop@3")
	}

	i := Initiator
	add(i, "established established+", "cur:ICRQ", "", "arm:hello save send:CDN/16@1")
	add(i, "established established+", "cur:SLI", "", "arm:hello ask:change TermsChanged save send:ACK@1")
	add(i, "established established+", "cur:TKT", "", "arm:hello save send:ACK@1")
	add(i, "established established+", "cur:DRN", "", "arm:hello GatewayDrains")
	add(i, "idle wait-ctl-reply established established+ suspended suspended+ closed", "drain", "", nothing) // the gateway's to say
	add(i, "established established+", "cur:CRP", "", "arm:hello CertificateRenewed save send:ACK@1")
	add(i, "established established+", "open", "", "save send:ICRQ@1")
	add(i, "idle wait-ctl-reply established established+ suspended suspended+ closed", "routes lifetime stamp", "", nothing) // the gateway's to change
	add(i, "established established+", "hold", "", "save send:SLI@1")
	add(i, "suspended suspended+", "hold", "", "save") // kept until a resume brings it over
	add(i, "idle wait-ctl-reply closed", "hold", "", nothing)
	add(i, "established established+", "renew", "", "save send:CRQ@1")
	add(i, "suspended suspended+", "close", "", "SessionDown/3 save")
	add(i, "idle wait-ctl-reply suspended suspended+ closed", "open", "", "SessionRefused/1")
	add(i, "idle wait-ctl-reply suspended suspended+ closed", "renew", "", "CertificateRenewed")
	add(i, "idle", "attach", "wait-ctl-reply", "arm:setup send:SCCRQ@3")
	add(i, "established suspended", "attach", "", "arm:setup save send:SCCRQ@3")
	add(i, "established+ suspended+", "attach", "", failed+" arm:setup save send:SCCRQ@3")

	// A new connection: RFC 3931, section 7.2, "wait-ctl-reply".
	w := "wait-ctl-reply"
	add(i, w, "new:SCCRP new:SCCRP-proof", "established", "save send:SCCCN@1 disarm:setup disarm:grace arm:hello Opened")
	add(i, w, "new:SCCRP-version", "closed", "send:StopCCN/5.18@1 forget drop@1"+over+"/5.18")
	add(i, w, toInitiator, "closed", "send:StopCCN/7@1 forget drop@1"+over+"/7")
	add(i, w, "new:StopCCN-retry", "closed", "forget drop@1"+over+"/1.16")
	add(i, w, "new:StopCCN-reconnect", "closed", "forget drop@1"+over+"/2.9")
	add(i, w, "new:StopCCN-give-up", "closed", "forget drop@1"+over+"/4.6")
	add(i, w, "new:malformed", "closed", "send:StopCCN/2@1 forget drop@1"+over+"/2")
	add(i, w, "new:lost setup", "closed", "forget drop@1"+over+"/1")
	add(i, w, "attach", "closed", "forget drop@1"+over+"/1 drop@3")
	add(i, w, "stop", "closed", "send:StopCCN/6@1 forget drop@1"+over+"/6")
	add(i, w, "save-failed", "closed", "send:StopCCN/1.17@1 forget drop@1"+over+"/1.17")

	// A resume: whatever goes wrong, the connection stays as it was, unless the
	// gateway says that there is nothing to wait for.
	res := "established+ suspended+"
	add(i, "established+", "new:SCCRP", "", "save send:SCCCN@2 drop@1 disarm:setup disarm:grace arm:hello Resumed send:FSQ@2")
	add(i, "suspended+", "new:SCCRP", "established", "save send:SCCCN@2 disarm:setup disarm:grace arm:hello Resumed send:FSQ@2")
	add(i, res, "new:SCCRP-version", "", "send:StopCCN/5.18@2 "+failed)
	add(i, res, "new:SCCRP-proof", "", "send:StopCCN/4.10@2 "+failed)
	add(i, res, toInitiator, "", "send:StopCCN/7@2 "+failed)
	add(i, res, "new:StopCCN-retry new:lost setup", "", failed)
	add(i, res, "new:malformed", "", "send:StopCCN/2@2 "+failed)
	add(i, "established+", "new:StopCCN-reconnect", "closed", "send:StopCCN/2.9@1 arm:hello SessionDown/2.9 forget drop@2 drop@1"+over+"/2.9")
	add(i, "established+", "new:StopCCN-give-up", "closed", "send:StopCCN/4.6@1 arm:hello SessionDown/4.6 forget drop@2 drop@1"+over+"/4.6")
	add(i, "suspended+", "new:StopCCN-reconnect", "closed", "SessionDown/2.9 forget drop@2"+over+"/2.9")
	add(i, "suspended+", "new:StopCCN-give-up", "closed", "SessionDown/4.6 forget drop@2"+over+"/4.6")
	add(i, "established+", "save-failed", "suspended", "send:StopCCN/1.17@2 "+failed+" "+lost)
	add(i, "suspended+", "save-failed", "", "send:StopCCN/1.17@2 "+failed)
	add(i, "suspended+", "stop", "closed", "send:StopCCN/6@2 SessionDown/6 forget drop@2"+over+"/6")
	add(i, "suspended+", "grace", "closed", "SessionDown/1.12 forget drop@2"+over+"/1.12")

	add(i, "established established+", "cur:KRQ", "", "arm:hello arm:hello SessionDown/16.35 save send:CDN/16.35@1")
	add(i, "established established+", "rekey", "", "save send:KRQ@1")
	add(i, "established established+", "cur:CHO", "", "arm:hello ask:change save send:CHA@1 TermsChanged")
	add(i, "established established+", "extend", "", "save send:CHO@1")
	add(i, "suspended suspended+", "extend", "", "save")
	add(i, "idle wait-ctl-reply closed", "extend", "", nothing)
	add(i, "idle wait-ctl-reply established established+ suspended suspended+ closed", "offer", "", nothing) // the gateway's to offer
	add(i, "idle wait-ctl-reply suspended suspended+ closed", "rekey", "", nothing)

	g := Responder
	add(g, "established established+ established++", "cur:CHO", "", "arm:hello save send:CHA/3.35@1") // terms are not the node's
	add(g, "established established+ established++", "offer", "", "save send:CHO@1")
	add(g, "suspended suspended+ suspended++", "offer", "", "save")
	add(g, "idle idle+ wait-ctl-conn closed", "offer", "", nothing)
	add(g, "idle idle+ wait-ctl-conn established established+ established++ suspended suspended+ suspended++ closed", "extend", "", nothing) // the node's to ask for
	add(g, "established established+ established++", "cur:KRQ", "", "arm:hello RekeyFailed/2.25 save send:KRP/2.25@1")                       // the share is 0
	add(g, "idle idle+ wait-ctl-conn established established+ established++ suspended suspended+ suspended++ closed", "rekey", "", nothing)
	add(g, "established established+ established++", "cur:ICRQ", "", "arm:hello ask:session ask:setup save send:ICRP@1")
	add(g, "established established+ established++", "cur:SLI", "", "arm:hello arm:hello SessionDown/2.35 save send:CDN/2.35@1")
	add(g, "established established+ established++", "drain", "", "send:DRN@1")
	add(g, "idle idle+ wait-ctl-conn suspended suspended+ suspended++ closed", "drain", "", nothing) // told again after a resume
	add(g, "established established+ established++", "cur:CRQ", "", "arm:hello ask:sign save send:CRP@1")
	add(g, "established established+ established++", "lifetime stamp", "", "save send:SLI@1")
	add(g, "suspended suspended+ suspended++", "lifetime stamp", "", "save") // kept until a resume brings them over
	add(g, "established established+ established++", "routes", "", "save send:CHO@1")
	add(g, "suspended suspended+ suspended++", "routes", "", "ChangeRefused/4.34") // again after the resume
	add(g, "idle idle+ wait-ctl-conn closed", "routes lifetime stamp", "", nothing)
	add(g, "idle idle+ wait-ctl-conn established established+ established++ suspended suspended+ suspended++ closed", "hold", "", nothing) // the node's to ask for
	add(g, "suspended suspended+ suspended++", "close", "", "SessionDown/3 save")
	add(g, "idle idle+ wait-ctl-conn established established+ established++ suspended suspended+ suspended++ closed", "open", "", "SessionRefused/1")
	add(g, "idle idle+ wait-ctl-conn established established+ established++ suspended suspended+ suspended++ closed", "renew", "", "CertificateRenewed")
	add(g, "idle established suspended", "attach", "", "arm:setup")
	add(g, "established+ established++ suspended+ suspended++", "attach", "", failed+" arm:setup")

	// A new connection: RFC 3931, section 7.2, "idle" and "wait-ctl-conn".
	add(g, "idle+", "new:SCCRQ", "wait-ctl-conn", "ask:authorize send:SCCRP@1")
	add(g, "idle+", "new:SCCRQ-version", "closed", "send:StopCCN/5.18@1 forget drop@1"+over+"/5.18")
	add(g, "idle+", "new:SCCRQ-kind", "closed", "send:StopCCN/2.9@1 forget drop@1"+over+"/2.9")
	add(g, "idle+", "new:SCCRQ-denied", "closed", "ask:authorize send:StopCCN/4.6@1 forget drop@1"+over+"/4.6")
	add(g, "idle+", toRequested, "closed", "forget drop@1"+over+"/7") // nobody named a connection to answer to
	add(g, "idle+", "new:malformed", "closed", "forget drop@1"+over+"/2")
	add(g, "idle+", "stop", "closed", "forget drop@1"+over+"/6")
	add(g, "idle+", "save-failed", "closed", "forget drop@1"+over+"/1.17")
	add(g, "wait-ctl-conn", "new:SCCCN", "established", "disarm:setup disarm:grace arm:hello Opened save send:ACK@1")
	add(g, "wait-ctl-conn", toConnecting, "closed", "send:StopCCN/7@1 forget drop@1"+over+"/7")
	add(g, "wait-ctl-conn", "new:malformed", "closed", "send:StopCCN/2@1 forget drop@1"+over+"/2")
	add(g, "wait-ctl-conn", "stop", "closed", "send:StopCCN/6@1 forget drop@1"+over+"/6")
	add(g, "wait-ctl-conn", "save-failed", "closed", "send:StopCCN/1.17@1 forget drop@1"+over+"/1.17")
	add(g, "idle+ wait-ctl-conn", "new:StopCCN-retry", "closed", "forget drop@1"+over+"/1.16")
	add(g, "idle+ wait-ctl-conn", "new:StopCCN-reconnect", "closed", "forget drop@1"+over+"/2.9")
	add(g, "idle+ wait-ctl-conn", "new:StopCCN-give-up", "closed", "forget drop@1"+over+"/4.6")
	add(g, "idle+ wait-ctl-conn", "new:lost setup", "closed", "forget drop@1"+over+"/1")
	add(g, "idle+ wait-ctl-conn", "attach", "closed", "forget drop@1"+over+"/1 drop@3")

	// A resume: whatever the peer says on it, the connection stays as it was.
	add(g, "established+ suspended+", "new:SCCRQ", "", "ask:authorize save send:SCCRP@2")
	add(g, "established+ suspended+", "new:SCCRQ-version", "", "send:StopCCN/5.18@2 "+failed)
	add(g, "established+ suspended+", "new:SCCRQ-kind", "", "send:StopCCN/2.9@2 "+failed)
	add(g, "established+ suspended+", "new:SCCRQ-denied", "", "ask:authorize send:StopCCN/4.6@2 "+failed)
	add(g, "established+ suspended+", toRequested+" new:malformed", "", failed)
	add(g, "established++", "new:SCCCN", "", "drop@1 disarm:setup disarm:grace arm:hello Resumed save send:FSQ@2")
	add(g, "suspended++", "new:SCCCN", "established", "disarm:setup disarm:grace arm:hello Resumed save send:FSQ@2")
	add(g, "established++ suspended++", toConnecting, "", "send:StopCCN/7@2 "+failed)
	add(g, "established++ suspended++", "new:malformed", "", "send:StopCCN/2@2 "+failed)
	add(g, "established+ established++ suspended+ suspended++", "new:StopCCN-retry new:StopCCN-reconnect new:StopCCN-give-up new:lost setup", "", failed)
	add(g, "established+", "save-failed", "suspended", failed+" "+lost)
	add(g, "established++", "save-failed", "suspended", "send:StopCCN/1.17@2 "+failed+" "+lost)
	add(g, "suspended+", "save-failed", "", failed)
	add(g, "suspended++", "save-failed", "", "send:StopCCN/1.17@2 "+failed)
	add(g, "suspended+", "stop", "closed", "SessionDown/6 forget drop@2"+over+"/6")
	add(g, "suspended++", "stop", "closed", "send:StopCCN/6@2 SessionDown/6 forget drop@2"+over+"/6")
	add(g, "suspended+ suspended++", "grace", "closed", "SessionDown/1.12 forget drop@2"+over+"/1.12")
	return rows
}

// pairsOf maps each "role situation event" to its row; a pair that stands in
// two rows is an error.
func pairsOf(t *testing.T, rows []row) map[string]row {
	t.Helper()
	pairs := map[string]row{}
	for _, r := range rows {
		for _, s := range strings.Fields(r.situations) {
			for _, e := range strings.Fields(r.events) {
				key := fmt.Sprintf("%v %s", situation{role: r.role, name: s}, e)
				if _, ok := pairs[key]; ok {
					t.Errorf("%s stands twice in the table", key)
				}
				pairs[key] = r
			}
		}
	}
	return pairs
}

func TestConnectionTableIsWhole(t *testing.T) {
	pairs := pairsOf(t, connectionRows())
	for _, s := range situations {
		for _, e := range allEvents() {
			key := fmt.Sprintf("%v %s", s, e)
			if _, ok := pairs[key]; !ok {
				t.Errorf("nobody wrote down what happens at %s", key)
			}
			delete(pairs, key)
		}
	}
	for key := range pairs {
		t.Errorf("the table speaks of %q, which is no pair", key)
	}
}

func TestConnectionTable(t *testing.T) {
	pairs := pairsOf(t, connectionRows())
	for _, s := range situations {
		for _, e := range allEvents() {
			key := fmt.Sprintf("%v %s", s, e)
			want, ok := pairs[key]
			if !ok {
				continue // TestConnectionTableIsWhole says so
			}
			t.Run(key, func(t *testing.T) { s.try(t, e, want) })
		}
	}
}

// try builds the situation, lets the event happen and compares.
func (s situation) try(t *testing.T, event string, want row) {
	p := s.build(t)
	under := p.node
	if s.role == Responder {
		under = p.gateway
	}
	if got := under.m.State().String(); got != s.state() {
		t.Fatalf("it begins in state %s", got)
	}
	under.trace = nil
	p.happen(s, under, event)
	next := want.next
	if next == "" {
		next = s.state()
	}
	if got := strings.Join(under.trace, " "); got != want.actions || under.m.State().String() != next {
		t.Fatalf("\n got %s, %q\nwant %s, %q", under.m.State(), got, next, want.actions)
	}
	if want.actions == nothing {
		p.goesOn(s)
	}
}

// happen lets one event happen to the machine under test.
func (p *pair) happen(s situation, under *side, event string) {
	p.t.Helper()
	where, what, ok := strings.Cut(event, ":")
	if !ok {
		p.locally(under, event)
		return
	}
	id := map[string]TransportID{"cur": s.cur, "new": s.next, "gone": 9}[where]
	if id == 0 {
		id = 9 // no such transport here, or none any more
	}
	switch what {
	case "malformed":
		under.step(Malformed{id, wire.Result{Code: wire.StopError, Error: wire.ErrorLength}})
	case "lost":
		under.step(Detached{id, time.Now(), errors.New("reset by peer")})
	default:
		p.arrives(under, id, what, where == "cur")
	}
}

// locally lets something happen that no peer sent.
func (p *pair) locally(s *side, event string) {
	var id uint32
	if len(s.m.sessions) > 0 {
		id = s.m.sessions[0].LocalID
	}
	key, public := newKey(p.t)
	switch event {
	case "setup":
		s.step(Expired{TimerSetup, time.Now()})
	case "hello":
		s.step(Expired{TimerHello, time.Now()})
	case "grace":
		s.step(Expired{TimerGrace, time.Now()})
	case "attach":
		s.step(Attached{3, p.binding(s, 3), false})
	case "open":
		s.step(OpenSession{Network: "lab", Label: "lab", Serial: 8, PrivateKey: key, PublicKey: public})
	case "close":
		s.step(CloseSession{LocalID: id, Result: wire.Result{Code: wire.CDNAdministrative}})
	case "stop":
		s.step(Stop{Result: wire.Result{Code: wire.StopShuttingDown}})
	case "routes":
		s.step(OfferChange{LocalID: id, Terms: Terms{HasRoutes: true, Routes: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}}})
	case "hold":
		s.step(HoldSession{LocalID: id, Held: true})
	case "lifetime":
		s.step(ChangeLifetime{LocalID: id, Lifetime: wire.Lifetime{Idle: time.Minute}})
	case "stamp":
		s.step(TellStamp{LocalID: id, Stamp: wire.Stamp{1}})
	case "trouble":
		s.step(ReportTrouble{LocalID: id})
	case "renew":
		s.step(RenewCertificate{session.NewID(), []byte("csr")})
	case "rekey":
		s.step(StartRekey{id})
	case "confirm":
		s.step(ConfirmRekey{id, s.epoch() + 1})
	case "unconfirmed":
		s.step(FailRekey{id, s.epoch() + 1, wire.Result{Code: wire.CDNError, Error: wire.ErrorVendor, Cause: wire.CauseUnconfirmed}})
	case "armed":
		s.step(Armed{LocalID: id})
	case "offer":
		s.step(OfferChange{LocalID: id, Terms: Terms{MTU: 1400}})
	case "extend":
		s.step(ExtendSession{LocalID: id, Left: time.Hour})
	case "changed":
		s.step(Changed{LocalID: id})
	case "refresh":
		s.step(RefreshSession{LocalID: id, After: time.Hour})
	case "agreed":
		s.step(Agreed{LocalID: id})
	case "extended":
		s.step(Extended{LocalID: id})
	case "ticket":
		s.step(Expired{TimerTicket, time.Now()})
	case "ticketed":
		s.step(Ticketed{id, []byte("ticket")})
	case "rebuild":
		s.step(RebuildSession{id})
	case "drain":
		s.step(TellDrain{Leaving: true})
	case "save-failed":
		s.step(SaveFailed{errors.New("disk is full")})
	case "authorized":
		s.step(Authorized{Transport: 1})
	case "granted":
		s.step(Granted{LocalID: id, Grant: s.grant()})
	case "set-up":
		s.step(SetUp{LocalID: id})
	case "signed":
		s.step(Signed{RequestID: session.NewID(), Certificate: []byte("x")})
	default:
		p.t.Fatalf("no event %q", event)
	}
}

// arrives gives the machine a message: the one its peer really owes it on this
// transport if it is of that type, else one that could be.
func (p *pair) arrives(under *side, id TransportID, what string, inUse bool) {
	p.t.Helper()
	peer := p.gateway
	if under == p.gateway {
		peer = p.node
	}
	name, variant, _ := strings.Cut(what, "-")
	q := p.owed(peer, id, name)
	if q == nil || inUse {
		q = p.plausible(under, id, what)
	}
	switch variant {
	case "version":
		switch m := q.Message.(type) {
		case *wire.SCCRQ:
			m.Profile.Version = 2
		case *wire.SCCRP:
			m.Profile.Version = 2
		}
	case "kind": // a resume where there is nothing, a beginning where there is something
		m := q.Message.(*wire.SCCRQ)
		if m.Recovery == nil {
			m.Recovery, m.Proof, m.Cursor = &wire.Recovery{LocalID: 1, RemoteID: 2}, &wire.Proof{}, &wire.Cursor{}
		} else {
			m.Recovery, m.Proof, m.Cursor = nil, nil, nil
		}
	case "denied":
		under.deny = &wire.Result{Code: wire.StopNotAuthorized, Cause: wire.CauseRevoked}
	case "proof":
		m := q.Message.(*wire.SCCRP)
		m.Proof, m.Cursor = &wire.Proof{Generation: under.m.rec.Generation, Attempt: under.m.rec.Attempt}, &wire.Cursor{}
	case "header":
		if name == "SCCRP" || name == "SCCCN" || name == "other" {
			q.ConnID ^= 1
		}
	}
	under.step(Received{id, q})
}

// owed is a copy of the message of that name that peer has sent on transport id.
func (p *pair) owed(peer *side, id TransportID, name string) *wire.Packet {
	for _, s := range peer.out {
		if s.Transport != id || s.Packet.Message.Type().String() != name {
			continue
		}
		b, err := s.Packet.Append(nil)
		if err != nil {
			p.t.Fatal(err)
		}
		q, err := wire.Parse(b)
		if err != nil {
			p.t.Fatal(err)
		}
		return q
	}
	return nil
}

// plausible makes up a message with the right header; if it speaks of a session
// it is the first.
func (p *pair) plausible(under *side, id TransportID, what string) *wire.Packet {
	q := &wire.Packet{ConnID: under.m.rec.LocalID, Ns: under.m.rec.Nr, Nr: under.m.rec.Ns}
	s := Session{LocalID: 5, RemoteID: 6}
	if len(under.m.sessions) > 0 {
		s = *under.m.sessions[0]
	}
	name, _, _ := strings.Cut(what, "-")
	profile := wire.Profile{Version: wire.ProtocolVersion, BootID: session.ID{7: 7}, KeyShare: [32]byte{9}}
	switch name {
	case "SCCRQ":
		q.Message = &wire.SCCRQ{HostName: "x", AssignedID: 77, Pseudowires: []uint16{wire.PWTypeWireGuard}, Profile: profile}
	case "SCCRP":
		q.Message = &wire.SCCRP{HostName: "x", AssignedID: 77, Pseudowires: []uint16{wire.PWTypeWireGuard}, Profile: profile}
	case "SCCCN":
		q.Message = &wire.SCCCN{}
	case "StopCCN":
		q.Message = &wire.StopCCN{Result: map[string]wire.Result{
			"StopCCN":           {Code: wire.StopShuttingDown},
			"StopCCN-retry":     {Code: wire.StopGeneral, Cause: wire.CauseBusy},
			"StopCCN-reconnect": {Code: wire.StopError, Cause: wire.CauseUnknownResume},
			"StopCCN-give-up":   {Code: wire.StopNotAuthorized, Cause: wire.CauseRevoked},
		}[what]}
	case "ACK":
		q.Message = &wire.ACK{}
	case "HELLO", "other":
		q.Message = &wire.Hello{}
	case "false": // an acknowledgement of what was never sent
		q.Message, q.Nr = &wire.ACK{}, q.Nr+1
	case "ahead": // something before it was lost on a stream that loses nothing
		q.Message, q.Ns = &wire.CertReply{RequestID: session.NewID(), Certificate: []byte("x")}, q.Ns+1
	case "repeat":
		q.Message, q.Ns = &wire.StopCCN{Result: wire.Result{Code: wire.StopGeneral}}, q.Ns-1
	case "unknown":
		q.Message = &wire.UnknownMessage{Vendor: wire.VendorID, Number: 99}
	case "DRN":
		q.Message = &wire.Drain{Leaving: true, Gateways: []string{"gw-2.example:443"}}
	case "CRQ":
		q.Message = &wire.CertRequest{RequestID: session.NewID(), CSR: []byte("csr")}
	case "CRP":
		q.Message = &wire.CertReply{RequestID: session.NewID(), Certificate: []byte("x")}
	case "ICRQ":
		q.Message = p.request(under, 4242)
	default:
		q.Message = aboutSession(p.t, what, s)
	}
	return q
}

// request is a good ICRQ for what under now has as transport, with the peer's id.
func (p *pair) request(under *side, id uint32) *wire.ICRQ {
	key, public := newKey(p.t)
	q := &wire.ICRQ{LocalID: id, Serial: 9, PWType: wire.PWTypeWireGuard, RemoteEnd: "lab", PublicKey: public}
	if l := under.m.cur; l != nil {
		shared, err := key.X25519(l.shareOut)
		if err != nil {
			p.t.Fatal(err)
		}
		q.KeyProof = keyProof(shared, Initiator, l.binding, [2]uint32{id, 0}, public, []byte("lab"))
	}
	return q
}

// aboutSession is a message about s, as its other end would send it.
func aboutSession(t *testing.T, what string, s Session) wire.Message {
	t.Helper()
	switch what {
	case "ICRP":
		return &wire.ICRP{LocalID: s.RemoteID, RemoteID: s.LocalID, Session: session.NewID(), PublicKey: [32]byte{3}}
	case "ICCN":
		return &wire.ICCN{LocalID: s.RemoteID, RemoteID: s.LocalID}
	case "CDN":
		return &wire.CDN{LocalID: s.RemoteID, RemoteID: s.LocalID, Result: wire.Result{Code: wire.CDNAdministrative}}
	case "SLI":
		return &wire.SLI{LocalID: s.RemoteID, RemoteID: s.LocalID, HasRoutes: true}
	case "WEN":
		return &wire.WEN{LocalID: s.RemoteID, RemoteID: s.LocalID}
	case "KRQ":
		return &wire.KeyRequest{LocalID: s.RemoteID, RemoteID: s.LocalID, KeyEpoch: s.KeyEpoch + 1, EncapsulationKey: make([]byte, mlkem.EncapsulationKeySize768)}
	case "KRP":
		return &wire.KeyReply{LocalID: s.RemoteID, RemoteID: s.LocalID, KeyEpoch: s.KeyEpoch + 1, KeyShare: [32]byte{9}, Ciphertext: make([]byte, mlkem.CiphertextSize768)}
	case "KCN":
		return &wire.KeyChanged{LocalID: s.RemoteID, RemoteID: s.LocalID, KeyEpoch: s.KeyEpoch + 1}
	case "CHO":
		return &wire.ChangeOffer{LocalID: s.RemoteID, RemoteID: s.LocalID, RequestID: session.NewID(), MTU: 1400}
	case "CHA":
		return &wire.ChangeAnswer{LocalID: s.RemoteID, RemoteID: s.LocalID, RequestID: session.NewID()}
	case "TKT":
		return &wire.Ticket{LocalID: s.RemoteID, RemoteID: s.LocalID, Ticket: []byte("ticket")}
	case "FSQ":
		return &wire.FSQ{Sessions: []wire.SessionPair{{LocalID: s.RemoteID, RemoteID: s.LocalID}}}
	case "FSR":
		return &wire.FSR{Sessions: []wire.SessionPair{{LocalID: s.RemoteID, RemoteID: s.LocalID}}}
	}
	t.Fatalf("no message %q", what)
	return nil
}

// goesOn checks that what was ignored did no harm: the conversation is brought to
// its end, and a change of routes comes through.
func (p *pair) goesOn(s situation) {
	p.t.Helper()
	p.gateway.deny = nil
	if s.state() == "closed" {
		return
	}
	if s.cur == 0 && s.next == 0 {
		p.connect()
	}
	p.carry(-1)
	if s.state() == "idle" || strings.HasPrefix(s.state(), "wait") {
		p.open()
		p.carry(-1)
	}
	p.wantUp()
	routes := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	p.gateway.step(OfferChange{LocalID: p.gateway.m.sessions[0].LocalID, Terms: Terms{HasRoutes: true, Routes: routes}})
	p.carry(-1)
	if got := p.node.m.sessions[0].Routes; len(got) != 1 || got[0] != routes[0] {
		p.t.Errorf("after what was ignored: routes = %v, want %v", got, routes)
	}
}
