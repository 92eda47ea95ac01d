package control

import (
	"errors"
	"testing"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// refusal is the last StopCCN a side has sent.
func (s *side) refusal() wire.Result {
	s.t.Helper()
	for i := len(s.out) - 1; i >= 0; i-- {
		if m, ok := s.out[i].Packet.Message.(*wire.StopCCN); ok {
			return m.Result
		}
	}
	s.t.Fatalf("%s sent no StopCCN: %v", s.name, s.trace)
	return wire.Result{}
}

// TestNumbersWrap carries more messages than there are numbers, both ways, with
// cuts on the way.
func TestNumbersWrap(t *testing.T) {
	p := established(t)
	for _, s := range []*side{p.node, p.gateway} {
		s.m.rec.Ns += 65530
		s.m.rec.Nr += 65530
	}
	for i := range 20 {
		p.gateway.step(news(p.gateway.m.sessions[0].LocalID))
		p.node.step(RenewCertificate{session.NewID(), []byte("csr")})
		if i%3 == 0 {
			p.carry(i % 4)
			p.cut()
			p.connect()
		}
		p.carry(-1)
		p.wantUp()
	}
	if ns := p.node.m.rec.Ns; ns > 100 {
		t.Errorf("Ns = %d, want it to have wrapped", ns)
	}
	if got := p.gateway.said("SessionDown") + p.node.said("SessionDown"); got != 0 {
		t.Errorf("%d sessions ended", got)
	}
}

// TestManyWaitForAResume leaves more messages unacknowledged than a window.
func TestManyWaitForAResume(t *testing.T) {
	p := established(t)
	p.cut()
	for range 300 {
		p.gateway.step(news(p.gateway.m.sessions[0].LocalID))
	}
	if got := p.gateway.m.Pending(); got != 1 {
		t.Errorf("%d messages wait for a resume, want the newest only", got)
	}
	p.connect()
	p.carry(-1)
	p.wantUp()
	if got := p.node.m.sessions[0].Lifetime; got.Idle != time.Minute || p.node.said("LifetimeChanged") != 1 {
		t.Errorf("lifetime = %+v, notices %v", got, p.node.notices)
	}
}

// TestSentChangeIsNotSuperseded: what the peer may have is not changed behind
// its back; what follows takes a number of its own.
func TestSentChangeIsNotSuperseded(t *testing.T) {
	p := established(t)
	id := p.gateway.m.sessions[0].LocalID
	p.gateway.step(news(id))
	p.carry(1) // it arrives, its acknowledgement does not
	p.cut()
	want := wire.Lifetime{Reauth: time.Hour}
	p.gateway.step(ChangeLifetime{LocalID: id, Lifetime: want})
	p.connect()
	p.carry(-1)
	p.wantUp()
	if got := p.node.m.sessions[0].Lifetime; got != want {
		t.Errorf("lifetime = %+v, want %+v", got, want)
	}
}

// TestPeerThatAcknowledgesNothing: what is kept for it has a bound.
func TestPeerThatAcknowledgesNothing(t *testing.T) {
	p := established(t)
	g := p.gateway
	stale := g.m.rec.Ns
	for i := 0; g.m.State() == session.Established; i++ {
		if i > 2*maxUnacked {
			t.Fatalf("%d messages are kept for a peer that acknowledges nothing", g.m.Pending())
		}
		g.step(Received{1, &wire.Packet{ConnID: g.m.rec.LocalID, Ns: g.m.rec.Nr, Nr: stale, Message: &wire.ICRQ{LocalID: 1, PWType: 5}}})
	}
	if r := g.refusal(); r.Code != wire.StopError || r.Error != wire.ErrorResources {
		t.Errorf("it was stopped with %+v", r)
	}
}

func TestTakeOverOfAHalfDeadAttempt(t *testing.T) {
	for n := range 4 { // so far the first attempt came
		p := established(t)
		p.cut()
		dead := p.connect()
		p.carry(n)
		p.node.out, p.gateway.out = nil, nil
		p.node.step(Detached{dead, time.Now(), errors.New("cut")}) // the gateway does not know
		p.node.out = nil
		p.connect()
		p.carry(-1)
		p.wantUp()
		if !p.gateway.dropped[dead] {
			t.Errorf("after %d messages: the dead attempt was not dropped", n)
		}
	}
}

func TestAttemptThatIsNotHigher(t *testing.T) {
	for _, less := range []uint64{0, 1} {
		p := established(t)
		for range 2 {
			p.cut()
			p.connect()
			p.carry(1) // the gateway believes the attempt, the answer is lost
		}
		p.cut()
		p.node.m.rec.Attempt = p.gateway.m.rec.Attempt - less - 1
		p.connect()
		p.carry(1)
		if got := p.gateway.refusal().Cause; got != wire.CauseClonedState || p.gateway.said("Cloned") != 1 {
			t.Errorf("attempt %d after %d: cause %d, notices %v, want cause %d and Cloned",
				p.node.m.rec.Attempt, p.gateway.m.rec.Attempt, got, p.gateway.notices, wire.CauseClonedState)
		}
		if p.gateway.m.State() != session.Suspended {
			t.Errorf("the gateway's connection is %v, want suspended as it was", p.gateway.m.State())
		}
	}
}

// TestWrongProofs alters a good SCCRQ, or where it comes from, in one place.
func TestWrongProofs(t *testing.T) {
	tests := []struct {
		name  string
		alter func(*wire.SCCRQ, *Binding)
		want  wire.Cause
	}{
		{"MAC", func(q *wire.SCCRQ, _ *Binding) { q.Proof.MAC[31] ^= 1 }, wire.CauseResumeProof},
		{"attempt", func(q *wire.SCCRQ, _ *Binding) { q.Proof.Attempt++ }, wire.CauseResumeProof},
		{"generation ahead", func(q *wire.SCCRQ, _ *Binding) { q.Proof.Generation++ }, wire.CauseResumeProof},
		{"generation far ahead", func(q *wire.SCCRQ, _ *Binding) { q.Proof.Generation += 1 << 40 }, wire.CauseResumeProof},
		{"generation behind", func(q *wire.SCCRQ, _ *Binding) { q.Proof.Generation-- }, wire.CauseClonedState},
		{"cursor Ns", func(q *wire.SCCRQ, _ *Binding) { q.Cursor.Ns++ }, wire.CauseResumeProof},
		{"cursor Nr", func(q *wire.SCCRQ, _ *Binding) { q.Cursor.Nr-- }, wire.CauseResumeProof},
		{"boot id", func(q *wire.SCCRQ, _ *Binding) { q.RecoveryBootID[3] ^= 1 }, wire.CauseResumeProof},
		{"our id", func(q *wire.SCCRQ, _ *Binding) { q.Recovery.RemoteID++ }, wire.CauseUnknownResume},
		{"its id", func(q *wire.SCCRQ, _ *Binding) { q.Recovery.LocalID++ }, wire.CauseUnknownResume},
		{"assigned id", func(q *wire.SCCRQ, _ *Binding) { q.AssignedID++ }, wire.CauseUnknownResume},
		{"another node", func(_ *wire.SCCRQ, b *Binding) { b.PeerID[0] ^= 1 }, wire.CauseUnknownResume},
		{"another certificate", func(_ *wire.SCCRQ, b *Binding) { b.PeerKey[0] ^= 1 }, wire.CauseResumeProof},
		{"another gateway", func(_ *wire.SCCRQ, b *Binding) { b.OwnID[0] ^= 1 }, wire.CauseResumeProof},
		{"another gateway certificate", func(_ *wire.SCCRQ, b *Binding) { b.OwnKey[0] ^= 1 }, wire.CauseResumeProof},
		{"another transport", func(_ *wire.SCCRQ, b *Binding) { b.Export = exporter(99) }, wire.CauseResumeProof},
		{"no proof", func(q *wire.SCCRQ, _ *Binding) { q.Proof = nil }, wire.CauseResumeProof},
		{"no cursor", func(q *wire.SCCRQ, _ *Binding) { q.Cursor = nil }, wire.CauseResumeProof},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := established(t)
			p.cut()
			p.connect()
			p.carry(-1) // a generation that can be behind
			p.cut()
			before := p.gateway.m.Record()
			p.transport++
			p.node.step(Attached{p.transport, p.binding(p.node, p.transport), false})
			request := p.node.out[0].Packet
			q := *request.Message.(*wire.SCCRQ)
			proof, cursor, recovery := *q.Proof, *q.Cursor, *q.Recovery
			q.Proof, q.Cursor, q.Recovery = &proof, &cursor, &recovery
			b := p.binding(p.gateway, p.transport)
			tt.alter(&q, &b)
			p.gateway.step(Attached{p.transport, b, false})
			p.gateway.step(Received{p.transport, &wire.Packet{Message: &q}})
			if got := p.gateway.refusal().Cause; got != tt.want {
				t.Errorf("cause = %d, want %d", got, tt.want)
			}
			after := p.gateway.m.Record()
			if p.gateway.m.State() != session.Suspended || after.Attempt != before.Attempt || after.Generation != before.Generation {
				t.Errorf("a proof that does not hold changed the gateway's record")
			}
			if tt.name != "another node" { // the node itself still gets in
				p.gateway.out, p.node.out = nil, nil
				p.connect()
				p.carry(-1)
				p.wantUp()
			}
		})
	}
}

