// Package tunnel is the manager: the one place where control connections, who
// is who, the journal, the data plane and the host meet. A gateway's networks
// and a node's tunnels live here, both in one daemon.
package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/auth"
	"tunneld/internal/config"
	"tunneld/internal/control/carrier"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/store"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/host"
)

// Options are the parts a Manager joins. All but Trace, Keys, ParkAfter and Listen
// are needed.
type Options struct {
	Config  config.Config // of the file; the tunnels that join wrote are read from StateDir
	Store   store.Store
	Engine  engine.Engine
	Host    host.Host
	Log     *slog.Logger
	Version api.Version
	// Trace gets every control message, in the pcapng format (see wire.Trace);
	// nil: no trace. It must not be slow: messages wait for it.
	Trace io.Writer
	Keys  KeyOptions
	// ParkAfter is how long a gateway's connection is suspended before it is
	// parked; 0: 30 s. Only a test sets it.
	ParkAfter time.Duration
	Keep      auth.Keep // a gateway's, outside its state directory; zero: it has none, and gives no tickets
	// Listen opens the gateway's TCP listener; nil: net.Listen. Only a test
	// or a process that was handed one sets it.
	Listen func(address string) (net.Listener, error)
	// HandOver says that the next process goes on with the interfaces: at the
	// end they stay, with all that hangs on them.
	HandOver bool
}

// Manager runs a daemon's networks and tunnels. Its methods may be called from
// any goroutine; it implements api.Manager.
type Manager struct {
	cfg       config.Config
	store     store.Store
	disks     []*disk // what the store consists of, the journal first
	engine    engine.Engine
	host      host.Host
	log       *slog.Logger
	version   api.Version
	listen    func(string) (net.Listener, error)
	tracer    *tracer // nil: no trace
	keys      keyPolicy
	keep      auth.Keep
	parkAfter time.Duration
	rebuilt   bool // the state directory was lost
	handOver  bool

	bootID  session.ID
	journal *journal
	bus     event.Bus
	chores  *chores
	stories *stories
	gateway *gateway // nil: this node listens to nobody

	outdated outdated

	ctx   context.Context // of Run; ends when the daemon does
	wg    sync.WaitGroup  // everything that Run started
	ready chan struct{}   // closed when Run has brought everything up

	mu      sync.Mutex // guards everything below
	tunnels []*dialled // in the order of configuration
	links   map[string]*link
	gone    []session.ID // sessions closed since the counters were last written
}

// New joins the parts and restores from the store what outlived the last
// process: networks, sessions, tunnels. It touches the host only through Engine
// and Host. Errors are sentences for whoever started the daemon.
func New(o Options) (*Manager, error) {
	m := &Manager{
		cfg: o.Config, engine: o.Engine, host: o.Host, log: o.Log, version: o.Version, listen: o.Listen, handOver: o.HandOver,
		bootID: session.NewID(), links: map[string]*link{}, ready: make(chan struct{}),
	}
	m.watched(&o)
	m.keep = o.Keep
	var err error
	if m.store, m.rebuilt, err = reconcile(o.Store, o.Keep); err != nil {
		return nil, err
	}
	m.journal = &journal{m.store}
	if m.listen == nil {
		m.listen = func(address string) (net.Listener, error) { return net.Listen("tcp", address) }
	}
	m.keys, m.parkAfter = newKeyPolicy(o), cmp.Or(o.ParkAfter, parkAfter)
	if o.Trace != nil {
		trace, err := wire.NewTrace(o.Trace)
		if err != nil {
			return nil, fmt.Errorf("the trace cannot be written: %w", err)
		}
		m.tracer = &tracer{log: o.Log, trace: trace}
	}
	m.chores, m.stories = newChores(), newStories(m.journal, o.Log)
	if err := m.loadTunnels(); err != nil {
		return nil, err
	}
	if m.cfg.Gateway != nil {
		g, err := newGateway(m)
		if err != nil {
			return nil, err
		}
		m.gateway = g
	}
	return m, m.stories.heal(m.liveSessions())
}

// liveSessions are those of both halves of this daemon.
func (m *Manager) liveSessions() map[session.ID]bool {
	live := map[session.ID]bool{}
	for _, t := range m.tunnels {
		if t.session != nil {
			live[t.session.ID] = true
		}
	}
	if m.gateway != nil {
		for id := range m.gateway.members.byID {
			live[id] = true
		}
	}
	return live
}

