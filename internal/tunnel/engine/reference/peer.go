package reference

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/meter"
	"tunneld/internal/tunnel/engine/udp"
)

// A peer is one session. What the data path uses is atomic; the rest is
// guarded by the device's mu.
type peer struct {
	meter   meter.Meter
	armedAt atomic.Int64 // when a handshake message was sent last, since the device's start; 0: never

	id        session.ID
	key       engine.PublicKey
	wg        *device.Peer // nil: not attached
	prefixes  []netip.Prefix
	dialled   netip.AddrPort // as counted by the hub; zero: not
	responder bool
	retry     *time.Timer // of a postponed handshake; nil: none
	told      status      // what watch has seen
}

// attachLocked makes a wireguard-go peer for p.
func (d *Device) attachLocked(p *peer, key engine.PublicKey) error {
	r := newRequest(0)
	r.peer(key, false)
	if err := d.applyLocked(r); err != nil {
		return err
	}
	p.key, p.wg = key, d.wg.LookupPeer(device.NoisePublicKey(key))
	if p.wg == nil {
		return fmt.Errorf("session %v: wireguard-go took no peer %v", p.id, key)
	}
	p.armedAt.Store(0)
	d.sessions[p.id], d.byKey[key] = p, p
	d.byPeer.Store(p.wg, p)
	return nil
}

// detachLocked undoes attachLocked and everything done since, and wipes the
// keys; the counters stay with p.
func (d *Device) detachLocked(p *peer) error {
	d.cancelLocked(p)
	d.undialLocked(p)
	r := newRequest(0)
	r.peer(p.key, true)
	r.key("preshared_key", make([]byte, engine.KeySize))
	r.line("remove", "true")
	err := d.applyLocked(r)
	d.unrouteLocked(p, p.prefixes)
	d.roles.forget(p.key)
	d.byPeer.Delete(p.wg)
	delete(d.byKey, p.key)
	delete(d.sessions, p.id)
	p.wg, p.prefixes = nil, nil
	d.statusAt = time.Time{}
	return err
}

// routeLocked gives p the prefixes it wants and returns what wireguard-go must
// add and remove. One prefix belongs to one session: the last that asked.
// Until unrouteLocked, p has what it loses as well as what it gains.
func (d *Device) routeLocked(p *peer, want []netip.Prefix) (add, remove []netip.Prefix) {
	table := d.tun.routes.Load()
	var prefixes []netip.Prefix
	for _, w := range want {
		w = w.Masked()
		prefixes = append(prefixes, w)
		if owner, ok := table.Get(w); !ok || owner != p {
			table = table.InsertPersist(w, p)
			add = append(add, w)
		}
	}
	for _, old := range p.prefixes {
		if owner, _ := table.Get(old); owner == p && !slices.Contains(prefixes, old) {
			remove = append(remove, old)
		}
	}
	p.prefixes = prefixes
	d.tun.routes.Store(table)
	return add, remove
}

// unrouteLocked takes prefixes from p, as far as they are still its own.
func (d *Device) unrouteLocked(p *peer, prefixes []netip.Prefix) {
	table := d.tun.routes.Load()
	for _, prefix := range prefixes {
		if owner, _ := table.Get(prefix); owner == p {
			table = table.DeletePersist(prefix)
		}
	}
	d.tun.routes.Store(table)
}

// dialLocked notes that we, and not the peer, chose addr.
func (d *Device) dialLocked(p *peer, addr netip.AddrPort) {
	d.undialLocked(p)
	p.told.endpoint = udp.Canonical(addr)
	if !p.responder {
		p.dialled = udp.Canonical(addr)
		d.engine.hub.dial(p.dialled, 1)
	}
}

func (d *Device) undialLocked(p *peer) {
	if p.dialled.IsValid() {
		d.engine.hub.dial(p.dialled, -1)
		p.dialled = netip.AddrPort{}
	}
}

// heardOf is told by wireguard-go what it does with a peer.
func (d *Device) heardOf(wg *device.Peer, what notice) {
	found, ok := d.byPeer.Load(wg)
	if !ok {
		return
	}
	switch p := found.(*peer); what {
	case sendsHandshake:
		p.armedAt.Store(int64(time.Since(d.started)))
		d.look()
	case hasResponse:
		d.look()
	case gaveUp:
		d.engine.events.Tell(engine.Event{Kind: engine.NoAnswer, Session: p.id, At: time.Now()})
	}
}

// untilInitiation is how long wireguard-go will refuse, silently, to send an
// initiation: 5 s from the last one or from the last response.
func (d *Device) untilInitiation(p *peer) time.Duration {
	at := p.armedAt.Load()
	if at == 0 {
		return 0
	}
	return time.Duration(at) + device.RekeyTimeout - time.Since(d.started)
}

// Handshake starts a handshake now, or as soon as wireguard-go may send one:
// 5 s after the last handshake message to this peer, unless fresh is set.
func (d *Device) Handshake(id session.ID, fresh bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, err := d.findLocked(id)
	if err != nil {
		return err
	}
	if p.responder {
		return fmt.Errorf("session %v: its peer starts every handshake", id)
	}
	d.cancelLocked(p)
	if fresh {
		p.wg.ExpireCurrentKeypairs() // ends the 5 s, too
		p.armedAt.Store(0)
	}
	if wait := d.untilInitiation(p); wait > 0 {
		d.postponeLocked(p, wait)
		return nil
	}
	return p.wg.SendHandshakeInitiation(false)
}

// Keypairs names none: those of wireguard-go end with the process.
func (d *Device) Keypairs(id session.ID) ([]uint32, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, err := d.findLocked(id)
	return nil, err
}

// PeerRestarted starts a handshake whatever the peer has kept, because
// wireguard-go does not say with what it sends.
func (d *Device) PeerRestarted(id session.ID, _ []uint32) error { return d.Handshake(id, true) }

// postponeLocked starts a handshake after wait. If one was started or answered
// meanwhile, that was it.
func (d *Device) postponeLocked(p *peer, wait time.Duration) {
	d.retries.Add(1)
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		defer d.retries.Done()
		d.mu.Lock()
		defer d.mu.Unlock()
		if p.retry != timer { // cancelled
			return
		}
		p.retry = nil
		if d.untilInitiation(p) <= 0 {
			_ = p.wg.SendHandshakeInitiation(false) // logged by wireguard-go, and tried again
		}
	})
	p.retry = timer
}

// cancelLocked cancels a postponed handshake.
func (d *Device) cancelLocked(p *peer) {
	if p.retry == nil {
		return
	}
	if p.retry.Stop() {
		d.retries.Done()
	}
	p.retry = nil
}

// Probe sends an authenticated empty packet now. Without a live keypair,
// wireguard-go starts a handshake instead.
func (d *Device) Probe(id session.ID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, err := d.findLocked(id)
	if err == nil {
		p.wg.SendKeepalive()
	}
	return err
}
