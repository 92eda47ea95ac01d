package control

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/secret"
	"tunneld/internal/session"
)

var (
	gatewayID   = session.ID{1: 0xaa}
	nodeID      = session.ID{1: 0xbb}
	gatewayBoot = session.ID{2: 0xcc}
	nodeBoot    = session.ID{2: 0xdd}
)

// side is one end of a pair: a machine with the handler and the disk a test
// wants. Nothing in it runs by itself.
type side struct {
	t             *testing.T
	name          string
	m             *Machine
	cfg           Config
	saved         *Record // as on disk; nil: none
	lost          bool    // the next Save fails
	denied        *Denied // so does it, for good
	notices       []string
	peerRestarted bool // said by the last Resumed
	kept          []wire.Keypair
	deny          *wire.Result // of Authorize
	refuse        *wire.Result // of Grant
	broken        *wire.Result // of SetUp
	unarmed       *wire.Result // of AskArm
	unchanged     *wire.Result // of AskChange, AskExtend and AskRefresh
	key           secret.Value // the gateway's
	public        [32]byte
	given         []Session // by SetUp
	out           []Send
	dropped       map[TransportID]bool
	armed         map[Timer]time.Duration
	trace         []string              // of every action, as brief writes it
	watch         func(Event, []Action) // sees each step before its actions are done

	life    wire.Lifetime // of Grant
	expires wire.Expires  // of Grant, and what a node wishes
	longest time.Duration // that is agreed to in AskRefresh

	sealed map[string]Session // tickets given, by what they say
}

func newKey(t *testing.T) (secret.Value, [32]byte) {
	t.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return secret.New(k.Bytes()), [32]byte(k.PublicKey().Bytes())
}

func newSide(t *testing.T, role Role) *side {
	s := &side{t: t, name: "node", dropped: map[TransportID]bool{}, armed: map[Timer]time.Duration{}}
	s.cfg = Config{Role: role, LocalID: 0x11110000, HostName: "alice", RouterID: 7, BootID: nodeBoot, Rand: rand.Reader, Jitter: func() float64 { return 0 }}
	if role == Responder {
		s.name = "gateway"
		s.cfg.LocalID, s.cfg.HostName, s.cfg.RouterID, s.cfg.BootID = 0x22220000, "hq", 9, gatewayBoot
		s.key, s.public = newKey(t)
	}
	s.longest = 24 * time.Hour
	s.m = New(s.cfg)
	return s
}

// step gives the machine an event and does what a driver would.
func (s *side) step(ev Event) {
	s.t.Helper()
	for ev != nil {
		var answer Event
		actions := s.m.Step(ev)
		if s.watch != nil {
			s.watch(ev, actions)
		}
		for _, a := range actions {
			s.trace = append(s.trace, brief(a))
			switch a := a.(type) {
			case Save:
				if s.denied != nil {
					answer = SaveFailed{s.denied}
				} else if s.lost {
					s.lost = false
					answer = SaveFailed{errors.New("disk is full")}
				} else {
					s.saved = a.Record
					continue
				}
			case Forget:
				s.saved = nil
				continue
			case Send:
				s.out = append(s.out, a)
				continue
			case Drop:
				s.dropped[a.Transport] = true
				continue
			case Arm:
				s.armed[a.Timer] = a.After
				continue
			case Disarm:
				delete(s.armed, a.Timer)
				continue
			case AskAuthorize:
				answer = Authorized{a.Transport, s.deny}
			case AskSession:
				answer = Granted{a.LocalID, s.rebuilt(s.grant(), a.Request), s.refuse}
			case AskTicket:
				answer = Ticketed{a.Session.LocalID, s.seal(a.Session)}
			case AskSetUp:
				s.given = append(s.given, a.Session)
				answer = SetUp{a.Session.LocalID, s.broken}
			case AskArm:
				answer = Armed{a.Session.LocalID, s.unarmed}
			case AskChange:
				answer = Changed{a.Session.LocalID, s.unchanged}
			case AskExtend:
				answer = Extended{a.Session.LocalID, wire.Lifetime{Absolute: a.Left}, time.Hour, s.unchanged}
			case AskRefresh:
				answer = Agreed{a.Session.LocalID, wire.Expires{After: min(a.Expires.After, s.longest), Refresher: a.Expires.Refresher}, s.unchanged}
			case AskSign:
				answer = Signed{a.RequestID, append([]byte("signed "), a.CSR...), nil}
			case Resumed:
				s.notices = append(s.notices, "Resumed")
				s.peerRestarted, s.kept = a.PeerRestarted, a.Kept
				continue
			default:
				s.notices = append(s.notices, strings.TrimPrefix(fmt.Sprintf("%T", a), "control."))
				continue
			}
			break
		}
		ev = answer
	}
}

