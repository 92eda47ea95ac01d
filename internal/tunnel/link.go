package tunnel

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"tunneld/internal/auth"
	"tunneld/internal/control"
	"tunneld/internal/control/carrier"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/store"
	"tunneld/internal/tunnel/life"
	"tunneld/internal/tunnel/redirect"
)

// link is this node's control connection towards one list of gateways, with
// the tunnels that share it. Manager.mu guards its fields.
type link struct {
	m       *Manager
	key     string
	tunnels []*dialled
	wake    chan struct{} // of length 1: something to do

	conn     *control.Conn // nil while there is no connection
	restored *time.Duration
	up       bool  // a transport carries the connection
	redial   bool  // the network changed: a new transport is wanted beside the old one
	lastErr  error // why the present attempt failed
	way      redirect.Way
	local    string // our address towards it
	pace     control.Pace
	later    time.Time // no dial before, unless something changed
	running  bool
	renewing *renewal
	provenAt life.Instant // when a transport came to carry the connection last; 0: not in this process
	serial   uint32
	renewAt  time.Time    // when a new transport is due; zero: not thought of yet
	octets   atomic.Int64 // carried since the last transport took over
}

func newLink(m *Manager, gateways []string) *link {
	return &link{m: m, key: linkKey(gateways), way: redirect.Way{Gateways: gateways, Joined: m.joined}, wake: make(chan struct{}, 1)}
}

// restoreLinks gives each link the control connection it had, and each tunnel
// its session.
func (m *Manager) restoreLinks() error {
	saved, err := m.journal.connectionsOf(control.Initiator)
	if err != nil || len(saved) == 0 {
		return err
	}
	counters, err := m.journal.counters()
	if err != nil {
		return err
	}
	for _, c := range saved {
		l := m.links[c.link]
		if l == nil { // its tunnels are no longer configured
			if err := m.journal.forgetConnection(c.record.LocalID); err != nil {
				return err
			}
			continue
		}
		remaining := graceLeft(c.record, time.Now())
		l.way.Lost(time.Now())
		l.conn = control.NewConn(control.Restore(m.initiatorConfig(c.record.LocalID), c.record), &linkConn{l, c.record.LocalID}, m.log)
		l.restored = &remaining
		for _, s := range c.record.Sessions {
			if t := l.labelled(s.Label); t != nil && (s.State == session.Established || s.Rebuild) {
				t.session, t.base = &s, counters[s.ID]
				t.restoreLife(remaining)
				t.state = session.Suspended
				if c.record.SuspendedAt.IsZero() {
					t.record(s.ID, event.Event{Kind: event.SessionSuspended, Cause: killedCause})
				}
			}
		}
	}
	return nil
}

func (m *Manager) initiatorConfig(id uint32) control.Config {
	return control.Config{
		Role: control.Initiator, LocalID: id, HostName: m.cfg.Node.Name, RouterID: routerID(m.bootID),
		BootID: m.bootID, Rand: rand.Reader,
	}
}

func (l *link) labelled(name string) *dialled {
	for _, t := range l.tunnels {
		if t.cfg.Name == name {
			return t
		}
	}
	return nil
}

// startTunnels puts back the data plane of sessions that outlived the last
// process, each with a handshake at once if it has no keypair, and starts the
// links.
func (m *Manager) startTunnels(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tunnels {
		if t.session == nil || !t.wanted {
			continue
		}
		if err := t.setUpLocked(*t.session); err != nil {
			t.lastErr = err
			m.log.Error("session not restored", event.KeyTunnel, t.cfg.Name, event.KeyErr, err)
			continue
		}
		if !statsOf(t.dev, t.session.ID).LastHandshake.IsZero() {
			continue // the engine goes on with the keypairs of the last process
		}
		if err := t.dev.Handshake(t.session.ID, false); err != nil {
			m.log.Warn("handshake not started", event.KeyTunnel, t.cfg.Name, event.KeyErr, err)
		}
	}
	for _, l := range m.links {
		l.startLocked(ctx)
	}
	return nil
}