// TestGatewaysProof: the node goes on only with the end that knew the key.
func TestGatewaysProof(t *testing.T) {
	alter := map[string]func(*wire.SCCRP){
		"MAC":         func(r *wire.SCCRP) { r.Proof.MAC[0] ^= 1 },
		"attempt":     func(r *wire.SCCRP) { r.Proof.Attempt++ },
		"generation":  func(r *wire.SCCRP) { r.Proof.Generation++ },
		"boot id":     func(r *wire.SCCRP) { r.Profile.BootID[0] ^= 1 },
		"cursor":      func(r *wire.SCCRP) { r.Cursor.Nr++ },
		"assigned id": func(r *wire.SCCRP) { r.AssignedID++ },
		"no proof":    func(r *wire.SCCRP) { r.Proof, r.Cursor = nil, nil },
	}
	for name, alter := range alter {
		t.Run(name, func(t *testing.T) {
			p := established(t)
			p.cut()
			p.connect()
			p.carry(1)
			alter(p.gateway.out[0].Packet.Message.(*wire.SCCRP))
			p.carry(1)
			if got := p.node.refusal(); got.Code != wire.StopNotAuthorized || p.node.m.State() != session.Suspended {
				t.Errorf("the node answers %+v and is %v, want suspended as it was", got, p.node.m.State())
			}
			p.node.out, p.gateway.out = nil, nil
			p.connect()
			p.carry(-1)
			p.wantUp()
		})
	}
}