func (s *side) grant() Grant {
	return Grant{
		ID: session.NewID(), PrivateKey: s.key, PublicKey: s.public,
		Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("fd77::2")},
		Peers:     []netip.Addr{netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77::1")},
		Routes:    []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}, MTU: 1420,
		Timers: wire.Timers{Hello: 5 * time.Second, Misses: 4, Grace: time.Hour}, Lifetime: s.life, Expires: s.expires,
	}
}

func (s *side) said(notice string) (n int) {
	for _, got := range s.notices {
		if got == notice {
			n++
		}
	}
	return n
}

// restart makes a machine from what is on disk, as after kill -9.
func (s *side) restart(boot session.ID) {
	s.t.Helper()
	if s.saved == nil {
		s.t.Fatalf("%s: nothing on disk to restart from", s.name)
	}
	b, err := s.saved.Encode()
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := DecodeRecord(b)
	if err != nil {
		s.t.Fatal(err)
	}
	s.cfg.BootID = boot
	s.m = Restore(s.cfg, r)
	s.out, s.notices = nil, nil
	s.step(Started{Remaining: time.Hour})
}

// pair is a node and a gateway with transports between them.
type pair struct {
	t             *testing.T
	node, gateway *side
	transport     TransportID
}

func newPair(t *testing.T) *pair {
	return &pair{t: t, node: newSide(t, Initiator), gateway: newSide(t, Responder)}
}

// news is something that a gateway tells of a session, in a message that takes a
// number.
func news(id uint32) Event {
	return ChangeLifetime{LocalID: id, Lifetime: wire.Lifetime{Idle: time.Minute}}
}

// exporter is what both ends of transport id derive.
func exporter(id TransportID) func(string, []byte, int) ([]byte, error) {
	return func(label string, context []byte, n int) ([]byte, error) {
		sum := sha256.Sum256(fmt.Appendf(nil, "transport %d %s %x", id, label, context))
		return sum[:n], nil
	}
}

func (p *pair) binding(s *side, id TransportID) Binding {
	b := Binding{Export: exporter(id), OwnID: nodeID, PeerID: gatewayID, PeerName: "hq", OwnKey: [32]byte{1}, PeerKey: [32]byte{2}}
	if s == p.gateway {
		b = Binding{Export: exporter(id), OwnID: gatewayID, PeerID: nodeID, PeerName: "alice", OwnKey: [32]byte{2}, PeerKey: [32]byte{1}}
	}
	return b
}

// connect makes a transport; messages wait in the sides' out until carry.
func (p *pair) connect() TransportID {
	p.transport++
	p.gateway.step(Attached{p.transport, p.binding(p.gateway, p.transport), false})
	p.node.step(Attached{p.transport, p.binding(p.node, p.transport), false})
	return p.transport
}

