package tunnel

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/auth"
	"tunneld/internal/control"
	"tunneld/internal/control/carrier"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/store"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/life"
	"tunneld/internal/tunnel/redirect"
)

type verifyFunc = func(chain []*x509.Certificate) error

// gateway is the listening half of a daemon: its networks and the control
// connections of the nodes.
type gateway struct {
	m        *Manager
	registry *auth.Registry
	tickets  *auth.Tickets // nil: it gives none
	failed   chan error    // the listener is gone

	shown atomic.Pointer[shownIdentity]
	came  atomic.Int64 // transports of nodes, in all, and connections that were restored or parked

	mu       sync.Mutex // guards everything below
	networks []*network
	conns    map[uint32]*peerConn       // by our connection id
	nodes    map[session.ID][]*peerConn // the same by node
	members  *roster
	changing map[*member]*gatewayKeys // a next key is armed
	seen     map[netip.Addr]int       // where the nodes of connections, live and suspended, were last
	finals   map[session.ID]*endedV2  // sessions that ended and are not recorded yet
	freed    []savedRest              // addresses given back that are not flushed and journalled yet
	gone     []session.ID             // closed since the counters were last written

	rebuilding map[session.ID]rebuilding
	drain      *redirect.Drain // nil: it stays
	graceNext  life.Instant    // when to look whose grace is over, of parked connections

	found found // until start
}

// newGateway restores networks, sessions and connections from the store.
func newGateway(m *Manager) (*gateway, error) {
	g := &gateway{
		m: m, failed: make(chan error, 1), conns: map[uint32]*peerConn{}, nodes: map[session.ID][]*peerConn{},
		members: newRoster(), finals: map[session.ID]*endedV2{}, seen: map[netip.Addr]int{},
		rebuilding: map[session.ID]rebuilding{}, graceNext: life.Never,
	}
	var err error
	if g.registry, err = auth.OpenRegistry(m.store); err != nil {
		if errors.Is(err, store.ErrNotFound) {
			return nil, fmt.Errorf("the file has a [gateway] but %q holds no deployment: make one with `tunneld init --public HOST:PORT`", m.cfg.Node.StateDir)
		}
		return nil, err
	}
	if id := g.registry.Identity(); id.Name != m.cfg.Node.Name {
		return nil, fmt.Errorf("node.name is %q but the gateway's certificate was made for %q: the name cannot be changed after init", m.cfg.Node.Name, id.Name)
	}
	for _, cfg := range m.cfg.Networks {
		n, err := newNetwork(g, cfg)
		if err != nil {
			return nil, err
		}
		g.networks = append(g.networks, n)
	}
	if err := g.restore(); err != nil {
		return nil, err
	}
	return g, g.openTickets()
}

// config is what the control machine of p is made with.
func (g *gateway) config(p *peerConn) control.Config {
	return control.Config{
		Role: control.Responder, LocalID: p.id, HostName: g.m.cfg.Node.Name, RouterID: routerID(g.registry.Identity().ID),
		BootID: g.m.bootID, Rand: rand.Reader, Tickets: g.m.keep.Keys != nil, Spread: g.spread, Keypairs: p.keypairs,
		ParkAfter: g.m.parkAfter,
	}
}

// routerID is the 32-bit node id of the RFC (section 5.4.3): the head of ours.
func routerID(id session.ID) uint32 { return binary.BigEndian.Uint32(id[:4]) }

// start opens the networks and the listener.
func (g *gateway) start(ctx context.Context) error {
	l, err := g.m.listen(g.m.cfg.Gateway.Listen)
	if err != nil {
		return listenError(g.m.cfg.Gateway.Listen, err)
	}
	for _, n := range g.networks {
		if err := n.open(); err != nil {
			l.Close()
			return err
		}
	}
	g.settleFound(ctx)
	for _, n := range g.networks {
		g.announceLater(n) // the file may say others than the last process did
	}
	g.m.chores.add("revoked", g.cutRevoked)
	srv := &carrier.Server{
		Identity: g.carrierIdentity, Handler: g, Log: g.m.log,
		Limits: carrier.Limits{Known: g.known},
	}
	g.m.wg.Go(func() {
		if err := srv.Serve(ctx, l); err != nil && ctx.Err() == nil {
			g.failed <- fmt.Errorf("gateway: listener on %s: %w", g.m.cfg.Gateway.Listen, err)
		}
	})
	return nil
}

// listenError says what to do about an address that cannot be listened on.
func listenError(address string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("gateway.listen %q: the TCP port is taken by another program: choose another port in [gateway] listen, or end that program (ss -ltnp shows it)", address)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("gateway.listen %q: not permitted: ports below 1024 need CAP_NET_BIND_SERVICE", address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("gateway.listen %q: this host has no such address", address)
	}
	return fmt.Errorf("gateway.listen %q: %w", address, err)
}

// shownIdentity is how the gateway shows itself while it has one certificate:
// every connection has it, for life.
type shownIdentity struct {
	leaf *x509.Certificate
	carrier.Identity
}

