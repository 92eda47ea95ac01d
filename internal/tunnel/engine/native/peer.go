package native

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/meter"
	"tunneld/internal/tunnel/engine/noise"
	"tunneld/internal/tunnel/engine/udp"
)

const (
	// maxStaged is how many packets of one session may wait for a handshake,
	// which gives them a key or proves where the peer is.
	maxStaged = 128
	// stagedTime is how long they may: two tries. Then they are of no use to
	// anybody, and others need the room.
	stagedTime = 2 * noise.RekeyTimeout
	// maxStagedOctets bounds what waits in all sessions together.
	maxStagedOctets = 16 << 20
	// amplification is how many octets an address that has proved nothing gets
	// for each that came from it (as RFC 9000, section 8.1).
	amplification = 3
	// proofInterval is how soon we ask such an address for a proof again. It
	// doubles each time, since an initiation is no small packet either.
	proofInterval = time.Second
	// maxProofs is how often: for a minute.
	maxProofs = 7
)

// A peer is one session. The data path uses what is atomic.
type peer struct {
	d   *Device
	id  session.ID
	key engine.PublicKey

	meter    meter.Meter
	current  atomic.Pointer[noise.Keypair]
	endpoint atomic.Pointer[udp.Endpoint]
	timers   noise.Timers
	standsAt atomic.Int64 // when the agenda looks at this peer; 0: it does not
	asks     atomic.Bool  // a handshake is to be started at the next look
	doubted  atomic.Bool  // endpoint has not proved that the peer is there: budget counts
	budget   atomic.Int64 // octets that may be sent there until it has
	proof    atomic.Bool  // a proof is to be asked for at the next look

	lastHandshake atomic.Pointer[time.Time] // nil: there was none

	mu          sync.Mutex // the handshake lock: guards everything below
	removed     bool
	protocol    *noise.Peer
	ring        noise.Keypairs
	handshake   *noise.Handshake // ours, in flight; nil: none
	psk         secret.Value
	formerPSK   secret.Value  // the one before
	formerUntil noise.Instant // answers under it are taken until then
	responder   bool
	parked      *udp.Endpoint  // where UDP leads, while endpoint is a carrier
	parkedDoubt bool           // and whether that was doubted
	dialled     netip.AddrPort // we chose this address: routes choose the source; zero: none
	answered    netip.AddrPort // where the last response went
	proofAt     noise.Instant  // when a proof was asked for last
	proofs      int            // how often, in vain
	keepalive   time.Duration
	staged      [][]byte
	stagedUntil noise.Instant

	prefixes []netip.Prefix // guarded by the device's mu
}

// shut reports whether p is closed or over: then it has no handshakes.
func (p *peer) shut(t noise.Instant) bool { return p.meter.Shut(int64(t)) }

// tell says what happened to p.
func (p *peer) tell(e engine.Event) {
	e.Session = p.id
	if e.At.IsZero() {
		e.At = time.Now()
	}
	p.d.engine.events.Tell(e)
}

// want asks for a handshake, for the data path: it may cost an X25519.
func (p *peer) want(t noise.Instant) {
	send, wake := p.timers.Want(t, false)
	if send {
		p.asks.Store(true)
		wake = t
	}
	p.d.engine.agenda.at(p, wake)
}

// due does what is due at t. The agenda calls it.
func (p *peer) due(t noise.Instant) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.removed {
		return
	}
	do, wake := p.timers.Expire(t)
	p.d.engine.agenda.at(p, wake)
	if do&noise.WipeKeys != 0 {
		p.clearLocked()
	}
	if do&noise.NoAnswer != 0 {
		p.abandonLocked()
		p.unstageLocked()
		p.tell(engine.Event{Kind: engine.NoAnswer})
	}
	if do&noise.SendInitiation != 0 {
		if e := p.endpoint.Load(); e != nil {
			e.ClearSource() // it may be the cause of the trouble
		}
	}
	if p.asks.Swap(false) || do&noise.SendInitiation != 0 {
		p.initiateLocked(t)
	}
	if p.proof.Load() {
		p.askForProofLocked(t)
	}
	switch {
	case len(p.staged) == 0:
	case t >= p.stagedUntil:
		p.unstageLocked()
	default:
		p.d.engine.agenda.at(p, p.stagedUntil)
	}
	if do&noise.SendKeepalive != 0 {
		p.keepaliveLocked(t)
	}
}

