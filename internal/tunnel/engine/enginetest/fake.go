// Package enginetest has an engine for tests: it moves no packets, remembers
// what it was told, and fails on demand.
package enginetest

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

// Fake implements [engine.Engine] in memory. The zero value is ready to use;
// its methods may be called from any goroutine.
type Fake struct {
	mu          sync.Mutex // guards everything below
	port        uint16
	devices     map[string]*Device
	errs        map[string]error
	settled     bool
	keys        engine.KeyMemory
	pathChanges int
	closed      bool
	events      engine.Events
	kept        map[session.ID][]uint32
}

var _ engine.Engine = (*Fake)(nil)

// SetPort makes Port return port.
func (f *Fake) SetPort(port uint16) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.port = port
}

// Fail makes the method of that name ("Open", "Add", "SetGate", …) of the
// engine and its devices return err without doing anything; nil ends that.
func (f *Fake) Fail(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.errs == nil {
		f.errs = make(map[string]error)
	}
	f.errs[method] = err
}

// Keep has sessions that are added from now on go on with keypairs, as if the
// process before had left them.
func (f *Fake) Keep(kept map[session.ID][]uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept = kept
}

// Device is the open device of that interface, or nil.
func (f *Fake) Device(name string) *Device {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.devices[name]
}

// PathChanges is how often PathChanged was called.
func (f *Fake) PathChanges() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pathChanges
}

// Closed reports whether Close was called.
func (f *Fake) Closed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

// SetKeyMemory makes KeyMemory return k.
func (f *Fake) SetKeyMemory(k engine.KeyMemory) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys = k
}

// KeyMemory is what SetKeyMemory said; without that, locked.
func (f *Fake) KeyMemory() engine.KeyMemory {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.keys
}

// Open makes a device. A name that is in use is [engine.ErrInterfaceTaken].
func (f *Fake) Open(c engine.DeviceConfig) (engine.Device, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return nil, engine.ErrClosed
	case f.errs["Open"] != nil:
		return nil, f.errs["Open"]
	case f.devices[c.Interface] != nil:
		return nil, fmt.Errorf("%w: %s", engine.ErrInterfaceTaken, c.Interface)
	}
	if f.devices == nil {
		f.devices = make(map[string]*Device)
	}
	d := &Device{fake: f, config: c, sessions: make(map[session.ID]*Session)}
	f.devices[c.Interface] = d
	return d, nil
}

// Port is what SetPort said.
func (f *Fake) Port() uint16 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.port
}

// PathChanged is counted.
func (f *Fake) PathChanged() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pathChanges++
}

// Events are those that Handshake, SetStats and Tell made.
func (f *Fake) Events() *engine.Events { return &f.events }

// Settled is remembered.
func (f *Fake) Settled() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settled = true
}

// HasSettled reports whether Settled was called.
func (f *Fake) HasSettled() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.settled
}

// Close closes every device.
func (f *Fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.devices {
		d.closed = true
	}
	clear(f.devices)
	f.closed = true
	return f.errs["Close"]
}

// Device implements [engine.Device] in memory.
type Device struct {
	fake *Fake // its mu guards everything below

	config   engine.DeviceConfig
	key      secret.Value
	keySets  int
	sessions map[session.ID]*Session
	closed   bool
}

var _ engine.Device = (*Device)(nil)

// Session is what a device was told of one session.
type Session struct {
	engine.Session
	Handshakes int          // calls of Handshake
	Fresh      int          // those of them with fresh set
	Probes     int          // calls of Probe
	Kept       []uint32     // what Keypairs answers; see [Fake.Keep]
	SendsWith  uint32       // the keypair that PeerRestarted looks for; see [Device.SendWith]
	Stats      engine.Stats // what Stats answers; see [Device.SetStats]
}

// do runs a method under the lock, unless the test wants it to fail.
func (d *Device) do(method string, f func() error) error {
	d.fake.mu.Lock()
	defer d.fake.mu.Unlock()
	if d.closed {
		return engine.ErrClosed
	}
	if err := d.fake.errs[method]; err != nil {
		return err
	}
	return f()
}

