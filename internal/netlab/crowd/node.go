package crowd

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tunneld/internal/auth"
	"tunneld/internal/control"
	"tunneld/internal/control/carrier"
	"tunneld/internal/control/wire"
	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// node is one node: at most one control connection with one session. Its
// methods that act are called by one goroutine at a time.
type node struct {
	crowd   *Crowd
	name    string
	source  netip.Addr
	network string
	id      auth.Identity
	dialer  *carrier.Dialer
	bootID  session.ID

	mu      sync.Mutex // guards everything below
	conn    *control.Conn
	nc      carrier.Conn // the newest transport
	state   state
	pace    control.Pace
	changed chan struct{} // closed and replaced when state changes
}

// state is what those who wait for a node look at.
type state struct {
	up      bool       // a transport carries the connection
	session session.ID // zero: none
	err     error      // why the transport is gone, or the session refused
	drops   int        // transports lost
	retries int        // dials that failed
	ended   int        // sessions that are over
}

func newNode(c *Crowd, name string, source netip.Addr) *node {
	return &node{crowd: c, name: name, source: source, bootID: session.NewID(), changed: make(chan struct{})}
}

// bindTo has a socket leave from an address.
func bindTo(source netip.Addr) func(fd uintptr) error {
	return func(fd uintptr) error {
		// The port is chosen at connect, so that one source has enough of them.
		if err := unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return err
		}
		return unix.Bind(int(fd), &unix.SockaddrInet4{Addr: source.As4()})
	}
}

// change changes the state and wakes who waits for it.
func (n *node) change(fn func(*state)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fn(&n.state)
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *node) look() (state, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state, n.changed
}

// await waits until ok of the state, and fails when a transport is gone or ctx
// ends before.
func (n *node) await(ctx context.Context, gone <-chan struct{}, ok func(state) bool) error {
	for {
		s, changed := n.look()
		if ok(s) {
			return nil
		}
		select {
		case <-changed:
		case <-gone:
			if s, _ := n.look(); !ok(s) {
				return fmt.Errorf("the gateway closed the transport: %w", s.err)
			}
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func isUp(s state) bool       { return s.up }
func isDown(s state) bool     { return !s.up }
func hasSession(s state) bool { return s.up && !s.session.IsZero() }

// connect dials and waits until the transport carries the connection, and the
// connection a session.
func (n *node) connect(ctx context.Context) error {
	c, err := n.dialer.Dial(ctx, n.crowd.gateway)
	if err != nil {
		return err
	}
	peer, err := auth.ParseCertificate(c.Peer())
	if err != nil {
		c.Close()
		return err
	}
	conn := n.connection(ctx, c)
	gone, err := conn.Attach(ctx, c, bufio.NewReader(c), control.Binding{
		Export: c.Export, OwnID: n.id.ID, PeerID: peer.ID, PeerName: peer.Name,
		OwnKey: sha256.Sum256(n.id.Certificate.RawSubjectPublicKeyInfo), PeerKey: peer.KeyHash,
	}, nil)
	if err != nil {
		c.Close()
		return err
	}
	if err := n.await(ctx, gone, isUp); err != nil {
		return err
	}
	if s, _ := n.look(); hasSession(s) {
		return nil
	}
	if err := n.open(ctx, conn); err != nil {
		return err
	}
	return n.await(ctx, gone, hasSession)
}

// connection returns the node's connection, which is about to get c.
func (n *node) connection(ctx context.Context, c carrier.Conn) *control.Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nc = c
	if n.conn != nil {
		return n.conn
	}
	m := control.New(control.Config{
		Role: control.Initiator, LocalID: n.crowd.connIDs.Add(1), HostName: n.name, RouterID: 1, BootID: n.bootID, Rand: rand.Reader,
	})
	conn := control.NewConn(m, n, slog.New(slog.DiscardHandler))
	n.conn = conn
	n.crowd.wg.Go(func() { conn.Run(ctx) })
	return conn
}

// open asks for a session.
func (n *node) open(ctx context.Context, conn *control.Conn) error {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	return conn.Do(ctx, control.OpenSession{
		Network: n.network, Label: n.network, Serial: 1, PrivateKey: secret.OfX25519(key), PublicKey: [32]byte(key.PublicKey().Bytes()),
	})
}

// cut ends the transport and waits until the node has seen it.
func (n *node) cut(ctx context.Context) error {
	n.mu.Lock()
	nc := n.nc
	n.mu.Unlock()
	if nc == nil {
		return errors.New("it is not connected")
	}
	nc.Close()
	return n.await(ctx, nil, isDown)
}

// stop ends the connection for good.
func (n *node) stop(ctx context.Context) error {
	n.mu.Lock()
	conn := n.conn
	n.mu.Unlock()
	if conn == nil {
		return errors.New("it is not connected")
	}
	if err := conn.Do(ctx, control.Stop{Result: wire.Result{Code: wire.StopShuttingDown, Cause: wire.CauseUser}}); err != nil {
		return err
	}
	select {
	case <-conn.Done():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// keep connects again whenever the transport is lost, until ctx ends.
func (n *node) keep(ctx context.Context) {
	for n.await(ctx, nil, isDown) == nil {
		n.mu.Lock()
		first := n.pace.Lost(n.state.err)
		n.mu.Unlock()
		if pause(ctx, first) != nil || n.persist(ctx) != nil {
			return
		}
	}
}

// persist connects, however often it takes.
func (n *node) persist(ctx context.Context) error {
	for n.connect(ctx) != nil {
		n.change(func(s *state) { s.retries++ })
		n.mu.Lock()
		wait := n.pace.Failed()
		n.mu.Unlock()
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
	return nil
}

// pause waits for d, or the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
