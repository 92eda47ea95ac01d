package control

import (
	"crypto/mlkem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// codesOf is codes of a result that may be absent.
func codesOf(r *wire.Result) string {
	if r == nil {
		return ""
	}
	return codes(*r)
}

// firstID is our id of the first session, 0 if there is none.
func (s *side) firstID() uint32 {
	if len(s.m.sessions) == 0 {
		return 0
	}
	return s.m.sessions[0].LocalID
}

// epoch is the key epoch of the first session, 0 if there is none.
func (s *side) epoch() uint32 {
	if len(s.m.sessions) == 0 {
		return 0
	}
	return s.m.sessions[0].KeyEpoch
}

func (p *pair) rekey()   { p.node.step(StartRekey{p.node.firstID()}) }
func (p *pair) confirm() { p.node.step(ConfirmRekey{p.node.firstID(), p.node.epoch() + 1}) }

// unconfirmed is the manager's limit running out.
func (p *pair) unconfirmed() {
	p.node.step(FailRekey{p.node.firstID(), p.node.epoch() + 1,
		wire.Result{Code: wire.CDNError, Error: wire.ErrorVendor, Cause: wire.CauseUnconfirmed}})
}

// settle lets the data plane do what it would after any accident: where the two
// active keys are the same, the handshake of an armed node succeeds.
func (p *pair) settle() {
	p.t.Helper()
	n, g := p.node.m.sessions[0], p.gateway.m.sessions[0]
	if !n.NextPresharedKey.IsZero() {
		if g.ActiveKey().Equal(n.ActiveKey()) {
			p.confirm()
		} else {
			p.unconfirmed()
		}
	}
	p.carry(-1)
}

// wantCommonKey: whatever was lost, there is a key that both ends hold, and the
// node's data plane uses it.
func (p *pair) wantCommonKey() {
	p.t.Helper()
	if len(p.node.m.sessions) != 1 || len(p.gateway.m.sessions) != 1 {
		p.t.Fatalf("sessions: node %v, gateway %v", p.node.m.Sessions(), p.gateway.m.Sessions())
	}
	n, g := p.node.m.sessions[0], p.gateway.m.sessions[0]
	active := n.ActiveKey()
	if !g.PresharedKey.Equal(active) && !g.NextPresharedKey.Equal(active) {
		p.t.Fatalf("the node uses a key that the gateway does not have: node epoch %d (next %v), gateway epoch %d (next %v)",
			n.KeyEpoch, !n.NextPresharedKey.IsZero(), g.KeyEpoch, !g.NextPresharedKey.IsZero())
	}
	if d := int(n.KeyEpoch) - int(g.KeyEpoch); d < 0 || d > 1 {
		p.t.Fatalf("key epochs: node %d, gateway %d", n.KeyEpoch, g.KeyEpoch)
	}
}

// wantQuiet: no change is open, and both ends have the same key and epoch.
func (p *pair) wantQuiet() {
	p.t.Helper()
	p.wantUp()
	n, g := p.node.m.sessions[0], p.gateway.m.sessions[0]
	if n.KeyEpoch != g.KeyEpoch || !n.OfferSecret.IsZero() || !n.NextPresharedKey.IsZero() || !g.NextPresharedKey.IsZero() {
		p.t.Fatalf("not quiet: node epoch %d, gateway epoch %d, offer %v, armed %v and %v",
			n.KeyEpoch, g.KeyEpoch, !n.OfferSecret.IsZero(), !n.NextPresharedKey.IsZero(), !g.NextPresharedKey.IsZero())
	}
}

func TestRekey(t *testing.T) {
	p := established(t)
	keys := []secret.Value{p.node.m.sessions[0].PresharedKey}
	for i := range uint32(3) {
		p.rekey()
		p.carry(-1)
		n, g := p.node.m.sessions[0], p.gateway.m.sessions[0]
		if p.node.said("KeyArmed") != int(i+1) || n.NextPresharedKey.IsZero() || !n.ActiveKey().Equal(g.ActiveKey()) || !n.PresharedKey.Equal(g.PresharedKey) {
			t.Fatalf("after the exchange: notices %v", p.node.notices)
		}
		p.confirm()
		p.carry(-1)
		p.wantQuiet()
		if got := p.node.epoch(); got != i+1 {
			t.Fatalf("key epoch = %d, want %d", got, i+1)
		}
		for _, old := range keys {
			if n.PresharedKey.Equal(old) || len(n.PresharedKey.Reveal()) != keySize {
				t.Fatal("a key came a second time")
			}
		}
		keys = append(keys, n.PresharedKey)
	}
	if p.node.said("SessionRekeyed") != 3 || p.gateway.said("SessionRekeyed") != 3 {
		t.Errorf("notices: node %v, gateway %v", p.node.notices, p.gateway.notices)
	}
}

func TestRekeyRollsBack(t *testing.T) {
	p := established(t)
	before := p.node.m.sessions[0].PresharedKey
	p.rekey()
	p.carry(-1)
	p.unconfirmed()
	p.carry(-1)
	p.wantQuiet()
	if got := p.node.m.sessions[0]; got.KeyEpoch != 0 || !got.PresharedKey.Equal(before) || p.node.said("RekeyFailed") != 1 || p.gateway.said("RekeyFailed") != 1 {
		t.Errorf("epoch %d; notices: node %v, gateway %v", got.KeyEpoch, p.node.notices, p.gateway.notices)
	}
	p.rekey()
	p.carry(-1)
	p.settle()
	p.wantQuiet()
	if p.node.epoch() != 1 {
		t.Errorf("key epoch = %d after another try, want 1", p.node.epoch())
	}
}

func TestRekeyRefused(t *testing.T) {
	p := established(t)
	p.gateway.unarmed = &wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseRevoked}
	p.rekey()
	p.carry(-1)
	p.wantQuiet()
	if p.node.epoch() != 0 || p.node.said("RekeyFailed") != 1 || p.node.said("KeyArmed") != 0 {
		t.Errorf("epoch %d, notices %v", p.node.epoch(), p.node.notices)
	}
}

