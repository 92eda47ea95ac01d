package native

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"crypto/rand"
	"encoding/binary"

	"github.com/gaissmai/bart"

	"tunneld/internal/event"
	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/meter"
	"tunneld/internal/tunnel/engine/noise"
)

// Device implements [engine.Device].
type Device struct {
	meter.Control
	engine  *Engine
	tun     *tunnel
	mtu     int
	queues  int // threads that read from tun
	log     *slog.Logger
	bell    *bell
	threads sync.WaitGroup
	once    sync.Once // of Close
	gone    atomic.Bool
	routes  atomic.Pointer[bart.Table[*peer]] // replaced, never changed

	// keyMu is held by who uses the private half of key; the rest of it may be
	// used without. It is taken after a peer's mu.
	keyMu sync.RWMutex
	key   atomic.Pointer[noise.StaticKey] // nil: none yet

	mu       sync.RWMutex // guards everything below, and changes of routes; taken before a peer's
	closed   bool
	sessions map[session.ID]*peer
	byKey    map[engine.PublicKey]*peer
}

var _ engine.Device = (*Device)(nil)

// newDevice makes a device on t. It owns t if it returns no error.
func newDevice(e *Engine, t *tunnel, mtu int) (*Device, error) {
	b, err := newBell()
	if err != nil {
		return nil, err
	}
	d := &Device{
		engine: e, tun: t, mtu: mtu, bell: b,
		log:      e.log.With(event.KeyTunnel, t.name),
		sessions: make(map[session.ID]*peer),
		byKey:    make(map[engine.PublicKey]*peer),
	}
	d.Control = d.meterOf
	d.routes.Store(new(bart.Table[*peer]))
	return d, nil
}

func (d *Device) meterOf(id session.ID) (*meter.Meter, error) {
	p, err := d.find(id)
	if err != nil {
		return nil, err
	}
	return &p.meter, nil
}

// move starts the threads that read from the device. The caller holds the
// engine's mu.
func (d *Device) move() {
	d.queues = len(d.tun.fds)
	widen(d.queues)
	for i := range d.tun.fds {
		out := newOutbound(d, i)
		d.threads.Go(out.run)
	}
}

// Name is the interface's name in the kernel.
func (d *Device) Name() string { return d.tun.name }

// SetPrivateKey sets the key of the interface: 32 octets, not all zero.
func (d *Device) SetPrivateKey(key secret.Value) error {
	k, err := noise.NewStaticKey(key)
	if err != nil || !slices.ContainsFunc(key.Reveal(), func(b byte) bool { return b != 0 }) {
		return fmt.Errorf("interface %s: private key of %d octets: want %d, not all zero", d.tun.name, len(key.Reveal()), engine.KeySize)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.key.Load()
	switch p := d.byKey[engine.PublicKey(k.Public())]; {
	case d.closed:
		return engine.ErrClosed
	case p != nil:
		return fmt.Errorf("interface %s: session %v has the public key of this private key", d.tun.name, p.id)
	case old != nil && old.Public() == k.Public():
		k.Wipe()
		return nil
	}
	d.keyMu.Lock()
	d.key.Store(k)
	if old != nil {
		old.Wipe()
	}
	d.keyMu.Unlock()
	for _, p := range d.sessions {
		p.mu.Lock()
		p.clearLocked()
		p.protocol.Wipe()
		p.mu.Unlock()
	}
	return nil
}

// Add adds or replaces a session.
func (d *Device) Add(s engine.Session) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkLocked(s); err != nil {
		return err
	}
	p := d.sessions[s.ID]
	created := p == nil || p.key != s.PeerKey
	if created {
		old := p
		p = newPeer(d, s)
		if old != nil {
			d.detachLocked(old)
			p.inherit(old)
		}
	}
	d.sessions[s.ID], d.byKey[s.PeerKey] = p, p
	p.meter.Configure(s)
	p.configure(s, created)
	d.routeLocked(p, s.AllowedIPs)
	p.meter.SetGate(s.Gate)
	return nil
}

// checkLocked says what is wrong with a session that is to be added.
func (d *Device) checkLocked(s engine.Session) error {
	if d.closed || d.gone.Load() {
		return d.closedError()
	}
	k := d.key.Load()
	if k == nil {
		return fmt.Errorf("interface %s has no private key: set it before adding session %v", d.tun.name, s.ID)
	}
	if other := d.byKey[s.PeerKey]; other != nil && other.id != s.ID {
		return fmt.Errorf("%w: session %v, key %v of session %v", engine.ErrKeyInUse, s.ID, s.PeerKey, other.id)
	}
	return s.Check(engine.PublicKey(k.Public()))
}

// newPeer makes a session without keypairs; configure does the rest.
func newPeer(d *Device, s engine.Session) *peer {
	return &peer{d: d, id: s.ID, key: s.PeerKey, protocol: noise.NewPeer(noise.PublicKey(s.PeerKey))}
}

// inherit takes over the counters of a session whose peer has a new key.
func (p *peer) inherit(old *peer) {
	p.meter.Inherit(&old.meter)
	p.endpoint.Store(old.endpoint.Load())
	p.parked, p.parkedDoubt = old.parked, old.parkedDoubt
}

