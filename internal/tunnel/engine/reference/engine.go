// Package reference is the data plane over wireguard-go's device: one device
// per interface, all of them on one UDP port.
//
// What is ours stands on either side of it. Towards the network, a bind of our
// own (socket, hub, bind): it shares the sockets among the devices, never
// blocks, and answers from the address that was spoken to. Towards the host, a
// wrapper around the TUN device (tunDevice): gates and counters. What a device
// is told goes through its configuration text, one peer at a time; peers that
// a change does not name are not disturbed by it.
package reference

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/udp"
)

// Config is what an Engine needs to know.
type Config struct {
	// Listen is where UDP is bound. The zero address and :: are every address
	// of both families; port 0 is any port that is free.
	Listen netip.AddrPort
	// Sockets, if any, are used instead of binding Listen: at most one of each
	// family, on one port. New owns them, also when it fails.
	Sockets []*net.UDPConn
	// Mark is set on what the engine sends, so that routing rules can keep it
	// out of the tunnels. Zero: none.
	Mark uint32
	// Log may be nil: nothing is logged.
	Log *slog.Logger
}

// Engine implements [engine.Engine].
type Engine struct {
	hub    *hub
	log    *slog.Logger
	events engine.Events

	mu      sync.Mutex // guards everything below
	devices map[*Device]struct{}
	closed  bool
}

var _ engine.Engine = (*Engine)(nil)

// Settled does nothing: this engine's keypairs end with the process.
func (*Engine) Settled() {}

// KeyMemory says where wireguard-go keeps its keys.
func (*Engine) KeyMemory() engine.KeyMemory {
	return engine.KeyMemory{Unlocked: errOrdinary}
}

var errOrdinary = errors.New("the reference engine has them in ordinary memory")

// New binds the UDP port. Errors: [engine.ErrPortTaken] and, where the
// mark may not be set or the port not be bound, [engine.ErrNotPermitted].
func New(c Config) (*Engine, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	conns := c.Sockets
	if len(conns) == 0 {
		var err error
		if conns, err = udp.Listen(c.Listen, 1); err != nil {
			return nil, err
		}
	}
	var sockets []*socket
	for _, conn := range conns {
		s, err := newSocket(conn, c.Mark)
		if err != nil {
			udp.CloseAll(conns)
			return nil, err
		}
		sockets = append(sockets, s)
	}
	return &Engine{hub: newHub(sockets, c.Log), log: c.Log, devices: make(map[*Device]struct{})}, nil
}

// Port is the UDP port of every device.
func (e *Engine) Port() uint16 { return e.hub.sockets[0].Local.Port() }

// Events are what happened to the sessions of all devices.
func (e *Engine) Events() *engine.Events { return &e.events }

// PathChanged makes the routing table choose the source towards every peer
// again, until that peer has been heard of.
func (e *Engine) PathChanged() { e.hub.pathChanged() }

// Open makes the interface c.Interface and starts moving packets.
func (e *Engine) Open(c engine.DeviceConfig) (engine.Device, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, engine.ErrClosed
	}
	inner, err := openTUN(c)
	if err != nil {
		return nil, err
	}
	d, err := newDevice(e, inner)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", c.Interface, err)
	}
	e.devices[d] = struct{}{}
	return d, nil
}

// forget is told by a device that it is closed.
func (e *Engine) forget(d *Device) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.devices, d)
}

// Close ends every device, waits for what they started, and frees the port.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	var open []*Device
	for d := range e.devices {
		open = append(open, d)
	}
	e.mu.Unlock()
	var errs []error
	for _, d := range open {
		errs = append(errs, d.Close())
	}
	return errors.Join(append(errs, e.hub.shut())...)
}