// TestRekeyMismatch: an answer that was not made for this offer gives another
// key; no handshake succeeds, and both ends go back.
func TestRekeyMismatch(t *testing.T) {
	p := established(t)
	p.rekey()
	p.carry(1)
	for _, s := range p.gateway.out {
		if r, ok := s.Packet.Message.(*wire.KeyReply); ok {
			r.Ciphertext = append([]byte(nil), r.Ciphertext...)
			r.Ciphertext[0] ^= 1
		}
	}
	p.carry(-1)
	if n, g := p.node.m.sessions[0], p.gateway.m.sessions[0]; n.ActiveKey().Equal(g.ActiveKey()) {
		t.Fatal("a changed ciphertext gave the same key")
	}
	p.settle()
	p.wantQuiet()
	if p.node.epoch() != 0 {
		t.Errorf("key epoch = %d, want 0", p.node.epoch())
	}
}

// accident is one thing that goes wrong after some messages of a change of keys.
type accident func(p *pair)

var accidents = map[string]accident{
	"cut":             func(p *pair) { p.cut() },
	"node killed":     func(p *pair) { p.cut(); p.node.restart(session.ID{3: 1}) },
	"gateway killed":  func(p *pair) { p.cut(); p.gateway.restart(session.ID{3: 2}) },
	"both killed":     func(p *pair) { p.cut(); p.node.restart(session.ID{3: 1}); p.gateway.restart(session.ID{3: 2}) },
	"new transport":   func(p *pair) { p.connect() },
	"disk at node":    func(p *pair) { p.node.lost = true },
	"disk at gateway": func(p *pair) { p.gateway.lost = true },
}

// TestRekeyAfterAnAccidentAnywhere lets each of two accidents happen after each
// number of messages of a change of keys, whose end is a success or a roll-back.
// At every moment there is a key in common; in the end both ends are quiet.
func TestRekeyAfterAnAccidentAnywhere(t *testing.T) {
	for name, happen := range accidents {
		for n := range 10 {
			for _, good := range []bool{true, false} {
				p := established(t)
				p.rekey()
				for range n {
					p.carry(1)
					p.wantCommonKey()
					if len(p.node.out)+len(p.gateway.out) == 0 && !p.node.m.sessions[0].NextPresharedKey.IsZero() {
						if good {
							p.confirm()
						} else {
							p.unconfirmed()
						}
						p.wantCommonKey()
					}
				}
				happen(p)
				p.wantCommonKey()
				for range 2 { // the second for a disk that failed
					p.carry(-1)
					p.wantCommonKey()
					if p.node.m.State() != session.Established || p.gateway.m.State() != session.Established {
						p.cut()
						p.connect()
						p.carry(-1)
					}
					p.settle()
				}
				p.wantCommonKey()
				if t.Failed() {
					t.Fatalf("%s after %d messages", name, n)
				}
				p.wantQuiet()
			}
		}
	}
}