// carry brings at most n messages over, every one encoded and parsed; -1: all.
func (p *pair) carry(n int) {
	p.t.Helper()
	for carried := 0; n != 0; n-- {
		if carried++; carried > 10000 {
			p.t.Fatalf("the two talk for ever: %v, %v", p.node.trace[len(p.node.trace)-10:], p.gateway.trace[len(p.gateway.trace)-10:])
		}
		from, to := p.node, p.gateway
		if len(from.out) == 0 {
			from, to = p.gateway, p.node
		}
		if len(from.out) == 0 {
			return
		}
		s := from.out[0]
		from.out = from.out[1:]
		b, err := s.Packet.Append(nil)
		if err != nil {
			p.t.Fatalf("%s sends %v: %v", from.name, s.Packet.Message.Type(), err)
		}
		q, err := wire.Parse(b)
		if err != nil {
			p.t.Fatalf("%s reads %v: %v", to.name, s.Packet.Message.Type(), err)
		}
		to.step(Received{s.Transport, q})
	}
}

// cut breaks the transport; what was under way is lost.
func (p *pair) cut() {
	p.node.out, p.gateway.out = nil, nil
	p.node.step(Detached{p.transport, time.Now(), errors.New("cut")})
	p.gateway.step(Detached{p.transport, time.Now(), errors.New("cut")})
	p.node.out, p.gateway.out = nil, nil
}