// Run brings everything up and keeps it so until ctx ends. Then sessions are
// suspended, never closed, and what was changed on the host is taken back. It
// returns nil when it was ctx that ended it.
func (m *Manager) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer m.tearDown()
	defer m.wg.Wait()
	defer m.closing(cancel)
	m.ctx = ctx
	if err := m.host.Cleanup(""); err != nil { // what a killed daemon left behind
		return err
	}
	m.wg.Go(func() { m.chores.run(ctx) })
	m.chores.add("trim", m.trim)
	if m.gateway != nil {
		if err := m.gateway.start(ctx); err != nil {
			return err
		}
	}
	if err := m.startTunnels(ctx); err != nil {
		return err
	}
	m.engine.Settled()
	network, err := m.host.Fingerprint()
	if err != nil {
		return fmt.Errorf("the host's network cannot be looked at: %w", err)
	}
	changes, err := m.host.Watch(ctx)
	if err != nil {
		return fmt.Errorf("network changes cannot be watched: %w", err)
	}
	m.wg.Go(func() { m.watch(ctx, changes, network) })
	m.wg.Go(func() { m.tick(ctx) })
	m.wg.Go(func() { m.watchLives(ctx) })
	m.wg.Go(func() { m.watchKeys(ctx) })
	m.wg.Go(func() { m.watchDisks(ctx) })
	m.wg.Go(func() { m.watchData(ctx) })
	m.publish(event.Event{Kind: event.DaemonStarted})
	if m.rebuilt {
		m.log.Warn("the state was lost and is rebuilt from what is kept outside the state directory")
		m.publish(event.Event{Kind: event.StateRebuilt})
	}
	close(m.ready)
	m.log.Info("daemon started", event.KeyNode, m.cfg.Node.Name, event.KeyBoot, m.bootID)
	var fatal <-chan error
	if m.gateway != nil {
		fatal = m.gateway.failed
	}
	select {
	case <-ctx.Done():
		m.log.Info("daemon stopping", event.KeyNode, m.cfg.Node.Name)
		m.publish(event.Event{Kind: event.DaemonStopping})
		m.saveCounters()
		return nil
	case err := <-fatal:
		return err
	}
}

// Ready is closed when Run has brought everything up. Before that no other
// method may be called.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// closing ends Run's context. Whoever starts a goroutine under Manager.mu looks
// at the context first, so that none begins when Run waits for them.
func (m *Manager) closing(cancel context.CancelCauseFunc) {
	m.mu.Lock()
	defer m.mu.Unlock()
	cancel(errStopping)
}

var errStopping = errors.New("tunnel: the daemon stops")

// tearDown closes devices and takes our changes off the host, unless the next
// process goes on with them. Sessions stay in the journal.
func (m *Manager) tearDown() {
	m.saveCounters()
	m.stories.write(context.Background())
	if m.gateway != nil {
		m.gateway.saveRests()
		m.gateway.saveTickets(context.Background())
	}
	if m.handOver {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var devices []engine.Device
	for _, t := range m.tunnels {
		if t.dev != nil {
			devices = append(devices, t.dev)
		}
	}
	if m.gateway != nil {
		devices = append(devices, m.gateway.devices()...)
	}
	for _, d := range devices {
		m.closeDevice(d)
	}
}

// closeDevice removes an interface and everything of ours that hangs on it.
func (m *Manager) closeDevice(d engine.Device) {
	name := d.Name()
	if err := m.host.Cleanup(name); err != nil {
		m.log.Warn("host not cleaned up", event.KeyErr, err)
	}
	if err := d.Close(); err != nil {
		m.log.Warn("interface not closed", event.KeyErr, err)
	}
}

// watch follows network changes: cached source addresses are dropped at once
// and peers shown where we are now; control connections are dialled anew when
// the change has settled. before is the network as it was.
func (m *Manager) watch(ctx context.Context, changes <-chan host.Change, before string) {
	const settle = 250 * time.Millisecond
	var settled <-chan time.Time
	for {
		select {
		case c, ok := <-changes:
			if !ok {
				return
			}
			m.engine.PathChanged()
			m.probeAll()
			if c.Fingerprint != before {
				before = c.Fingerprint
				settled = time.After(settle)
			}
		case <-settled:
			settled = nil
			m.redialAll()
		case <-ctx.Done():
			return
		}
	}
}

// tickInterval is how often counters are written.
const tickInterval = 10 * time.Second

// trimTicks is every how many ticks old records are forgotten.
const trimTicks = 360

// tick does what time alone demands.
func (m *Manager) tick(ctx context.Context) {
	t := time.NewTicker(tickInterval)
	defer t.Stop()
	var slack slack
	for n := 1; ; n++ {
		select {
		case <-t.C:
			if n%trimTicks == 0 {
				m.chores.add("trim", m.trim)
			}
			m.chores.add("stories", m.stories.write) // what could not be written before
			m.saveCounters()
			m.renewCertificates()
			slack.giveBack(m.gateway)
		case <-ctx.Done():
			return
		}
	}
}

// publish tells an event to whoever listens, and to the story of its session.
func (m *Manager) publish(e event.Event) {
	e.Time = time.Now()
	m.bus.Publish(e)
	if !e.Session.IsZero() {
		m.stories.tell(e)
		m.chores.add("stories", m.stories.write)
	}
}

// carrierIdentity is how this node shows itself to a gateway, and whom it believes.
func carrierIdentity(id auth.Identity, verify verifyFunc) carrier.Identity {
	return carrier.Identity{Certificate: id.TLS(), Roots: id.Roots(), Verify: verify}
}

// addrOf is the address of a net.Addr, without zone; the zero Addr if it has none.
func addrOf(a net.Addr) netip.Addr {
	if ap, err := netip.ParseAddrPort(a.String()); err == nil {
		return ap.Addr().Unmap()
	}
	return netip.Addr{}
}
