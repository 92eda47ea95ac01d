package native

import (
	"hash/maphash"
	"sync/atomic"
	"time"

	"tunneld/internal/tunnel/engine/noise"
	"tunneld/internal/tunnel/engine/udp"
)

const (
	// greeterQueue is how many handshake messages may wait. With an eighth of
	// it full, initiations have to prove their source (WireGuard paper,
	// section 5.3).
	greeterQueue = 1024
	// greeterShare is how many of them may be initiations of one source: a flood
	// from one address leaves room for everybody else.
	greeterShare = greeterQueue / 4
	// greeterShares is how many sources are told apart.
	greeterShares = 1024
	// greeterRate is how many initiations a second are answered before they have
	// to prove their source, too, however short the queue: else one address could
	// keep a processor busy with what that answers in time. A thousand take a
	// fifth of one.
	greeterRate = 1000
	// underLoadTime is how long that goes on after it was last so.
	underLoadTime = time.Second
	// limitedSources is for how many sources the rate is remembered.
	limitedSources = 1 << 14
)

// A greeter answers handshake messages, one after the other, in a goroutine of
// its own, so that a flood of them costs the threads that move packets no more
// than the check of mac1. What the queue has no room for is lost, and so is what
// is over the share of one source.
type greeter struct {
	e       *Engine
	queue   chan greeting // initiations
	answers chan greeting // to handshakes of ours: a stranger does not know their indices
	done    chan struct{}
	seed    maphash.Seed
	shares  [greeterShares]atomic.Int32 // how many initiations wait, by a hash of their source
	cookies *noise.CookieChecker
	limiter *noise.RateLimiter
	rated   noise.Instant // when what was answered has been had at greeterRate
	load    noise.Instant // when there was much to do last
}

// A greeting is a handshake message whose mac1 is d's, or a cookie reply.
type greeting struct {
	d     *Device
	from  *udp.Endpoint
	share *atomic.Int32 // of the source of an initiation
	kind  noise.Kind
	n     int
	data  [noise.InitiationSize]byte
}

func newGreeter(e *Engine) *greeter {
	return &greeter{
		e: e, queue: make(chan greeting, greeterQueue), answers: make(chan greeting, greeterQueue), done: make(chan struct{}),
		seed: maphash.MakeSeed(), cookies: noise.NewCookieChecker(), limiter: noise.NewRateLimiter(limitedSources),
	}
}

func (g *greeter) stop() { close(g.done) }

// take queues a handshake message that came from the given place, if it has
// the form and the mac1 of one for a device of ours. It does not wait.
func (g *greeter) take(kind noise.Kind, b []byte, from *udp.Endpoint) {
	d := g.device(kind, b)
	if d == nil {
		g.e.counts.unknown.Add(1)
		return
	}
	m := greeting{d: d, from: from, kind: kind}
	m.n = copy(m.data[:], b)
	queue := g.answers
	if kind == noise.KindInitiation {
		queue, m.share = g.queue, g.shareOf(from)
		if m.share.Add(1) > greeterShare {
			g.lose(&m)
			return
		}
	}
	select {
	case queue <- m:
	default:
		g.lose(&m)
	}
}

// shareOf is what the initiations from the given place that wait are counted in.
func (g *greeter) shareOf(from *udp.Endpoint) *atomic.Int32 {
	return &g.shares[maphash.Comparable(g.seed, noise.SourceOf(from.Dst.Addr()))%greeterShares]
}

// lose counts a message that there is no room for.
func (g *greeter) lose(m *greeting) {
	if m.share != nil {
		m.share.Add(-1)
	}
	g.e.counts.handshakes.Add(1)
}

// device is whose handshake message b is.
func (g *greeter) device(kind noise.Kind, b []byte) *Device {
	if kind == noise.KindInitiation {
		for _, d := range *g.e.devices.Load() {
			if k := d.key.Load(); k != nil && k.CheckMAC1(b) {
				return d
			}
		}
		return nil
	}
	entry := g.e.table.find(noise.Receiver(b))
	if entry == nil {
		return nil
	}
	d := entry.peer.d
	if entry.peer.shut(now()) {
		return nil
	}
	if kind == noise.KindResponse {
		if k := d.key.Load(); k == nil || !k.CheckMAC1(b) {
			return nil
		}
	}
	return d
}

// run is the greeter's goroutine, until stop.
func (g *greeter) run() {
	for {
		select {
		case <-g.done:
			return
		case m := <-g.answers:
			g.answer(&m)
		case m := <-g.queue:
			m.share.Add(-1)
			g.greet(&m)
		}
	}
}

// greet answers an initiation.
func (g *greeter) greet(m *greeting) {
	t, b := now(), m.data[:m.n]
	k := m.d.key.Load()
	if k != nil && g.admit(m, k, b, t) && !g.initiation(m.d, b, m.from, t) {
		g.e.counts.unauthorized.Add(1)
	}
}