// askForProofLocked starts a handshake with the address that the peer seems to
// be at, whoever starts them otherwise: an answer shows that the peer is there.
// It goes on as long as packets wait for it, for a minute.
func (p *peer) askForProofLocked(t noise.Instant) {
	if !p.doubted.Load() || len(p.staged) == 0 || p.proofs == maxProofs {
		p.proof.Store(false)
		p.proofs = 0
		return
	}
	if t >= p.nextProofLocked() {
		p.proofAt = t
		p.proofs++
		p.initiateLocked(t)
	}
	p.d.engine.agenda.at(p, p.nextProofLocked())
}

// nextProofLocked is when a proof may be asked for again.
func (p *peer) nextProofLocked() noise.Instant {
	return p.proofAt.Add(proofInterval << max(0, p.proofs-1))
}

// startLocked begins a handshake now if the protocol allows it, else as soon
// as it does.
func (p *peer) startLocked(t noise.Instant, urgent bool) {
	send, wake := p.timers.Want(t, urgent)
	p.d.engine.agenda.at(p, wake)
	if send {
		p.initiateLocked(t)
	}
}

// initiateLocked sends an initiation; the one before it is forgotten.
func (p *peer) initiateLocked(t noise.Instant) {
	e := p.d.engine
	p.d.keyMu.RLock()
	defer p.d.keyMu.RUnlock()
	k, to := p.d.key.Load(), p.endpoint.Load()
	if k == nil || to == nil || p.shut(t) { // the timers try again
		return
	}
	p.abandonLocked()
	entry, err := e.table.take(p)
	if err != nil {
		e.complain("handshake", err)
		return
	}
	var b [noise.InitiationSize]byte
	message, handshake, err := k.CreateInitiation(b[:0], p.protocol, entry.index, t, time.Now())
	if err != nil {
		e.table.drop(entry)
		e.complain("handshake", err)
		return
	}
	p.handshake = handshake
	e.sendMessage(to, message)
}

// abandonLocked forgets an initiation in flight.
func (p *peer) abandonLocked() {
	if p.handshake != nil {
		p.d.engine.table.drop(p.d.engine.table.find(p.handshake.Index()))
		p.handshake.Wipe()
		p.handshake = nil
	}
}

// sendMessage sends one datagram, outside of any batch.
func (e *Engine) sendMessage(to *udp.Endpoint, message []byte) {
	e.control.Lock()
	defer e.control.Unlock()
	s := e.control.sender
	s.commit(to, copy(s.room(len(message)), message), 0, nil)
	s.flush()
}

// keepaliveLocked sends an empty packet, or asks for a handshake where there
// is no key to seal it with.
func (p *peer) keepaliveLocked(t noise.Instant) {
	pair, to := p.ring.Current, p.endpoint.Load()
	switch {
	case p.shut(t):
		return
	case pair == nil || !pair.MaySend(t):
		p.startLocked(t, false)
		return
	}
	counter, ok := pair.NextCounters(1)
	if !ok || to == nil {
		return
	}
	var b [noise.KeepaliveSize]byte
	if message := pair.Seal(b[:0], counter, nil, 0); p.afford(len(message), t) {
		p.d.engine.sendMessage(to, message)
	}
	p.d.engine.agenda.at(p, p.timers.KeepaliveSent(t))
	if pair.RekeyOnSend(t) { // else an idle session would have no key for a while, and its peer may not start
		p.startLocked(t, false)
	}
}