// open asks for a session without carrying anything.
func (p *pair) open() {
	key, public := newKey(p.t)
	p.node.step(OpenSession{Network: "office", Label: "work", Serial: 1, PrivateKey: key, PublicKey: public, Expires: p.node.expires,
		Advertise: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")}})
}

// established is a pair with one session up.
func established(t *testing.T) *pair {
	p := newPair(t)
	p.connect()
	p.carry(-1)
	p.open()
	p.carry(-1)
	p.wantUp()
	return p
}

// wantUp checks that both ends agree on one established session.
func (p *pair) wantUp() {
	p.t.Helper()
	for _, s := range []*side{p.node, p.gateway} {
		ss := s.m.Sessions()
		if s.m.State() != session.Established || len(ss) != 1 || ss[0].State != session.Established {
			p.t.Fatalf("%s: state %v, sessions %+v; want established with one established session", s.name, s.m.State(), ss)
		}
	}
	n, g := p.node.m.Sessions()[0], p.gateway.m.Sessions()[0]
	if n.ID != g.ID || n.LocalID != g.RemoteID || n.RemoteID != g.LocalID || n.PeerKey != g.PublicKey || n.PublicKey != g.PeerKey || !n.PresharedKey.Equal(g.PresharedKey) {
		p.t.Fatalf("the ends disagree: %+v and %+v", n, g)
	}
	if p.node.m.Pending() != 0 || p.gateway.m.Pending() != 0 {
		p.t.Errorf("messages pending when all is quiet: node %d, gateway %d", p.node.m.Pending(), p.gateway.m.Pending())
	}
}

func TestSessionComesUp(t *testing.T) {
	p := established(t)
	n := p.node.m.Sessions()[0]
	if n.PresharedKey.IsZero() || n.Label != "work" || len(n.Addresses) != 2 || n.Timers.Misses != 4 {
		t.Errorf("session = %+v", n)
	}
	if got := p.node.m.Timers().Hello; got != 5*time.Second {
		t.Errorf("hello = %v, want the network's 5s", got)
	}
	if p.node.said("SessionUp") != 1 || p.gateway.said("SessionUp") != 1 {
		t.Errorf("notices: node %v, gateway %v", p.node.notices, p.gateway.notices)
	}
}

func TestResumeKeepsTheSession(t *testing.T) {
	p := established(t)
	before := p.node.m.Sessions()[0]
	for i := range 5 {
		p.cut()
		if p.node.m.State() != session.Suspended || p.node.m.Sessions()[0].State != session.Suspended {
			t.Fatalf("after the cut: %v, %v", p.node.m.State(), p.node.m.Sessions()[0].State)
		}
		p.connect()
		p.carry(-1)
		p.wantUp()
		if got := p.node.m.Sessions()[0]; got.ID != before.ID || got.Resumes != uint64(i+1) {
			t.Fatalf("resume %d: session %v with %d resumes, want %v", i, got.ID, got.Resumes, before.ID)
		}
	}
	if p.node.m.rec.Generation != 5 || p.gateway.m.rec.Generation != 5 || !p.gateway.m.rec.NextKey.IsZero() {
		t.Errorf("generations: node %d, gateway %d, want 5 and 5 with no older key kept", p.node.m.rec.Generation, p.gateway.m.rec.Generation)
	}
}

func TestResumeBesideALivingTransport(t *testing.T) {
	p := established(t)
	old := p.transport
	p.connect()
	if p.node.m.State() != session.Established {
		t.Fatalf("state = %v while the new transport is made", p.node.m.State())
	}
	p.carry(-1)
	p.wantUp()
	if !p.node.dropped[old] || !p.gateway.dropped[old] {
		t.Error("the old transport was not dropped")
	}
}

// TestResumeAfterACutAnywhere cuts the transport after each number of messages
// of a conversation, in which a resume follows a resume, and wants the same
// session each time.
func TestResumeAfterACutAnywhere(t *testing.T) {
	for n := range 30 {
		p := established(t)
		id := p.node.m.Sessions()[0].ID
		p.cut()
		p.connect()
		p.carry(n)
		p.cut()
		p.connect()
		p.carry(-1)
		if p.node.m.State() != session.Established || len(p.node.m.Sessions()) != 1 || p.node.m.Sessions()[0].ID != id {
			t.Fatalf("cut after %d messages: state %v, sessions %v, notices %v", n, p.node.m.State(), p.node.m.Sessions(), p.node.notices)
		}
		p.wantUp()
	}
}

// TestRestartAnywhere kills one end after each number of messages of set-up and
// resume, restarts it from its disk, and wants both ends to agree afterwards.
func TestRestartAnywhere(t *testing.T) {
	for _, who := range []string{"node", "gateway"} {
		for n := range 16 {
			p := newPair(t)
			p.connect()
			p.carry(-1)
			p.open()
			p.carry(n)
			p.cut()
			victim, boot := p.node, session.ID{3: 1}
			if who == "gateway" {
				victim, boot = p.gateway, session.ID{3: 2}
			}
			victim.restart(boot)
			p.connect()
			p.carry(-1)
			ns, gs := p.node.m.Sessions(), p.gateway.m.Sessions()
			if p.node.m.State() != session.Established || len(ns) != len(gs) || p.node.m.Pending()+p.gateway.m.Pending() != 0 {
				t.Fatalf("%s killed after %d messages: node %v %v, gateway %v %v", who, n, p.node.m.State(), ns, p.gateway.m.State(), gs)
			}
			if len(ns) == 1 && (ns[0].ID != gs[0].ID || ns[0].State != gs[0].State) {
				t.Fatalf("%s killed after %d messages: the ends disagree: %+v, %+v", who, n, ns[0], gs[0])
			}
		}
	}
}

func TestPeerRestartIsTold(t *testing.T) {
	p := established(t)
	p.cut()
	p.gateway.restart(session.ID{9: 9})
	p.node.notices = nil
	p.connect()
	p.carry(-1)
	p.wantUp()
	if !p.node.peerRestarted || p.gateway.peerRestarted {
		t.Errorf("peer restarted: node says %v, gateway %v, want true and false", p.node.peerRestarted, p.gateway.peerRestarted)
	}
	if _, _, boot := p.node.m.Peer(); boot != (session.ID{9: 9}) {
		t.Errorf("the node knows boot id %v", boot)
	}
}

// TestKeptKeypairsAreTold: a gateway that is another process than before says what
// keypairs it still has, and only then; a node says nothing of its own.
func TestKeptKeypairsAreTold(t *testing.T) {
	kept := []wire.Keypair{{Session: 7, Index: 8}, {Session: 7, Index: 9}}
	p := established(t)
	p.node.cfg.Keypairs = func() []wire.Keypair { return kept }
	p.gateway.cfg.Keypairs = p.node.cfg.Keypairs
	for _, c := range []struct {
		name    string
		restart *side
		want    []wire.Keypair
	}{
		{"both as before", nil, nil},
		{"another process of the gateway", p.gateway, kept},
		{"the same again", nil, nil},
		{"another process of the node", p.node, nil},
	} {
		p.cut()
		if c.restart != nil {
			c.restart.restart(session.NewID())
		}
		p.connect()
		p.carry(-1)
		p.wantUp()
		if !slices.Equal(p.node.kept, c.want) || p.gateway.kept != nil {
			t.Errorf("%s: the node hears of keypairs %v, want %v; the gateway of %v", c.name, p.node.kept, c.want, p.gateway.kept)
		}
	}
}

func TestSpreadIsTold(t *testing.T) {
	p := newPair(t)
	spread := 5 * time.Second
	p.gateway.cfg.Spread = func() time.Duration { return spread }
	p.gateway.m = New(p.gateway.cfg)
	p.connect()
	p.carry(-1)
	p.open()
	p.carry(-1)
	p.wantUp()
	for range 2 { // of two resumes the first changes nothing
		if told := p.node.said("SpreadTold"); told != 1 || p.node.m.spread != spread || p.gateway.m.spread != 0 {
			t.Errorf("told %d times, the node knows %v, the gateway %v, want once, %v and nothing", told, p.node.m.spread, p.gateway.m.spread, spread)
		}
		p.connect()
		p.carry(-1)
		p.wantUp()
	}
}

func TestProofIsSpent(t *testing.T) {
	p := established(t)
	p.cut()
	p.connect()
	stolen := p.node.out[0].Packet // the SCCRQ with its proof
	p.carry(-1)
	p.wantUp()

	p.transport++
	p.gateway.step(Attached{p.transport, p.binding(p.gateway, p.transport), false})
	p.gateway.step(Received{p.transport, stolen})
	if last := p.gateway.out[len(p.gateway.out)-1]; last.Packet.Message.(*wire.StopCCN).Result.Cause != wire.CauseClonedState {
		t.Errorf("a proof that was used got %+v, want CauseClonedState", last.Packet.Message)
	}
	p.gateway.out = nil
	p.wantUp()
}

func TestClonedStateIsNoticed(t *testing.T) {
	p := established(t)
	p.cut()
	clone := p.node.saved
	p.connect()
	p.carry(2) // SCCRQ, SCCRP: the gateway has seen attempt 1
	p.cut()
	p.node.saved = clone
	p.node.restart(nodeBoot)
	p.connect()
	p.carry(1)
	if p.gateway.said("Cloned") != 1 {
		t.Errorf("notices of the gateway: %v, want Cloned", p.gateway.notices)
	}
	p.carry(-1)
	if p.node.m.State() != session.Closed {
		t.Errorf("the clone is %v, want closed: it must reconnect", p.node.m.State())
	}
}

func TestRefusedSession(t *testing.T) {
	p := newPair(t)
	p.connect()
	p.carry(-1)
	p.gateway.refuse = &wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseNetworkRight}
	p.open()
	p.carry(-1)
	if p.node.said("SessionRefused") != 1 || len(p.node.m.Sessions())+len(p.gateway.m.Sessions()) != 0 {
		t.Errorf("notices %v, sessions %v and %v", p.node.notices, p.node.m.Sessions(), p.gateway.m.Sessions())
	}
	p.gateway.refuse = nil
	p.open()
	p.carry(-1)
	p.wantUp()
}

func TestSetUpFailsAtTheNode(t *testing.T) {
	p := newPair(t)
	p.connect()
	p.carry(-1)
	p.node.broken = &wire.Result{Code: wire.CDNError, Error: wire.ErrorVendor, Cause: wire.CauseLocal}
	p.open()
	p.carry(-1)
	if len(p.node.m.Sessions())+len(p.gateway.m.Sessions()) != 0 || p.gateway.said("SessionDown") != 1 {
		t.Errorf("sessions %v and %v, gateway's notices %v", p.node.m.Sessions(), p.gateway.m.Sessions(), p.gateway.notices)
	}
}

func TestCloseWhileSuspendedIsToldAtResume(t *testing.T) {
	p := established(t)
	p.cut()
	p.node.step(CloseSession{LocalID: p.node.m.Sessions()[0].LocalID, Result: wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseUser}})
	p.connect()
	p.carry(-1)
	if len(p.gateway.m.Sessions()) != 0 || p.gateway.said("SessionDown") != 1 {
		t.Errorf("gateway's sessions %v, notices %v", p.gateway.m.Sessions(), p.gateway.notices)
	}
}