// TestRekeyGoesOnAfterARestart: what a change needs is on disk at each end.
func TestRekeyGoesOnAfterARestart(t *testing.T) {
	for name, n := range map[string]int{"offered": 0, "answered": 1, "armed": 9} {
		p := established(t)
		p.rekey()
		p.carry(n)
		p.cut()
		p.node.restart(session.ID{3: 1})
		p.gateway.restart(session.ID{3: 2})
		p.connect()
		p.carry(-1)
		if p.node.m.sessions[0].NextPresharedKey.IsZero() {
			t.Fatalf("%s: the restarted node has no key armed", name)
		}
		p.settle()
		p.wantQuiet()
		if p.node.epoch() != 1 {
			t.Errorf("%s: key epoch = %d after the restart of both, want 1", name, p.node.epoch())
		}
	}
}

// TestNextKeyNeedsEverything: each part of an exchange changes the key.
func TestNextKeyNeedsEverything(t *testing.T) {
	id, psk, classic, quantum := session.ID{1}, secret.New([]byte("psk")), []byte("classic"), []byte("quantum")
	fresh := func() *exchange {
		return &exchange{epoch: 7, nodeShare: [32]byte{1}, gatewayShare: [32]byte{2}, encapsulation: []byte{3}, encrypted: []byte{4}}
	}
	want := fresh().next(id, psk, classic, quantum)
	if !fresh().next(id, psk, classic, quantum).Equal(want) {
		t.Fatal("the same exchange gave two keys")
	}
	changed := map[string]secret.Value{
		"session": fresh().next(session.ID{2}, psk, classic, quantum),
		"psk":     fresh().next(id, secret.New([]byte("PSK")), classic, quantum),
		"X25519":  fresh().next(id, psk, []byte("Classic"), quantum),
		"ML-KEM":  fresh().next(id, psk, classic, []byte("Quantum")),
	}
	for name, change := range map[string]func(*exchange){
		"epoch":         func(x *exchange) { x.epoch++ },
		"node's share":  func(x *exchange) { x.nodeShare[0]++ },
		"gateway's":     func(x *exchange) { x.gatewayShare[0]++ },
		"encapsulation": func(x *exchange) { x.encapsulation[0]++ },
		"ciphertext":    func(x *exchange) { x.encrypted[0]++ },
	} {
		x := fresh()
		change(x)
		changed[name] = x.next(id, psk, classic, quantum)
	}
	for name, got := range changed {
		if got.Equal(want) {
			t.Errorf("another %s gives the same key", name)
		}
	}
	if got := fmt.Sprintf("%x", want.Reveal()); got != vectorNextKey {
		t.Errorf("key = %s, want %s", got, vectorNextKey)
	}
}

const vectorNextKey = "ce607e30427cee09ca0f00811a9fe2b96e3759b8a46cad8cdc138ea303e0acd0"

// Rekey situations: the phases of a session's change of keys.
var rekeySituations = []situation{
	{Initiator, "none", 1, 0, rekeyAt(-1)},
	{Initiator, "offered", 1, 0, rekeyAt(1)}, // the gateway has answered
	{Initiator, "armed", 1, 0, rekeyAt(9)},
	{Initiator, "offered-suspended", 0, 0, cutAt(0)},
	{Initiator, "armed-suspended", 0, 0, cutAt(9)},
	{Responder, "none", 1, 0, rekeyAt(0)}, // the node has offered
	{Responder, "armed", 1, 0, rekeyAt(9)},
	{Responder, "armed-suspended", 0, 0, cutAt(9)},
}

// rekeyAt is an established pair whose change of keys is n messages old; -1: none
// was begun.
func rekeyAt(n int) func(*testing.T) *pair {
	return func(t *testing.T) *pair {
		p := established(t)
		if n >= 0 {
			p.rekey()
			p.carry(n)
		}
		return p
	}
}

