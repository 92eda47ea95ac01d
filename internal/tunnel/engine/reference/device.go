package reference

import (
	"bytes"
	"crypto/ecdh"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"tunneld/internal/event"
	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/meter"
	"tunneld/internal/tunnel/engine/udp"
)

// statusLife is how old the answer of [Device.Stats] may be about endpoints
// and handshakes: asking costs time for all peers of the device.
const statusLife = 200 * time.Millisecond

// Device implements [engine.Device] over one wireguard-go device.
type Device struct {
	meter.Control
	engine  *Engine
	name    string
	log     *slog.Logger
	tun     *tunDevice
	bind    *bind
	wg      *device.Device
	started time.Time

	roles   roles
	byPeer  sync.Map       // *device.Peer → *peer, for wireguard-go's log lines
	retries sync.WaitGroup // timers of postponed handshakes, and watch
	looks   chan struct{}  // capacity 1: watch is to look soon
	done    chan struct{}  // closed by Close
	once    sync.Once      // of Close

	mu       sync.Mutex // guards everything below
	closed   bool
	public   engine.PublicKey // of the interface; zero: no key yet
	sessions map[session.ID]*peer
	byKey    map[engine.PublicKey]*peer
	status   map[engine.PublicKey]status
	statusAt time.Time // when status was read; zero: it is no longer true
}

var _ engine.Device = (*Device)(nil)

// newDevice starts a device on inner, which it owns.
func newDevice(e *Engine, inner tun.Device) (*Device, error) {
	name, err := inner.Name()
	if err != nil {
		inner.Close()
		return nil, err
	}
	d := &Device{
		engine:   e,
		name:     name,
		log:      e.log.With(event.KeyTunnel, name),
		tun:      newTUNDevice(inner),
		started:  time.Now(),
		looks:    make(chan struct{}, 1),
		done:     make(chan struct{}),
		sessions: make(map[session.ID]*peer),
		byKey:    make(map[engine.PublicKey]*peer),
	}
	d.Control = d.meterOf
	d.bind = &bind{hub: e.hub, mayShake: d.roles.mayLeave}
	d.wg = device.NewDevice(d.tun, d.bind, newLogger(d.log, d.heardOf))
	if err := d.wg.Up(); err != nil {
		d.wg.Close()
		d.tun.wait()
		return nil, err
	}
	d.retries.Go(d.watch)
	return d, nil
}

func (d *Device) meterOf(id session.ID) (*meter.Meter, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, err := d.findLocked(id)
	if err != nil {
		return nil, err
	}
	return &p.meter, nil
}

// Name is the interface's name in the kernel.
func (d *Device) Name() string { return d.name }