// afford reports whether n octets may be sent to the endpoint now.
func (p *peer) afford(n int, t noise.Instant) bool {
	if !p.doubted.Load() || p.budget.Add(-int64(n)) >= 0 {
		return true
	}
	p.budget.Add(int64(n))
	if !p.proof.Swap(true) {
		p.d.engine.agenda.at(p, t)
	}
	return false
}

// installLocked makes pair the one that is sent with from now on, once what
// has waited for it is on its way.
func (p *peer) installLocked(t noise.Instant) {
	if pair := p.ring.Current; pair != nil && len(p.staged) > 0 {
		p.flushStagedLocked(pair, t)
	}
	p.publishLocked()
}

// publishLocked shows the data path the current keypair.
func (p *peer) publishLocked() {
	p.keepPlaceLocked()
	p.current.Store(p.ring.Current)
}

// buryLocked wipes keypairs that have left the ring, and frees their indices.
func (p *peer) buryLocked(pairs ...*noise.Keypair) {
	for _, pair := range pairs {
		if pair != nil {
			p.d.engine.table.drop(p.d.engine.table.find(pair.Local))
			pair.Retire()
		}
	}
}

// clearLocked ends all keypairs and the handshake in flight.
func (p *peer) clearLocked() {
	p.abandonLocked()
	dropped := p.ring.Clear()
	p.publishLocked()
	p.buryLocked(dropped[:]...)
}

// completeLocked notes that a handshake has ended well.
func (p *peer) completeLocked(t noise.Instant) {
	done := time.Now()
	p.lastHandshake.Store(&done)
	p.d.engine.agenda.at(p, p.timers.Complete(t))
	p.tell(engine.Event{Kind: engine.HandshakeDone, At: done})
}

// confirm is called with the first packets that were opened with the pair of
// e, a handshake that the peer started; from is where they came from.
func (p *peer) confirm(e *entry, pair *noise.Keypair, from *udp.Endpoint, t noise.Instant) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.d.key.Load()
	if p.removed || k == nil || p.ring.Next != pair {
		e.fresh.Store(false)
		return
	}
	dropped, promoted := p.ring.Confirmed(pair, t, k.Wins(noise.PublicKey(p.key)))
	if promoted {
		e.fresh.Store(false)
		p.abandonLocked()
		p.completeLocked(t)
		p.moveLocked(from, 0, from.Dst == p.answered) // there our response was seen
		p.installLocked(t)
	}
	p.buryLocked(dropped[:]...)
}

// stage keeps a packet until there is a key and an endpoint. It returns a pair
// and where to instead if both are there meanwhile.
func (p *peer) stage(packet []byte, t noise.Instant) (*noise.Keypair, *udp.Endpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pair, to := p.ring.Current, p.endpoint.Load(); pair != nil && to != nil && pair.MaySend(t) && pair.Hold() {
		return pair, to
	}
	p.want(t) // under the lock: a handshake that has ended meanwhile needs no other
	p.stageLocked(packet, t)
	return nil, nil
}

// stageUnproved keeps a packet until the peer's address has proved itself.
func (p *peer) stageUnproved(packet []byte, t noise.Instant) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stageLocked(packet, t)
}

// stageLocked keeps a packet, if need be in the place of the oldest.
func (p *peer) stageLocked(packet []byte, t noise.Instant) {
	e := p.d.engine
	if p.removed || e.stagedOctets.Load() > maxStagedOctets {
		p.meter.Drop(meter.Tx, engine.CauseNoKey, 1)
		return
	}
	if len(p.staged) == 0 {
		p.stagedUntil = t.Add(stagedTime)
		e.agenda.at(p, p.stagedUntil)
	}
	if len(p.staged) == maxStaged {
		e.stagedOctets.Add(-int64(len(p.staged[0])))
		p.staged = append(p.staged[:0], p.staged[1:]...)
		p.meter.Drop(meter.Tx, engine.CauseNoKey, 1)
	}
	p.staged = append(p.staged, append([]byte(nil), packet...))
	e.stagedOctets.Add(int64(len(packet)))
}