func cutAt(n int) func(*testing.T) *pair {
	return func(t *testing.T) *pair {
		p := rekeyAt(n)(t)
		p.cut()
		return p
	}
}

const rekeyEvents = "KRQ KRQ-epoch KRQ-share KRQ-key KRQ-refused KRQ-stranger KRP KRP-refused KRP-epoch KRP-share KRP-stranger " +
	"KCN KCN-failed KCN-epoch KCN-stranger rekey confirm unconfirmed lost close"

func rekeyRows() (rows []row) {
	add := func(role Role, situations, events, next, actions string) {
		rows = append(rows, row{role, situations, events, next, actions})
	}
	const (
		acked = "arm:hello save send:ACK@1"
		wrong = "arm:hello arm:hello SessionDown/16 save send:CDN/16@1"
		end   = "arm:hello SessionDown/3 save send:CDN/3@1"
	)
	for _, r := range both {
		all, quiet := "none offered armed", "offered-suspended armed-suspended"
		if r == Responder {
			all, quiet = "none armed", "armed-suspended"
		}
		add(r, all, "KRQ-stranger KRP-stranger KCN-stranger", "", acked)
		add(r, all, "close", "gone", end)
		add(r, quiet, "close", "gone", "SessionDown/3 save")
		add(r, quiet, "KRQ KRQ-epoch KRQ-share KRQ-key KRQ-refused KRQ-stranger KRP KRP-refused KRP-epoch KRP-share KRP-stranger KCN KCN-failed KCN-epoch KCN-stranger rekey lost", "", nothing)
		add(r, all, "lost", "none>none-suspended offered>offered-suspended armed>armed-suspended", lost+" save")
	}
	i := Initiator
	add(i, "none offered armed", "KRQ KRQ-epoch KRQ-share KRQ-key KRQ-refused", "gone", "arm:hello arm:hello SessionDown/16.35 save send:CDN/16.35@1")
	add(i, "none offered armed", "KCN KCN-failed KCN-epoch", "gone", wrong)
	add(i, "none armed", "KRP KRP-refused KRP-epoch KRP-share", "gone", wrong)
	add(i, "none", "rekey", "offered", "save send:KRQ@1")
	add(i, "none offered offered-suspended", "confirm unconfirmed", "", nothing)
	add(i, "offered armed", "rekey", "", nothing)
	add(i, "offered", "KRP", "armed", "arm:hello KeyArmed save send:ACK@1")
	add(i, "offered", "KRP-refused", "none", "arm:hello RekeyFailed/3.6 save send:ACK@1")
	add(i, "offered", "KRP-epoch", "gone", wrong)
	add(i, "offered", "KRP-share", "none", "arm:hello RekeyFailed/2.25 save send:KCN/2.25@1")
	add(i, "armed", "confirm", "none", "SessionRekeyed save send:KCN@1")
	add(i, "armed", "unconfirmed", "none", "RekeyFailed/2.26 save send:KCN/2.26@1")
	add(i, "armed-suspended", "confirm", "none-suspended", "SessionRekeyed save")
	add(i, "armed-suspended", "unconfirmed", "none-suspended", "RekeyFailed/2.26 save")

	g := Responder
	add(g, "none armed armed-suspended", "confirm unconfirmed", "", nothing)
	add(g, "none armed", "rekey", "", nothing)
	add(g, "none armed", "KRP KRP-refused KRP-epoch KRP-share", "gone", wrong)
	add(g, "none", "KRQ", "armed", "arm:hello ask:arm save send:KRP@1")
	add(g, "none", "KRQ-refused", "", "arm:hello ask:arm RekeyFailed/3.6 save send:KRP/3.6@1")
	add(g, "none", "KRQ-epoch", "", "arm:hello RekeyFailed/2.24 save send:KRP/2.24@1")
	add(g, "none", "KRQ-share KRQ-key", "", "arm:hello RekeyFailed/2.25 save send:KRP/2.25@1")
	add(g, "armed", "KRQ KRQ-epoch KRQ-share KRQ-key KRQ-refused", "", "arm:hello RekeyFailed/2.24 save send:KRP/2.24@1")
	add(g, "none", "KCN KCN-failed KCN-epoch", "gone", wrong)
	add(g, "armed", "KCN", "none", "arm:hello SessionRekeyed save send:ACK@1")
	add(g, "armed", "KCN-failed", "none", "arm:hello RekeyFailed/2.26 save send:ACK@1")
	add(g, "armed", "KCN-epoch", "gone", wrong)
	return rows
}