// on is do for a method that names a session.
func (d *Device) on(method string, id session.ID, f func(*Session)) error {
	return d.do(method, func() error {
		s := d.sessions[id]
		if s == nil {
			return fmt.Errorf("%w: %v", engine.ErrUnknownSession, id)
		}
		f(s)
		return nil
	})
}

// Session returns a copy of what the device knows of a session.
func (d *Device) Session(id session.ID) (Session, bool) {
	d.fake.mu.Lock()
	defer d.fake.mu.Unlock()
	s := d.sessions[id]
	if s == nil {
		return Session{}, false
	}
	c := *s
	c.AllowedIPs = slices.Clone(c.AllowedIPs)
	return c, true
}

// Sessions returns the ids of all sessions, in no order.
func (d *Device) Sessions() []session.ID {
	d.fake.mu.Lock()
	defer d.fake.mu.Unlock()
	var ids []session.ID
	for id := range d.sessions {
		ids = append(ids, id)
	}
	return ids
}

// SetStats sets what Stats answers for a session; another last handshake or
// endpoint than before is an event.
func (d *Device) SetStats(id session.ID, s engine.Stats) error {
	return d.on("", id, func(f *Session) {
		if !s.LastHandshake.Equal(f.Stats.LastHandshake) {
			d.fake.events.Tell(engine.Event{Kind: engine.HandshakeDone, Session: id, At: s.LastHandshake})
		}
		if s.Endpoint != f.Stats.Endpoint {
			d.fake.events.Tell(engine.Event{Kind: engine.EndpointMoved, Session: id, At: time.Now(), Endpoint: s.Endpoint})
		}
		f.Stats = s
	})
}

// Config is what the device was opened with.
func (d *Device) Config() engine.DeviceConfig { return d.config }

// PrivateKey is the key set last, and how often another one was set.
func (d *Device) PrivateKey() (key secret.Value, changes int) {
	d.fake.mu.Lock()
	defer d.fake.mu.Unlock()
	return d.key, d.keySets
}

// Name is the interface's name.
func (d *Device) Name() string { return d.config.Interface }

// SetPrivateKey remembers the key.
func (d *Device) SetPrivateKey(key secret.Value) error {
	return d.do("SetPrivateKey", func() error {
		if len(key.Reveal()) != engine.KeySize {
			return fmt.Errorf("private key of %d octets: want %d", len(key.Reveal()), engine.KeySize)
		}
		if !d.key.Equal(key) {
			d.key, d.keySets = key, d.keySets+1
		}
		return nil
	})
}

// Add adds or replaces a session; what was counted stays.
func (d *Device) Add(s engine.Session) error {
	return d.do("Add", func() error {
		if d.key.IsZero() {
			return fmt.Errorf("interface %s has no private key: set it before adding session %v", d.Name(), s.ID)
		}
		for id, other := range d.sessions {
			if other.PeerKey == s.PeerKey && id != s.ID {
				return fmt.Errorf("%w: session %v, key %v of session %v", engine.ErrKeyInUse, s.ID, s.PeerKey, id)
			}
		}
		old := d.sessions[s.ID]
		if old == nil {
			old = &Session{Kept: d.fake.kept[s.ID]}
			d.sessions[s.ID] = old
		}
		if !s.Endpoint.IsValid() && old.PeerKey == s.PeerKey {
			s.Endpoint = old.Endpoint // still where it was heard of last
		}
		s.AllowedIPs = slices.Clone(s.AllowedIPs)
		old.Session = s
		old.Stats.Endpoint = s.Endpoint
		return nil
	})
}

// SetAllowedIPs remembers the prefixes.
func (d *Device) SetAllowedIPs(id session.ID, prefixes []netip.Prefix) error {
	return d.on("SetAllowedIPs", id, func(s *Session) { s.AllowedIPs = slices.Clone(prefixes) })
}

// SetGate remembers the gate.
func (d *Device) SetGate(id session.ID, g engine.Gate) error {
	return d.on("SetGate", id, func(s *Session) { s.Gate = g })
}