// configure makes a session what s says, except for its prefixes and gate. A new
// one has what the process before had for it when the agenda first looks at it:
// else the keepalive that is due at once would start a handshake.
func (p *peer) configure(s engine.Session, created bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.responder = s.Responder
	p.protocol.SetStampFloor(noise.Stamp(s.AcceptAbove))
	p.protocol.SetSendFloor(noise.Stamp(s.SendAbove))
	p.armLocked(secret.New(s.PresharedKey.Reveal()), now())
	if created {
		p.forgetPresharedLocked() // there was none
	}
	if s.Endpoint.IsValid() {
		p.goesToLocked(s.Endpoint)
	}
	switch t := now(); {
	case created:
		var seed [4]byte
		rand.Read(seed[:])
		p.d.engine.agenda.at(p, p.timers.Start(t, binary.NativeEndian.Uint32(seed[:]), s.Keepalive, s.Responder))
	default:
		p.timers.SetPassive(s.Responder)
		if s.Keepalive != p.keepalive {
			p.d.engine.agenda.at(p, p.timers.SetPersistent(t, s.Keepalive))
		}
	}
	p.keepalive = s.Keepalive
	if created {
		p.adoptLocked(now())
	}
}

// routeLocked makes the prefixes of p exactly these.
func (d *Device) routeLocked(p *peer, prefixes []netip.Prefix) {
	table := d.routes.Load()
	var own []netip.Prefix
	for _, prefix := range prefixes {
		prefix = prefix.Masked()
		own = append(own, prefix)
		if owner, ok := table.Get(prefix); !ok || owner != p {
			table = table.InsertPersist(prefix, p)
		}
	}
	for _, old := range p.prefixes {
		if owner, _ := table.Get(old); owner == p && !slices.Contains(own, old) {
			table = table.DeletePersist(old)
		}
	}
	p.prefixes = own
	d.routes.Store(table)
}

// SetAllowedIPs makes the inner prefixes of a session exactly these.
func (d *Device) SetAllowedIPs(id session.ID, prefixes []netip.Prefix) error {
	if err := engine.CheckPrefixes(id, prefixes); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p, err := d.findLocked(id)
	if err == nil {
		d.routeLocked(p, prefixes)
	}
	return err
}

// SetEndpoint says where the peer is now.
func (d *Device) SetEndpoint(id session.ID, addr netip.AddrPort) error {
	if !addr.IsValid() {
		return fmt.Errorf("session %v: the endpoint is no address", id)
	}
	p, err := d.find(id)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	nowhere := p.endpoint.Load() == nil
	p.goesToLocked(addr)
	p.arrivedLocked(nowhere, now())
	return nil
}

// Remove forgets a session and wipes its keys.
func (d *Device) Remove(id session.ID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.sessions[id]; p != nil && !d.closed {
		d.detachLocked(p)
	}
	return nil
}

// detachLocked undoes Add.
func (d *Device) detachLocked(p *peer) {
	p.meter.SetGate(engine.Closed)
	d.routeLocked(p, nil)
	delete(d.byKey, p.key)
	delete(d.sessions, p.id)
	p.remove()
}

// remove ends a session that nobody will find any more.
func (p *peer) remove() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removed = true
	p.timers.Stop()
	p.clearLocked()
	p.unstageLocked()
	p.protocol.Wipe()
	p.psk.Wipe()
	p.forgetPresharedLocked()
}

// Handshake starts a handshake now.
func (d *Device) Handshake(id session.ID, fresh bool) error {
	p, err := d.find(id)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.responder {
		return fmt.Errorf("session %v: its peer starts every handshake", id)
	}
	if fresh {
		for _, pair := range [...]*noise.Keypair{p.ring.Current, p.ring.Next} {
			if pair != nil {
				pair.EndSending()
			}
		}
	}
	p.startLocked(now(), true)
	return nil
}

// Probe sends an authenticated empty packet now. Without a live keypair it
// starts a handshake instead, if that is our part.
func (d *Device) Probe(id session.ID) error {
	p, err := d.find(id)
	if err == nil {
		p.mu.Lock()
		p.keepaliveLocked(now())
		p.mu.Unlock()
	}
	return err
}

// Close removes the interface and waits for what Open started.
func (d *Device) Close() error { return d.end(false) }

// end is Close, or part of a HandOver: then keys and interface stay.
func (d *Device) end(handOver bool) error {
	d.once.Do(func() {
		d.engine.forget(d)
		d.bell.ring()
		d.threads.Wait()
		d.mu.Lock()
		defer d.mu.Unlock()
		d.closed = true
		if !handOver {
			for _, p := range d.sessions {
				p.remove()
			}
			defer d.engine.legacy.forget(tunPrefix + d.tun.name)
		}
		d.routes.Store(new(bart.Table[*peer]))
		clear(d.byKey)
		d.tun.close()
		widen(-d.queues)
		d.bell.close()
		d.keyMu.Lock()
		defer d.keyMu.Unlock()
		if k := d.key.Swap(nil); k != nil {
			k.Wipe()
		}
	})
	return nil
}

// find finds a session by its id.
func (d *Device) find(id session.ID) (*peer, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.findLocked(id)
}

func (d *Device) findLocked(id session.ID) (*peer, error) {
	if d.closed || d.gone.Load() {
		return nil, d.closedError()
	}
	if p := d.sessions[id]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("%w: %v on interface %s", engine.ErrUnknownSession, id, d.tun.name)
}

// closedError says why a device does nothing any more.
func (d *Device) closedError() error {
	if d.gone.Load() {
		return fmt.Errorf("%w: interface %s is gone", engine.ErrClosed, d.tun.name)
	}
	return engine.ErrClosed
}

// lost is told by a thread that the interface does not exist any more.
func (d *Device) lost(err error) {
	if !d.gone.Swap(true) && !errors.Is(err, engine.ErrClosed) {
		d.log.Error("interface vanished", event.KeyErr, err)
	}
}