func TestSilenceSuspendsNeverCloses(t *testing.T) {
	p := established(t)
	if got := p.node.armed[TimerHello]; got != 5*time.Second {
		t.Fatalf("hello timer = %v, want 5s", got)
	}
	for i := range 4 {
		if p.node.m.State() != session.Established {
			t.Fatalf("%v after %d silent intervals of 4", p.node.m.State(), i)
		}
		p.node.step(Expired{TimerHello, time.Now()})
	}
	if p.node.m.State() != session.Suspended || p.node.armed[TimerGrace] != time.Hour {
		t.Errorf("state %v, grace %v; want suspended for 1h", p.node.m.State(), p.node.armed[TimerGrace])
	}
	p.node.step(Expired{TimerGrace, time.Now()})
	if p.node.m.State() != session.Closed || p.node.said("SessionDown") != 1 || p.node.saved != nil {
		t.Errorf("after the grace: %v, notices %v", p.node.m.State(), p.node.notices)
	}
}

func TestFailedSaveSaysNothing(t *testing.T) {
	p := established(t)
	p.gateway.lost = true
	p.node.step(CloseSession{LocalID: p.node.m.Sessions()[0].LocalID, Result: wire.Result{Code: wire.CDNAdministrative}})
	p.carry(1)
	if len(p.gateway.out) != 0 || p.gateway.m.State() != session.Suspended {
		t.Fatalf("gateway sent %v in state %v after a failed save", p.gateway.out, p.gateway.m.State())
	}
	p.cut()
	p.connect()
	p.carry(-1)
	if len(p.gateway.m.Sessions()) != 0 || p.node.m.Pending() != 0 {
		t.Errorf("after the resume: gateway's sessions %v, node's pending %d", p.gateway.m.Sessions(), p.node.m.Pending())
	}
}