// startLocked starts the goroutine of a link.
func (l *link) startLocked(ctx context.Context) {
	if l.running || ctx.Err() != nil {
		return
	}
	l.running = true
	if l.conn != nil {
		l.launchLocked(ctx)
	}
	l.m.wg.Go(func() { l.run(ctx) })
}

// launchLocked runs the control connection; when it is over the link is told.
func (l *link) launchLocked(ctx context.Context) {
	conn, restored := l.conn, l.restored
	l.restored = nil
	if ctx.Err() != nil {
		return
	}
	l.m.wg.Go(func() {
		conn.Run(ctx)
		l.m.mu.Lock()
		if l.conn == conn && ctx.Err() == nil {
			l.conn, l.up = nil, false
		}
		l.m.mu.Unlock()
		l.nudge()
	})
	if restored != nil {
		l.m.wg.Go(func() { conn.Do(ctx, control.Started{Remaining: *restored, At: time.Now()}) })
	}
}

// nudge makes the link look again at what is to be done.
func (l *link) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run keeps the connection and its sessions as the tunnels want them.
func (l *link) run(ctx context.Context) {
	for {
		wait := l.once(ctx)
		timer := time.NewTimer(wait)
		select {
		case <-l.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// idleWait is how long a link that has nothing to do sleeps between looks.
const idleWait = time.Minute

// once does the next thing that is due and says how long there is nothing else.
func (l *link) once(ctx context.Context) time.Duration {
	l.m.mu.Lock()
	wanted, conn, redial, up, later := l.wantedLocked(), l.conn, l.redial, l.up, time.Until(l.later)
	l.redial = false
	l.m.mu.Unlock()

	if conn == nil && !wanted {
		return idleWait
	}
	if conn != nil && !wanted && l.finish(ctx, conn) {
		return idleWait
	}
	if up && l.isUseless(len(conn.View().Sessions)) {
		conn.Do(ctx, control.Stop{Result: wire.Result{Code: wire.StopShuttingDown, Cause: wire.CauseDraining}})
		return 0
	}
	to, wait := l.dueToLeave()
	if to != "" {
		return l.move(ctx, to)
	}
	if up && redial && later > 0 { // it is not forgotten, and nothing else waits for it
		l.m.mu.Lock()
		l.redial, redial, wait = true, false, min(wait, later)
		l.m.mu.Unlock()
	}
	if up && !redial {
		return min(wait, l.ask(ctx, conn))
	}
	if later > 0 {
		return later
	}
	if err := l.dial(ctx); err != nil {
		return l.failed(err)
	}
	l.nudge()
	return idleWait
}

// wantedLocked reports whether any tunnel of the link wants a session.
func (l *link) wantedLocked() bool {
	for _, t := range l.tunnels {
		if t.wanted && !t.givenUp {
			return true
		}
	}
	return false
}

// finish ends a connection that no tunnel needs, once the peer has all that
// was to be said; until then it is resumed like any other.
func (l *link) finish(ctx context.Context, conn *control.Conn) (done bool) {
	v := conn.View()
	if v.State == session.Closed {
		return true
	}
	if len(v.Sessions) > 0 || (v.Pending > 0 && v.State != session.Established) {
		return false
	}
	conn.Do(ctx, control.Stop{Result: wire.Result{Code: wire.StopShuttingDown, Cause: wire.CauseUser}})
	return true
}

// hurryLocked has the next dial begin at once: something has changed.
func (l *link) hurryLocked() {
	l.pace.Forget()
	l.later = time.Time{}
}

// failed counts a failed dial.
func (l *link) failed(err error) time.Duration {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.redial = l.up // the old transport may be of no use on the new network
	for _, t := range l.tunnels {
		if t.wanted {
			t.lastErr, t.denied = err, denied(err)
			if t.session == nil && !l.up { // beside a living transport it may have asked there
				t.set(session.Idle)
			}
		}
	}
	wait := l.pace.Failed()
	if n := l.pace.Failures(); n == 1 || n%20 == 0 {
		l.m.log.Warn("gateway not reached", event.KeyPeer, l.key, event.KeyAttempt, n, event.KeyErr, err)
	}
	l.later = time.Now().Add(wait)
	return wait
}

// denied reports whether a failed dial will fail again until somebody does
// something about certificates.
func denied(err error) bool {
	for _, e := range []error{carrier.ErrOurCertificate, carrier.ErrPeerCertificate, auth.ErrExpired, errNotJoined} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// ask opens the sessions that are wanted and missing; it returns when the next
// one that was refused may be asked for again.
func (l *link) ask(ctx context.Context, conn *control.Conn) time.Duration {
	wait := idleWait
	for _, s := range l.unwanted(conn.View().Sessions) {
		conn.Do(ctx, control.CloseSession{LocalID: s.LocalID, Result: wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseUser}})
	}
	for _, open := range l.missing(conn.View().PeerID, &wait) {
		if err := conn.Do(ctx, open); err != nil {
			l.notAsked(open.Label)
			wait = control.BackoffQuick
		}
	}
	for _, again := range l.claims(conn.View().Sessions, &wait) {
		conn.Do(ctx, again)
	}
	return wait
}

// unwanted are the sessions whose tunnels are down: of a daemon that was killed
// between the wish and the close.
func (l *link) unwanted(sessions []control.Session) (all []control.Session) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	for _, s := range sessions {
		if t := l.labelled(s.Label); t == nil || !t.wanted {
			all = append(all, s)
		}
	}
	return all
}

// notAsked takes back that a session was asked for: the connection was over.
func (l *link) notAsked(label string) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if t := l.labelled(label); t != nil && t.state == session.WaitReply {
		t.set(session.Idle)
	}
}

// missing prepares a request for each tunnel that wants a session, has none,
// asks for none and may ask gateway now.
func (l *link) missing(gateway session.ID, wait *time.Duration) (open []control.OpenSession) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	for _, t := range l.tunnels {
		if !t.wanted || t.ending || t.givenUp || t.session != nil || t.state == session.WaitReply {
			continue
		}
		if left := time.Until(t.retryAt); left > 0 {
			*wait = min(*wait, left)
			continue
		}
		if other := l.twinLocked(t, gateway); other != nil {
			t.lastErr, t.cause, t.givenUp = &twinError{other.cfg.Name, t.cfg.Network}, wire.CauseNone, true
			t.set(session.Idle)
			l.m.log.Warn("tunnel not begun", event.KeyTunnel, t.cfg.Name, event.KeyErr, t.lastErr)
			continue
		}
		private, public, err := newKeyPair()
		if err != nil {
			t.lastErr = err
			continue
		}
		l.serial++
		t.set(session.WaitReply)
		open = append(open, control.OpenSession{
			Network: t.cfg.Network, Label: t.cfg.Name, Serial: l.serial,
			PrivateKey: private, PublicKey: public, Advertise: t.cfg.Advertise, Expires: t.wishes(), RequestID: t.request,
		})
		t.request = session.ID{}
	}
	return open
}