// TestRefusedResume: what becomes of the connection is for the cause to say.
func TestRefusedResume(t *testing.T) {
	for cause := wire.CauseNone; cause <= wire.CauseReplaced+1; cause++ {
		p := established(t)
		p.cut()
		p.gateway.deny = &wire.Result{Code: wire.StopNotAuthorized, Cause: cause}
		p.connect()
		p.carry(-1)
		want := session.Closed
		if cause.Advice() == wire.RetryLater {
			want = session.Suspended
		}
		if got := p.node.m.State(); got != want || p.node.said("SessionDown") != map[session.State]int{session.Closed: 1}[want] {
			t.Errorf("refused with cause %d: the node is %v, notices %v, want %v", cause, got, p.node.notices, want)
		}
	}
}

// TestLostAnswersLockNobodyOut loses SCCRP, or SCCCN, several times in a row,
// with a restart of either end in between.
func TestLostAnswersLockNobodyOut(t *testing.T) {
	for _, lose := range []int{1, 2} { // messages carried: SCCRP, SCCCN is lost
		for _, restart := range []string{"nobody", "node", "gateway", "both"} {
			p := established(t)
			p.cut()
			for i := range 3 {
				p.connect()
				p.carry(lose)
				p.cut()
				if restart == "node" || restart == "both" {
					p.node.restart(session.ID{3: byte(i + 1)})
				}
				if restart == "gateway" || restart == "both" {
					p.gateway.restart(session.ID{4: byte(i + 1)})
				}
			}
			p.connect()
			p.carry(-1)
			p.wantUp()
		}
	}
}

// TestOldKeyIsWorthNothing: whoever copied the node's state before a resume
// cannot come in with it afterwards, whatever attempt he claims.
func TestOldKeyIsWorthNothing(t *testing.T) {
	p := established(t)
	p.cut()
	copied := p.node.saved
	old := copied.ResumeKey
	p.connect()
	p.carry(-1)
	if p.node.m.rec.ResumeKey.Equal(old) || p.gateway.m.rec.ResumeKey.Equal(old) || !p.gateway.m.rec.ResumeKey.Equal(p.node.m.rec.ResumeKey) {
		t.Error("the resume key did not change, or not alike at both ends")
	}
	p.cut()
	copied.Attempt = 1 << 40
	p.node.saved = copied
	p.node.restart(nodeBoot)
	p.connect()
	p.carry(1)
	if got := p.gateway.refusal().Cause; got != wire.CauseClonedState {
		t.Errorf("cause = %d, want %d", got, wire.CauseClonedState)
	}
}