func (g *gateway) carrierIdentity() carrier.Identity {
	id := g.registry.Identity()
	s := g.shown.Load()
	if s == nil || s.leaf != id.Certificate {
		s = &shownIdentity{id.Certificate, carrierIdentity(id, auth.VerifyNode(id.Deployment, g.registry.Revoked))}
		g.shown.Store(s)
	}
	return s.Identity
}

// known reports whether a live or suspended session was last seen at a.
func (g *gateway) known(a netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.seen[a.Unmap()] > 0
}

func (g *gateway) network(name string) *network {
	for _, n := range g.networks {
		if n.cfg.Name == name {
			return n
		}
	}
	return nil
}

// devices are those of the networks that were opened.
func (g *gateway) devices() (all []engine.Device) {
	for _, n := range g.networks {
		if n.dev != nil {
			all = append(all, n.dev)
		}
	}
	return all
}

// Enrol serves one enrolment.
func (g *gateway) Enrol(ctx context.Context, c carrier.EnrolConn) {
	log := g.m.log.With(event.KeyRemote, c.RemoteAddr().String())
	e, err := g.registry.ServeEnrol(c, c.Export, g.enrolNetworks, time.Now())
	if err != nil {
		log.Warn("enrolment failed", event.KeyErr, err)
	}
	if e.ID.IsZero() {
		return
	}
	log.Info("node enrolled", event.KeyNode, e.Name)
	g.m.publish(event.Event{Kind: event.NodeEnrolled, Node: e.Name})
	if !e.Replaced.IsZero() {
		g.m.publish(event.Event{Kind: event.NodeRevoked, Node: e.Name, Cause: "replaced"})
		g.m.chores.add("revoked", g.cutRevoked)
	}
}

// Control takes a node's transport: its first message says whether it begins a
// connection or resumes one.
func (g *gateway) Control(ctx context.Context, c carrier.Conn) {
	peer, err := auth.ParseCertificate(c.Peer())
	if err != nil {
		c.Close()
		return
	}
	c.SetReadDeadline(time.Now().Add(setupTimeout))
	nc := g.m.tracer.conn(c, false)
	br := bufio.NewReaderSize(nc, readSize)
	first, q, err := readRequest(br)
	if err != nil {
		g.m.log.Warn("control connection not begun", event.KeyNode, peer.Name, event.KeyRemote, c.RemoteAddr().String(), event.KeyErr, err)
		c.Close()
		return
	}
	c.SetReadDeadline(time.Time{})
	d := g.drains()
	if r := d.Refuses(wire.StopError, q.Recovery != nil); r != nil {
		control.Refuse(nc, q, *r, d.To...)
		return
	}
	if q.Recovery == nil && g.m.unwritable() != nil { // a resume may find the room it needs
		control.Refuse(nc, q, wire.Result{Code: wire.StopError, Error: wire.ErrorResources, Cause: wire.CauseStore})
		return
	}
	p := g.connFor(q, peer)
	if p == nil {
		control.Refuse(nc, q, noConnection(q))
		return
	}
	p.certificateTo(peer.NotAfter)
	remote := c.RemoteAddr().String()
	p.remote.Store(&remote)
	g.see(p, addrOf(c.RemoteAddr()))
	g.came.Add(1)
	switch err := p.Attach(ctx, nc, br, g.binding(c, peer), first); {
	case errors.Is(err, control.ErrClosed):
		control.Refuse(nc, q, noConnection(q))
	case err != nil:
		control.Refuse(nc, q, wire.Result{Code: wire.StopGeneral, Cause: wire.CauseStore})
	}
}

// noConnection is why a request finds no connection: there is nothing to
// resume, or no more can be begun.
func noConnection(q *wire.SCCRQ) wire.Result {
	if q.Recovery == nil {
		return wire.Result{Code: wire.StopError, Error: wire.ErrorResources, Cause: wire.CauseBusy}
	}
	return wire.Result{Code: wire.StopError, Error: wire.ErrorNoConnection, Cause: wire.CauseUnknownResume}
}

// Bounds of a transport's first message.
const (
	setupTimeout = 10 * time.Second
	maxRequest   = 4096 // octets
	readSize     = 512  // of the buffer that each connection has for life; most messages fit
)

// readRequest reads the SCCRQ a transport begins with.
func readRequest(br *bufio.Reader) (*wire.Packet, *wire.SCCRQ, error) {
	raw, err := wire.ReadPacket(br, maxRequest)
	if err != nil {
		return nil, nil, err
	}
	p, err := wire.Parse(raw)
	if err != nil {
		return nil, nil, err
	}
	q, ok := p.Message.(*wire.SCCRQ)
	if !ok {
		return nil, nil, fmt.Errorf("%v where SCCRQ was due", p.Message.Type())
	}
	return p, q, nil
}