// SetDirection remembers the direction.
func (d *Device) SetDirection(id session.ID, to engine.Direction) error {
	return d.on("SetDirection", id, func(s *Session) { s.Direction = to })
}

// SetRates remembers the rates.
func (d *Device) SetRates(id session.ID, rx, tx engine.Rate) error {
	return d.on("SetRates", id, func(s *Session) { s.RxRate, s.TxRate = rx, tx })
}

// SetSendFloor remembers the stamp.
func (d *Device) SetSendFloor(id session.ID, stamp engine.Stamp) error {
	return d.on("SetSendFloor", id, func(s *Session) { s.SendAbove = stamp.Later(s.SendAbove) })
}

// SetDeadline remembers the deadline.
func (d *Device) SetDeadline(id session.ID, at time.Time) error {
	return d.on("SetDeadline", id, func(s *Session) { s.Deadline = at })
}

// SetPresharedKey remembers the key.
func (d *Device) SetPresharedKey(id session.ID, psk secret.Value) error {
	return d.on("SetPresharedKey", id, func(s *Session) { s.PresharedKey = psk })
}

// SetEndpoint remembers the endpoint.
func (d *Device) SetEndpoint(id session.ID, addr netip.AddrPort) error {
	return d.on("SetEndpoint", id, func(s *Session) { s.Endpoint, s.Stats.Endpoint = addr, addr })
}

// Remove forgets a session. On a closed device there is none.
func (d *Device) Remove(id session.ID) error {
	err := d.do("Remove", func() error {
		delete(d.sessions, id)
		return nil
	})
	if errors.Is(err, engine.ErrClosed) {
		return nil
	}
	return err
}

// Handshake is counted and taken as answered at once; where the peer starts every handshake it is an error.
func (d *Device) Handshake(id session.ID, fresh bool) error {
	var refused error
	err := d.on("Handshake", id, func(s *Session) {
		if s.Responder {
			refused = fmt.Errorf("session %v: its peer starts every handshake", id)
			return
		}
		s.Handshakes++
		s.Stats.LastHandshake = time.Now() // as if the peer answered at once
		d.fake.events.Tell(engine.Event{Kind: engine.HandshakeDone, Session: id, At: s.Stats.LastHandshake})
		if fresh {
			s.Fresh++
		}
	})
	return errors.Join(err, refused)
}

// Keypairs answers what Keep said.
func (d *Device) Keypairs(id session.ID) (kept []uint32, err error) {
	err = d.on("Keypairs", id, func(s *Session) { kept = s.Kept })
	return kept, err
}

// PeerRestarted is a Handshake, unless kept has what SendWith said.
func (d *Device) PeerRestarted(id session.ID, kept []uint32) error {
	known := false
	err := d.on("PeerRestarted", id, func(s *Session) { known = s.SendsWith != 0 && slices.Contains(kept, s.SendsWith) })
	if err != nil || known {
		return err
	}
	return d.Handshake(id, true)
}

// SendWith says with which keypair of the peer's a session sends.
func (d *Device) SendWith(id session.ID, index uint32) error {
	return d.on("", id, func(s *Session) { s.SendsWith = index })
}

// Probe is counted.
func (d *Device) Probe(id session.ID) error {
	return d.on("Probe", id, func(s *Session) { s.Probes++ })
}

// Stats answers what SetStats and the endpoints said.
func (d *Device) Stats(id session.ID) (stats engine.Stats, err error) {
	err = d.on("Stats", id, func(s *Session) { stats = s.Stats })
	return stats, err
}

// AllStats is Stats of every session.
func (d *Device) AllStats() iter.Seq2[session.ID, engine.Stats] {
	d.fake.mu.Lock()
	defer d.fake.mu.Unlock()
	all := make(map[session.ID]engine.Stats)
	for id, s := range d.sessions {
		all[id] = s.Stats
	}
	return maps.All(all)
}

// Close closes the device; the name is free again.
func (d *Device) Close() error {
	d.fake.mu.Lock()
	defer d.fake.mu.Unlock()
	if !d.closed {
		d.closed = true
		delete(d.fake.devices, d.config.Interface)
	}
	return d.fake.errs["Device.Close"]
}