func TestRoutesAreTheGateways(t *testing.T) {
	p := established(t)
	routes := []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("10.77.0.0/16")}
	p.gateway.step(OfferChange{LocalID: p.gateway.m.Sessions()[0].LocalID, Terms: Terms{HasRoutes: true, Routes: routes}})
	p.carry(-1)
	for _, s := range []*side{p.node, p.gateway} {
		if got := s.m.Sessions()[0].Routes; !slices.Equal(got, routes) || s.said("TermsChanged") != 1 {
			t.Errorf("%s: routes = %v, notices %v", s.name, got, s.notices)
		}
	}
	p.wantUp()
}

func TestCertificateIsRenewed(t *testing.T) {
	p := established(t)
	p.node.step(RenewCertificate{session.NewID(), []byte("csr")})
	p.carry(-1)
	if p.node.said("CertificateRenewed") != 1 || p.node.m.Pending() != 0 {
		t.Errorf("notices %v, pending %d", p.node.notices, p.node.m.Pending())
	}
}

func TestStrangersConnectionIsUnknown(t *testing.T) {
	p := established(t)
	p.cut()
	p.transport++
	b := p.binding(p.gateway, p.transport)
	b.PeerID = session.ID{5: 5}
	p.gateway.step(Attached{p.transport, b, false})
	p.node.step(Attached{p.transport, p.binding(p.node, p.transport), false})
	p.carry(1)
	if got := p.gateway.out[0].Packet.Message.(*wire.StopCCN).Result.Cause; got != wire.CauseUnknownResume {
		t.Errorf("cause %v, want %v", got, wire.CauseUnknownResume)
	}
	if p.gateway.m.State() != session.Suspended {
		t.Errorf("the gateway's connection is %v, want suspended as it was", p.gateway.m.State())
	}
}