func TestRekeyTableIsWhole(t *testing.T) {
	wholeTable(t, pairsOf(t, rekeyRows()), rekeySituations, rekeyEvents)
}

func TestRekeyTable(t *testing.T) {
	pairs := pairsOf(t, rekeyRows())
	for _, s := range rekeySituations {
		for _, e := range strings.Fields(rekeyEvents) {
			key := fmt.Sprintf("%v %s", s, e)
			if want, ok := pairs[key]; ok { // else TestRekeyTableIsWhole says so
				t.Run(key, func(t *testing.T) { s.tryRekey(t, e, want) })
			}
		}
	}
}

// phase is how far the change of keys of the first session is.
func (s *side) phase() string {
	if len(s.m.sessions) == 0 {
		return "gone"
	}
	phase, first := "none", s.m.sessions[0]
	switch {
	case !first.OfferSecret.IsZero():
		phase = "offered"
	case !first.NextPresharedKey.IsZero():
		phase = "armed"
	}
	if s.m.State() == session.Suspended {
		phase += "-suspended"
	}
	return phase
}

func (s situation) tryRekey(t *testing.T, event string, want row) {
	p := s.build(t)
	under, peer := p.node, p.gateway
	if s.role == Responder {
		under, peer = peer, under
	}
	if got := under.phase(); got != s.name {
		t.Fatalf("it begins in phase %s", got)
	}
	under.trace = nil
	p.happenToKeys(under, peer, event)
	next := want.nextOf(s.name)
	if got := strings.Join(under.trace, " "); got != want.actions || under.phase() != next {
		t.Fatalf("\n got %s, %q\nwant %s, %q", under.phase(), got, next, want.actions)
	}
}

// happenToKeys lets one event happen to the machine under test.
func (p *pair) happenToKeys(under, peer *side, event string) {
	p.t.Helper()
	switch event {
	case "lost":
		under.step(Detached{1, time.Now(), errors.New("reset by peer")})
		return
	case "close", "rekey", "confirm", "unconfirmed":
		p.locally(under, event)
		return
	}
	name, variant, _ := strings.Cut(event, "-")
	q := p.owed(peer, 1, name)
	if q == nil {
		s := *under.m.sessions[0]
		q = &wire.Packet{ConnID: under.m.rec.LocalID, Message: aboutSession(p.t, name, s)}
	}
	q.Ns, q.Nr = under.m.rec.Nr, under.m.rec.Ns
	p.spoil(under, q.Message, variant)
	under.step(Received{1, q})
	under.unarmed = nil
}

// spoil makes the variant of a message.
func (p *pair) spoil(under *side, msg wire.Message, variant string) {
	refused := &wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseRevoked}
	switch m := msg.(type) {
	case *wire.KeyRequest:
		switch variant {
		case "epoch":
			m.KeyEpoch++
		case "share":
			m.KeyShare = [32]byte{}
		case "key": // coefficients beyond the modulus
			m.EncapsulationKey = []byte(strings.Repeat("\xff", mlkem.EncapsulationKeySize768))
		case "refused":
			under.unarmed = refused
		case "stranger":
			m.LocalID, m.RemoteID = 5, 6
		}
	case *wire.KeyReply:
		switch variant {
		case "epoch":
			m.KeyEpoch++
		case "share": // of low order
			m.KeyShare = [32]byte{1}
		case "refused":
			m.KeyShare, m.Ciphertext, m.Result = [32]byte{}, nil, refused
		case "stranger":
			m.LocalID, m.RemoteID = 5, 6
		}
	case *wire.KeyChanged:
		switch variant {
		case "epoch":
			m.KeyEpoch++
		case "failed":
			m.Result = &wire.Result{Code: wire.CDNError, Error: wire.ErrorVendor, Cause: wire.CauseUnconfirmed}
		case "stranger":
			m.LocalID, m.RemoteID = 5, 6
		}
	}
}