// connFor finds the connection to resume, or makes one. Another node's
// connection is as unknown as one that never was.
func (g *gateway) connFor(q *wire.SCCRQ, peer auth.Peer) *peerConn {
	g.mu.Lock()
	if q.Recovery != nil {
		p := g.conns[q.Recovery.RemoteID]
		g.mu.Unlock()
		if p == nil || p.nodeID != peer.ID {
			return nil
		}
		return p
	}
	if len(g.nodes[peer.ID]) >= maxConns {
		g.mu.Unlock()
		return nil
	}
	id := g.freeIDLocked()
	p := &peerConn{g: g, id: id, node: peer.Name, nodeID: peer.ID}
	conn := control.NewConn(control.New(g.config(p)), p, g.m.log.With(event.KeyNode, peer.Name))
	p.conn = conn
	g.addLocked(p)
	g.mu.Unlock()
	if g.launch(p, conn) != nil {
		return nil
	}
	return p
}

// maxConns bounds the control connections of one node, living and suspended.
const maxConns = 16

// addLocked enters a connection.
func (g *gateway) addLocked(p *peerConn) {
	g.conns[p.id] = p
	g.nodes[p.nodeID] = append(g.nodes[p.nodeID], p)
}

// removeLocked takes a connection out.
func (g *gateway) removeLocked(p *peerConn) {
	delete(g.conns, p.id)
	g.nodes[p.nodeID] = slices.DeleteFunc(g.nodes[p.nodeID], func(other *peerConn) bool { return other == p })
	if len(g.nodes[p.nodeID]) == 0 {
		delete(g.nodes, p.nodeID)
	}
}

// tidy ends the connections of a node that are suspended and hold no session:
// the node has lost them, or it would have resumed one instead of beginning
// another.
func (g *gateway) tidy(ctx context.Context, node session.ID) {
	g.mu.Lock()
	all := slices.Clone(g.nodes[node])
	g.mu.Unlock()
	for _, p := range all {
		if v, err := p.View(); err == nil && v.State == session.Suspended && len(v.Sessions) == 0 {
			p.Do(ctx, control.Stop{Result: wire.Result{Code: wire.StopGeneral, Cause: wire.CauseReplaced}})
		}
	}
}

func (g *gateway) freeIDLocked() uint32 {
	for {
		var b [4]byte
		rand.Read(b[:])
		id := binary.BigEndian.Uint32(b[:])
		if _, taken := g.conns[id]; id != 0 && !taken {
			return id
		}
	}
}

// launch runs a connection until it is over or parked, or the daemon ends.
func (g *gateway) launch(p *peerConn, c *control.Conn) error {
	ctx := g.m.ctx
	g.m.mu.Lock()
	defer g.m.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	g.m.wg.Go(func() {
		switch err := c.Run(ctx); {
		case errors.Is(err, control.ErrParked):
			p.park(c)
		case ctx.Err() == nil:
			g.mu.Lock()
			g.removeLocked(p)
			g.seeLocked(p, netip.Addr{})
			g.mu.Unlock()
		}
	})
	return nil
}

func (g *gateway) binding(c carrier.Conn, peer auth.Peer) control.Binding {
	return bind(c, g.registry.Identity(), peer)
}

// bind ties an exchange to its transport and the nodes at its ends.
func bind(c carrier.Conn, own auth.Identity, peer auth.Peer) control.Binding {
	return control.Binding{
		Since: c.Since(), Export: c.Export, OwnID: own.ID, PeerID: peer.ID, PeerName: peer.Name,
		OwnKey: sha256.Sum256(own.Certificate.RawSubjectPublicKeyInfo), PeerKey: peer.KeyHash,
	}
}

// see notes where the node of a connection was last; the zero address: the
// connection is over. For the sake of those addresses half of the places before
// authentication is kept free.
func (g *gateway) see(p *peerConn, addr netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seeLocked(p, addr)
}

func (g *gateway) seeLocked(p *peerConn, addr netip.Addr) {
	if g.seen[p.at]--; g.seen[p.at] <= 0 {
		delete(g.seen, p.at)
	}
	if p.at = addr; addr.IsValid() {
		g.seen[addr]++
	}
}

// Each node that lost this gateway with all others is given this much time for
// its way back: somewhat more than a resume takes one processor.
const (
	spreadPerNode = 2 * time.Millisecond
	leastSpread   = 100 * time.Millisecond // for fewer nodes nothing is told
	mostSpread    = time.Minute
)

// spread is over how long the nodes should come back.
func (g *gateway) spread() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := time.Duration(len(g.conns)) * spreadPerNode
	if d < leastSpread {
		return 0
	}
	return min(d, mostSpread)
}

// cutRevoked closes the sessions and connections of revoked nodes.
func (g *gateway) cutRevoked(ctx context.Context) {
	g.mu.Lock()
	var cut []*peerConn
	for _, p := range g.conns {
		if g.registry.Revoked(p.nodeID) {
			cut = append(cut, p)
		}
	}
	g.mu.Unlock()
	for _, p := range cut {
		p.Do(ctx, control.Stop{RequestID: api.RequestOf(ctx), Result: wire.Result{Code: wire.StopNotAuthorized, Cause: wire.CauseRevoked}})
	}
}