// unstageLocked drops what waits.
func (p *peer) unstageLocked() {
	for _, packet := range p.staged {
		p.d.engine.stagedOctets.Add(-int64(len(packet)))
	}
	p.meter.Drop(meter.Tx, engine.CauseNoKey, uint64(len(p.staged)))
	p.staged = nil
}

// flushStagedLocked sends what waits with pair.
func (p *peer) flushStagedLocked(pair *noise.Keypair, t noise.Instant) {
	to, e := p.endpoint.Load(), p.d.engine
	if to == nil || !pair.MaySend(t) {
		return
	}
	e.control.Lock()
	defer e.control.Unlock()
	s := e.control.sender
	for _, packet := range p.staged {
		e.stagedOctets.Add(-int64(len(packet)))
		counter, ok := pair.NextCounters(1)
		if !ok || !p.afford(noise.SealedSize(len(packet), p.d.mtu), t) {
			p.meter.Drop(meter.Tx, engine.CauseNoKey, 1)
			continue
		}
		room := s.room(noise.SealedSize(len(packet), p.d.mtu))
		s.commit(to, len(pair.Seal(room[:0], counter, packet, p.d.mtu)), innerECN(packet), &p.meter)
	}
	s.flush()
	p.staged = nil
	e.agenda.at(p, p.timers.DataSent(t))
}

// goesToLocked sets the endpoint because the control plane says so.
func (p *peer) goesToLocked(addr netip.AddrPort) {
	addr = udp.Canonical(addr)
	p.dialled = netip.AddrPort{}
	if !p.responder {
		p.dialled = addr
	}
	to := udp.NewRouted(addr)
	if p.responder {
		to = udp.NewEndpoint(addr, udp.Source{}, 0)
	}
	if at := p.endpoint.Load(); at != nil && at.Carrier != nil {
		p.parked, p.parkedDoubt = to, false
		return
	}
	p.doubted.Store(false)
	p.endpoint.Store(to)
	p.keepPlaceLocked()
}

// arrivedLocked goes on with what waited for an endpoint, if there was none.
func (p *peer) arrivedLocked(nowhere bool, t noise.Instant) {
	switch {
	case !nowhere:
	case p.ring.Current != nil:
		p.installLocked(t)
	case len(p.staged) > 0:
		p.startLocked(t, true)
	}
}

// heard is called for packets that opened: the peer is at from. octets is what
// came from there; newest, whether a packet among them is newer than all
// before: a late one must not move the peer back. Nothing that is heard leads to
// a carrier or away from one; the control plane does.
func (p *peer) heard(from *udp.Endpoint, octets int, newest bool) {
	at := p.endpoint.Load()
	if from.Carrier != nil || at != nil && at.Carrier != nil {
		return
	}
	if at != nil && at.Covers(from) {
		if p.doubted.Load() {
			p.budget.Add(amplification * int64(octets))
		}
	} else if newest || at == nil {
		p.mu.Lock()
		p.moveLocked(from, octets, false)
		p.mu.Unlock()
	}
}

// moveLocked sets the endpoint to where a packet came from. An address that
// we did not choose, and that has not proved that the peer is there, is sent
// little until it has: else anybody who has a key could aim his download at a
// victim.
func (p *peer) moveLocked(from *udp.Endpoint, octets int, proved bool) {
	at := p.endpoint.Load()
	if from.Carrier != nil || at != nil && at.Carrier != nil {
		return
	}
	switch {
	case proved || from.Dst == p.dialled:
		p.doubted.Store(false)
	case at == nil || at.Dst != from.Dst:
		p.budget.Store(amplification * int64(octets))
		p.doubted.Store(true)
	}
	if at == nil || at.Dst != from.Dst {
		p.tell(engine.Event{Kind: engine.EndpointMoved, Endpoint: from.Dst})
	}
	if from.Dst == p.dialled {
		from = udp.NewRouted(from.Dst)
	}
	p.endpoint.Store(from)
	p.keepPlaceLocked()
}