// answer takes what came for a handshake of ours.
func (g *greeter) answer(m *greeting) {
	t, b := now(), m.data[:m.n]
	entry := g.e.table.find(noise.Receiver(b))
	if entry == nil {
		return
	}
	p := entry.peer
	p.mu.Lock()
	defer p.mu.Unlock()
	var ok bool
	if m.kind == noise.KindResponse {
		ok = p.respondedLocked(entry, b, m.from, t)
	} else {
		ok = p.cookieLocked(b, t)
	}
	if !ok {
		g.e.counts.unauthorized.Add(1)
	}
}

// admit asks who comes for a proof of his address while there is much to do.
func (g *greeter) admit(m *greeting, k *noise.StaticKey, b []byte, t noise.Instant) bool {
	if !g.underLoad(t) {
		return true
	}
	if !g.cookies.CheckMAC2(b, m.from.Dst, t) {
		var reply [noise.CookieReplySize]byte
		g.e.sendMessage(m.from, g.cookies.Reply(reply[:0], k, b, m.from.Dst, t))
		return false
	}
	if !g.limiter.Allow(m.from.Dst.Addr(), t) {
		g.e.counts.limited.Add(1)
		return false
	}
	return true
}

// underLoad counts an initiation, and reports whether there is much to do, or was
// a moment ago.
func (g *greeter) underLoad(t noise.Instant) bool {
	g.rated = max(g.rated, t).Add(time.Second / greeterRate)
	if len(g.queue) >= greeterQueue/8 || g.rated.Sub(t) > time.Second {
		g.rated = min(g.rated, t.Add(time.Second))
		g.load = t
	}
	return g.load != 0 && t.Sub(g.load) <= underLoadTime
}

// cookieLocked takes the answer of a peer that has much to do, and tries again
// with the cookie as soon as the timers allow it.
func (p *peer) cookieLocked(b []byte, t noise.Instant) bool {
	if p.removed || p.protocol.ConsumeCookieReply(b, t) != nil {
		return false
	}
	p.startLocked(t, true)
	return true
}

// initiation answers the peer that sent it, if it is one of d's.
func (g *greeter) initiation(d *Device, b []byte, from *udp.Endpoint, t noise.Instant) bool {
	d.keyMu.RLock()
	k := d.key.Load()
	var in noise.Initiation
	if k == nil || k.ConsumeInitiation(&in, b) != nil {
		d.keyMu.RUnlock()
		return false
	}
	d.keyMu.RUnlock()
	defer in.Wipe()
	d.mu.RLock()
	p := d.byKey[[noise.KeySize]byte(in.Peer())]
	d.mu.RUnlock()
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answerLocked(&in, from, t)
}

// answerLocked answers an initiation of p.
func (p *peer) answerLocked(in *noise.Initiation, from *udp.Endpoint, t noise.Instant) bool {
	e := p.d.engine
	p.d.keyMu.RLock()
	defer p.d.keyMu.RUnlock()
	if k := p.d.key.Load(); k == nil || p.removed || p.shut(t) || in.Accept(p.protocol, t) != nil {
		return false
	}
	entry, err := e.table.take(p)
	if err != nil {
		e.complain("handshake", err)
		return false
	}
	var b [noise.ResponseSize]byte
	var keys noise.Keys
	defer keys.Wipe()
	message, err := in.CreateResponse(b[:0], p.protocol, entry.index, t, &keys, p.psk)
	if err != nil {
		e.table.drop(entry)
		return false
	}
	if p.handshake != nil {
		keys.Crossed = p.handshake.Index()
	}
	pair := p.keypairLocked(entry, &keys)
	dropped := p.ring.Responded(pair)
	p.buryLocked(dropped[:]...)
	entry.fresh.Store(true)
	entry.pair.Store(pair)
	p.answered = from.Dst
	e.agenda.at(p, p.timers.ResponseSent(t))
	e.sendMessage(from, message) // the endpoint moves with the first packet under the new keys
	return true
}

// respondedLocked ends a handshake of ours.
func (p *peer) respondedLocked(entry *entry, b []byte, from *udp.Endpoint, t noise.Instant) bool {
	if p.removed || p.handshake == nil || p.handshake.Index() != entry.index {
		return false
	}
	var keys noise.Keys
	defer keys.Wipe()
	if !p.consumeLocked(b, &keys, t) {
		return false
	}
	pair := p.keypairLocked(entry, &keys)
	dropped := p.ring.Initiated(pair, t)
	p.buryLocked(dropped[:]...)
	entry.pair.Store(pair)
	p.completeLocked(t)
	if to := p.endpoint.Load(); to != nil && to.Dst == from.Dst {
		p.doubted.Store(false)
	}
	if len(p.staged) == 0 { // the peer waits for a packet before it may send
		p.keepaliveLocked(t)
	}
	p.installLocked(t)
	return true
}

// consumeLocked takes the response to the handshake in flight, whose index goes
// on with the keypair.
func (p *peer) consumeLocked(b []byte, keys *noise.Keys, t noise.Instant) bool {
	p.d.keyMu.RLock()
	defer p.d.keyMu.RUnlock()
	k := p.d.key.Load()
	if k == nil {
		return false
	}
	used, err := p.handshake.ConsumeResponse(k, b, t, keys, p.presharedLocked(t)...)
	if err != nil {
		return false
	}
	if used == 0 {
		p.forgetPresharedLocked()
	}
	p.handshake = nil // wiped
	return true
}