// dial tries each gateway in turn and gives the connection the transport.
func (l *link) dial(ctx context.Context) error {
	l.m.mu.Lock()
	for _, t := range l.tunnels {
		if t.wanted && t.session == nil && t.state == session.Idle {
			t.set(session.WaitCtlReply)
		}
	}
	l.m.mu.Unlock()
	var errs []error
	var tried []string
	for {
		l.m.mu.Lock()
		address, loop := l.way.Next(tried, l.homeLocked(), time.Now()), l.way.Err()
		l.m.mu.Unlock()
		if address == "" {
			return errors.Join(append(errs, loop)...)
		}
		tried = append(tried, address)
		t, err := l.reach(ctx, address)
		if err == nil {
			err = l.carry(ctx, address, t)
		}
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("gateway %s: %w", address, err))
	}
}

// reached is a transport to a gateway whose certificate is right.
type reached struct {
	carrier.Conn
	id     auth.Identity
	peer   auth.Peer
	remote netip.AddrPort
}

// reach makes a transport to the gateway that must answer at an address.
func (l *link) reach(ctx context.Context, address string) (*reached, error) {
	gw, id, err := l.m.whoAnswers(address)
	if err != nil {
		return nil, err
	}
	d := carrier.Dialer{
		Identity: carrierIdentity(id, auth.VerifyGateway(gw.Deployment, gw.ID)),
		Control:  setMark,
	}
	c, err := d.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	peer, err := auth.ParseCertificate(c.Peer())
	if err != nil {
		c.Close()
		return nil, err
	}
	remote, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		c.Close()
		return nil, err
	}
	return &reached{c, id, peer, remote}, nil
}