// TestSilentRemoval: a session known at one end only goes without a CDN.
func TestSilentRemoval(t *testing.T) {
	for _, who := range []string{"node", "gateway"} {
		p := established(t)
		p.cut()
		knows, forgot := p.node, p.gateway
		if who == "gateway" {
			knows, forgot = p.gateway, p.node
		}
		forgot.m.sessions = nil
		p.connect()
		knows.trace = nil
		p.carry(-1)
		for _, a := range knows.trace {
			if a == "send:CDN/1.9@2" {
				t.Errorf("%s sent a CDN", who)
			}
		}
		if len(knows.m.Sessions()) != 0 || knows.said("SessionDown") != 1 || forgot.said("SessionDown") != 0 {
			t.Errorf("known at the %s only: sessions %v, notices %v", who, knows.m.Sessions(), knows.notices)
		}
	}
}

// TestResumeWhileTalking: both ends go on over the old transport between SCCRQ
// and SCCCN, so that the cursors of the set-up are behind when they are read.
func TestResumeWhileTalking(t *testing.T) {
	for _, when := range []string{"before SCCRQ is read", "before SCCRP is read"} {
		p := established(t)
		p.connect()
		request := p.node.out
		p.node.out = nil
		talk := func() {
			held := p.gateway.out
			p.gateway.out = nil
			p.gateway.step(news(p.gateway.m.sessions[0].LocalID))
			p.node.step(RenewCertificate{session.NewID(), []byte("csr")})
			p.carry(-1)
			p.gateway.out = held
		}
		if when == "before SCCRQ is read" {
			talk()
		}
		p.node.out = request
		p.carry(1)
		if when == "before SCCRP is read" {
			talk()
		}
		p.carry(-1)
		p.wantUp()
		if p.node.said("Resumed") != 1 || p.node.said("LifetimeChanged") != 1 || p.node.said("CertificateRenewed") != 1 {
			t.Errorf("talk %s: notices %v", when, p.node.notices)
		}
	}
}

// TestNoticesOutliveAFailedSave: what has happened to the machine is told, though
// the peer hears nothing of it before it is on disk.
func TestNoticesOutliveAFailedSave(t *testing.T) {
	p := newPair(t)
	p.connect()
	p.carry(-1)
	p.open()
	p.carry(1) // ICRQ; ICRP waits
	p.node.lost = true
	p.carry(1)
	if p.node.m.State() == session.Established {
		t.Fatal("the save did not fail")
	}
	if p.node.said("SessionUp") != 1 {
		t.Errorf("notices of the node: %v, want SessionUp", p.node.notices)
	}
	p.cut()
	p.connect()
	p.carry(-1)
	p.wantUp()
}

// TestLossKnowsItsTime: the grace is counted from when the transport was lost,
// also across a restart, whoever gave it up.
func TestLossKnowsItsTime(t *testing.T) {
	p := established(t)
	p.node.step(Received{1, &wire.Packet{ConnID: p.node.m.rec.LocalID, Ns: p.node.m.rec.Nr + 1, Nr: p.node.m.rec.Ns, Message: &wire.SCCCN{}}})
	at := time.Now()
	p.node.step(Detached{1, at, errors.New("dropped")})
	if p.node.m.State() != session.Suspended || !p.node.saved.SuspendedAt.Equal(at) {
		t.Errorf("suspended at %v, want %v", p.node.saved.SuspendedAt, at)
	}
}

// TestTimersLeftOut: a gateway may leave its timers out, which means ours.
func TestTimersLeftOut(t *testing.T) {
	p := newPair(t)
	p.connect()
	p.carry(-1)
	p.open()
	for p.node.said("SessionUp") == 0 {
		for _, s := range p.gateway.out {
			if r, ok := s.Packet.Message.(*wire.ICRP); ok {
				r.Timers = wire.Timers{}
			}
		}
		p.carry(1)
	}
	if got := p.node.m.Timers(); got != DefaultTimers {
		t.Errorf("timers = %+v, want %+v", got, DefaultTimers)
	}
}

// TestInUse: a transport is in use when the peer has said something on it that is
// no part of its set-up.
func TestInUse(t *testing.T) {
	p := established(t)
	if !p.node.m.InUse() || !p.gateway.m.InUse() {
		t.Error("an established connection's transport is not in use")
	}
	p.connect()
	p.carry(2) // SCCRQ, SCCRP
	if p.node.m.State() != session.Established || p.node.m.InUse() {
		t.Errorf("with SCCCN under way the node is %v and calls the new transport in use: %v", p.node.m.State(), p.node.m.InUse())
	}
	p.carry(-1)
	if !p.node.m.InUse() || !p.gateway.m.InUse() {
		t.Error("a transport that has taken over is not in use")
	}
}