// SetPrivateKey sets the key of the interface: 32 octets, not all zero.
func (d *Device) SetPrivateKey(key secret.Value) error {
	private, err := ecdh.X25519().NewPrivateKey(key.Reveal())
	if err != nil || !slices.ContainsFunc(key.Reveal(), func(b byte) bool { return b != 0 }) {
		return fmt.Errorf("interface %s: private key of %d octets: want %d, not all zero", d.name, len(key.Reveal()), engine.KeySize)
	}
	public := engine.PublicKey(private.PublicKey().Bytes())
	d.mu.Lock()
	defer d.mu.Unlock()
	switch p := d.byKey[public]; {
	case d.closed:
		return engine.ErrClosed
	case p != nil:
		return fmt.Errorf("interface %s: session %v has the public key of this private key", d.name, p.id)
	case public == d.public:
		return nil
	}
	d.bind.mac1.Store(newMAC1Key(public)) // first, so that no initiation is missed
	r := newRequest(0)
	r.key("private_key", key.Reveal())
	if err := d.applyLocked(r); err != nil {
		return err
	}
	d.public = public
	for _, p := range d.sessions {
		p.armedAt.Store(0) // a new key lets every peer initiate at once
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
	if p == nil {
		p = &peer{id: s.ID}
	}
	p.meter.Configure(s)
	if p.wg != nil && p.key != s.PeerKey {
		if err := d.detachLocked(p); err != nil {
			return err
		}
	}
	created := p.wg == nil
	if created {
		if err := d.attachLocked(p, s.PeerKey); err != nil {
			return err
		}
	}
	if err := d.configureLocked(p, s, created); err != nil {
		if created {
			return errors.Join(err, d.detachLocked(p))
		}
		return err
	}
	p.meter.SetGate(s.Gate)
	return nil
}

// checkLocked says what is wrong with a session that is to be added.
func (d *Device) checkLocked(s engine.Session) error {
	other := d.byKey[s.PeerKey]
	switch {
	case d.closed:
		return engine.ErrClosed
	case d.public == engine.PublicKey{}:
		return fmt.Errorf("interface %s has no private key: set it before adding session %v", d.name, s.ID)
	case other != nil && other.id != s.ID:
		return fmt.Errorf("%w: session %v, key %v of session %v", engine.ErrKeyInUse, s.ID, s.PeerKey, other.id)
	}
	return s.Check(d.public)
}

// configureLocked makes an attached peer what s says, except for the gate. A
// peer just created that knows no endpoint is told that it is nowhere, or each
// try to send would be an error.
func (d *Device) configureLocked(p *peer, s engine.Session, created bool) error {
	d.roles.set(p.key, &p.meter, s.Responder)
	p.responder = s.Responder
	add, remove := d.routeLocked(p, s.AllowedIPs)
	psk := s.PresharedKey.Reveal()
	if len(psk) == 0 {
		psk = make([]byte, engine.KeySize)
	}
	r := newRequest(len(add) + len(remove))
	r.peer(p.key, true)
	r.key("preshared_key", psk)
	switch {
	case s.Endpoint.IsValid():
		r.line("endpoint", udp.Canonical(s.Endpoint).String())
		d.dialLocked(p, s.Endpoint)
	case created:
		r.line("endpoint", "")
	}
	r.keepalive(s.Keepalive)
	r.allow(add, remove)
	d.statusAt = time.Time{}
	err := d.applyLocked(r)
	d.unrouteLocked(p, remove)
	return err
}

// SetAllowedIPs makes the inner prefixes of a session exactly these.
func (d *Device) SetAllowedIPs(id session.ID, prefixes []netip.Prefix) error {
	if err := engine.CheckPrefixes(id, prefixes); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p, err := d.findLocked(id)
	if err != nil {
		return err
	}
	add, remove := d.routeLocked(p, prefixes)
	r := newRequest(len(add) + len(remove))
	r.peer(p.key, true)
	r.allow(add, remove)
	err = d.applyLocked(r)
	d.unrouteLocked(p, remove)
	return err
}

// SetEndpoint says where the peer is now.
func (d *Device) SetEndpoint(id session.ID, addr netip.AddrPort) error {
	if !addr.IsValid() {
		return fmt.Errorf("session %v: the endpoint is no address", id)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p, err := d.findLocked(id)
	if err != nil {
		return err
	}
	d.dialLocked(p, addr)
	p.wg.SetEndpointFromPacket(newEndpoint(udp.Canonical(addr)))
	d.statusAt = time.Time{}
	return nil
}

// Remove forgets a session and wipes its keys.
func (d *Device) Remove(id session.ID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.sessions[id]
	if d.closed || p == nil {
		return nil
	}
	p.meter.SetGate(engine.Closed)
	return d.detachLocked(p)
}

// refreshLocked reads the status of all peers, unless it was read just now.
func (d *Device) refreshLocked() error {
	if !d.statusAt.IsZero() && time.Since(d.statusAt) < statusLife {
		return nil
	}
	var text bytes.Buffer
	defer func() { clear(text.Bytes()) }() // private and preshared keys are in it
	text.Grow(512 * (len(d.sessions) + 1))
	if err := d.wg.IpcGetOperation(&text); err != nil {
		return fmt.Errorf("interface %s: %w", d.name, err)
	}
	all, err := parseStatus(text.Bytes())
	if err != nil {
		return fmt.Errorf("interface %s: %w", d.name, err)
	}
	d.status, d.statusAt = all, time.Now()
	return nil
}

// Close removes the interface and waits for what Open started.
func (d *Device) Close() error {
	d.once.Do(func() {
		d.mu.Lock()
		d.closed = true
		for _, p := range d.sessions {
			d.cancelLocked(p)
			d.undialLocked(p)
		}
		close(d.done)
		d.mu.Unlock()
		d.retries.Wait()
		d.wg.Close()
		<-d.wg.Wait()
		d.tun.wait()
		d.engine.forget(d)
	})
	return nil
}

// findLocked finds a session by its id.
func (d *Device) findLocked(id session.ID) (*peer, error) {
	switch {
	case d.closed:
		return nil, engine.ErrClosed
	case d.vanished():
		return nil, d.goneError()
	}
	if p := d.sessions[id]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("%w: %v on interface %s", engine.ErrUnknownSession, id, d.name)
}

// applyLocked gives a request to wireguard-go, and wipes it.
func (d *Device) applyLocked(r *request) error {
	defer clear(r.b)
	err := d.wg.IpcSetOperation(bytes.NewReader(r.b))
	if err == nil {
		return nil
	}
	if d.vanished() {
		return d.goneError()
	}
	return fmt.Errorf("interface %s: %w", d.name, err)
}

// vanished reports whether wireguard-go has closed itself, as it does when
// somebody removes the interface.
func (d *Device) vanished() bool {
	select {
	case <-d.wg.Wait():
		return true
	default:
		return false
	}
}

func (d *Device) goneError() error {
	return fmt.Errorf("%w: interface %s is gone", engine.ErrClosed, d.name)
}