// carry gives the link's connection a transport.
func (l *link) carry(ctx context.Context, address string, c *reached) error {
	conn, err := l.connection(ctx, endpointOf(c.remote))
	if err != nil {
		c.Close()
		return err
	}
	l.m.mu.Lock()
	l.lastErr, l.local = nil, c.LocalAddr().String()
	l.way.Dialled(address)
	l.m.mu.Unlock()
	nc := counted{l.m.tracer.conn(c.Conn, true), &l.octets}
	gone, err := conn.Attach(ctx, nc, bufio.NewReader(nc), bind(c, c.id, c.peer), nil)
	if err != nil {
		nc.Close()
		return err
	}
	return l.follow(ctx, gone)
}

// whoAnswers says which gateway must answer at an address, and who this node is
// in its deployment.
func (m *Manager) whoAnswers(address string) (gw auth.KnownGateway, id auth.Identity, err error) {
	err = m.store.View(func(tx store.Tx) (err error) {
		if gw, err = auth.LookupGateway(tx, address); err != nil {
			return err
		}
		id, err = auth.LoadIdentity(tx, gw.Deployment, auth.Node)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return gw, id, fmt.Errorf("%w (who answers there is learnt from an invite)", errNotJoined)
	}
	if err == nil {
		err = id.Valid(time.Now())
	}
	return gw, id, err
}

var errNotJoined = errors.New("this node has not joined that gateway: run `tunnelctl join`")

// connection returns the link's connection, beginning one if there is none.
// Where the gateway is now is remembered for the data plane.
func (l *link) connection(ctx context.Context, endpoint netip.AddrPort) (*control.Conn, error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	for _, t := range l.tunnels {
		if t.saved.Endpoint == endpoint {
			continue
		}
		t.saved.Endpoint = endpoint
		if err := l.m.journal.saveTunnel(t.cfg.Name, t.saved); err != nil {
			return nil, err
		}
		if t.dev != nil && t.session != nil {
			if err := t.dev.SetEndpoint(t.session.ID, endpoint); err != nil {
				return nil, err
			}
		}
	}
	if l.conn == nil {
		id := mrand.Uint32N(1<<32-1) + 1
		l.conn = control.NewConn(control.New(l.m.initiatorConfig(id)), &linkConn{l, id}, l.m.log)
		l.launchLocked(ctx)
	}
	return l.conn, nil
}

// follow watches a transport until it carries the connection, or is gone. One
// that never came to carry it counts as a failed dial.
func (l *link) follow(ctx context.Context, gone <-chan struct{}) error {
	l.m.wg.Go(func() {
		<-gone
		l.nudge()
	})
	timeout := time.NewTimer(setupTimeout)
	defer timeout.Stop()
	for {
		if l.isUp() {
			return nil
		}
		select {
		case <-l.wake:
		case <-gone:
			return l.refusal()
		case <-timeout.C:
			return errors.New("the gateway does not complete the set-up")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// isUp reports whether a transport carries the connection; if so the failures
// before it are forgotten.
func (l *link) isUp() bool {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.up {
		l.pace.Forget()
	}
	return l.up
}

// refusal is why a transport that was made did not come to carry the
// connection.
func (l *link) refusal() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.lastErr != nil {
		return l.lastErr
	}
	return errors.New("the gateway closed the connection")
}

// redialAll makes each established link prove itself on the new network, and
// the others try at once.
func (m *Manager) redialAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.links {
		l.redial = l.conn != nil
		l.hurryLocked()
		l.nudge()
	}
}

// probeAll shows the gateways where this node is now.
func (m *Manager) probeAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tunnels {
		if t.dev != nil && t.session != nil {
			if err := t.dev.Probe(t.session.ID); err != nil {
				m.log.Warn("gateway not probed", event.KeyTunnel, t.cfg.Name, event.KeyErr, err)
			}
		}
	}
}
