package tunnel

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tunneld/internal/config"
	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/life"
	"tunneld/internal/tunnel/pool"
)

// network is one network of this gateway: an interface, a key, a pool and the
// sessions in it. gateway.mu guards it.
type network struct {
	g       *gateway
	cfg     config.Network
	saved   networkV1 // as in the journal; its version is 0 if it is not there yet
	private secret.Value
	public  [32]byte
	pool    *pool.Pool
	ifname  string
	dev     engine.Device // nil until open
}

// member is a session as the gateway keeps it beside the control machine's own
// view: what the data plane and `sessions` need. gateway.mu guards it.
type member struct {
	id        session.ID
	network   *network
	conn      *peerConn
	local     uint32 // its id in conn
	serial    uint64 // of changes made to it, as journalled
	node      string
	nodeID    session.ID
	state     session.State
	began     time.Time // at this daemon
	since     time.Time // of the state
	resumes   uint64
	epoch     uint32
	addresses []netip.Addr
	advertise []netip.Prefix
	peerKey   [32]byte
	psk       secret.Value
	base      countersV1     // before this process
	endpoint  netip.AddrPort // where the node's packets come from; zero: not heard of yet
	movedAt   time.Time      // when that was recorded last

	life life.Life
	told wire.Lifetime // as the node knows it
	held bool          // by the node: kept, and nothing passes

	terms    control.Terms               // that it has, apart from addresses
	offer    *control.Offer              // open; nil: none
	declined [numTermKinds]control.Terms // what its node refused last

	rebuilt bool // by its ticket, in this process
}

// newNetwork prepares a network without touching the host.
func newNetwork(g *gateway, cfg config.Network) (*network, error) {
	st, err := g.m.journal.networkState(cfg.Name)
	if err != nil {
		return nil, err
	}
	n := &network{g: g, cfg: cfg, saved: st, ifname: cfg.Interface}
	if n.private, n.public, err = keyPair(st.PrivateKey); err != nil {
		return nil, fmt.Errorf("network %q: its key in the state directory: %w", cfg.Name, err)
	}
	if n.pool, err = pool.New(cfg.Pools, cfg.Timers.Cooloff); err != nil {
		return nil, fmt.Errorf("network %q: %w", cfg.Name, err)
	}
	if n.ifname == "" {
		n.ifname = st.Interface
	}
	return n, nil
}

// restoreRests tells the pool which addresses rest, and whose they were.
func (n *network) restoreRests() error {
	var rests []pool.Rest
	err := n.g.m.journal.each(bucketLeases, func(key string, b []byte) error {
		if network, _, ok := strings.Cut(key, "/"); !ok || network != n.cfg.Name {
			return nil
		}
		var v leaseV1
		if err := decode(b, &v, &v.Version); err != nil {
			return err
		}
		rests = append(rests, v.Rest)
		return nil
	})
	n.pool.RestoreRests(rests, time.Now())
	return err
}

// open makes the interface and puts back the sessions that outlived the last
// process, gates open: their rights were checked when they began and are again
// when they resume.
func (n *network) open() error {
	g := n.g
	if err := n.checkOverlap(); err != nil {
		return err
	}
	if err := n.chooseInterface(); err != nil {
		return err
	}
	dev, err := g.m.engine.Open(engine.DeviceConfig{Interface: n.ifname, MTU: g.m.cfg.Data.MTU})
	if err != nil {
		return fmt.Errorf("network %q: %w", n.cfg.Name, err) // the engine names the interface and the way out
	}
	n.dev = dev
	if err := dev.SetPrivateKey(n.private); err != nil {
		return err
	}
	if err := g.m.host.SetLink(n.ifname, n.linkAddresses(), g.m.cfg.Data.MTU); err != nil {
		return fmt.Errorf("network %q: %w", n.cfg.Name, err)
	}
	inside := n.cfg.Pools
	if !n.cfg.Masquerade {
		inside = nil
	}
	if err := g.m.host.SetMasquerade(n.ifname, inside); err != nil {
		return fmt.Errorf("network %q: masquerade: %w", n.cfg.Name, err)
	}
	for mb := range g.members.byNetwork[n] {
		if err := dev.Add(mb.engineSession(mb.gate())); err != nil { // a revoked node's is closed, if we were killed before the cut
			g.m.log.Error("session has no data plane", event.KeySession, mb.id, event.KeyErr, err)
		}
	}
	if err := n.setHostRoutes(); err != nil {
		return fmt.Errorf("network %q: %w", n.cfg.Name, err)
	}
	n.reportProblems()
	return n.save()
}

// save keeps the key and the interface that were chosen at the first start. It
// is the last thing a start does: one that is refused leaves no trace.
func (n *network) save() error {
	if n.saved.Version != 0 && (n.cfg.Interface != "" || n.saved.Interface == n.ifname) {
		return nil
	}
	n.saved.Version = stateVersion
	if n.cfg.Interface == "" {
		n.saved.Interface = n.ifname
	}
	return n.g.m.journal.put(bucketNetworks, n.cfg.Name, n.saved)
}

// reportProblems says at start what on this host stops packets.
func (n *network) reportProblems() {
	problems, err := n.g.m.host.Problems(n.ifname)
	if err != nil {
		n.g.m.log.Warn("host not examined", event.KeyNetwork, n.cfg.Name, event.KeyErr, err)
	}
	for _, p := range problems {
		n.g.m.log.Warn("packets will not pass this host", event.KeyNetwork, n.cfg.Name, event.KeyCause, p.What+"; mend it with: "+p.Mended)
	}
}

// checkOverlap refuses pools that this host already uses for something else.
func (n *network) checkOverlap() error {
	for _, p := range n.cfg.Pools {
		found, ifname, ok, err := n.g.m.host.Overlap(p, n.g.ours)
		if err != nil {
			return err
		}
		if ok {
			return fmt.Errorf("network %q: pool %v overlaps %v of this host (interface %s): choose another pool, or take the address off that interface", n.cfg.Name, p, found, ifname)
		}
	}
	return nil
}

// chooseInterface finds a name at the first start.
func (n *network) chooseInterface() error {
	if n.ifname != "" {
		return nil
	}
	name, err := n.g.m.freeInterface()
	n.ifname = name
	return err
}

// ours reports whether an interface belongs to this gateway.
func (g *gateway) ours(ifname string) bool {
	return slices.ContainsFunc(g.networks, func(n *network) bool { return n.ifname == ifname })
}

// linkAddresses are the gateway's own, with the length of their pools, so that
// the kernel routes the pools to the interface.
func (n *network) linkAddresses() []netip.Prefix { return n.pool.Gateway() }

// addresses are the gateway's own.
func (n *network) addresses() (all []netip.Addr) {
	for _, p := range n.pool.Gateway() {
		all = append(all, p.Addr())
	}
	return all
}

// routesFor are the prefixes a node sends here: pools, the network's routes
// and what other nodes advertise.
func (n *network) routesFor(mb *member) []netip.Prefix {
	routes := append(slices.Clone(n.cfg.Pools), n.cfg.Routes...)
	for other := range n.g.members.advertising[n] {
		if other != mb && other.state != session.WaitConnect {
			routes = append(routes, other.advertise...)
		}
	}
	return sortPrefixes(routes)
}

// setHostRoutes sends what nodes advertise into the interface.
func (n *network) setHostRoutes() error {
	var routes []netip.Prefix
	for mb := range n.g.members.advertising[n] {
		routes = append(routes, mb.advertise...)
	}
	return n.g.m.host.SetRoutes(n.ifname, sortPrefixes(routes))
}

func (mb *member) lease() pool.Lease {
	return pool.Lease{Session: mb.id, Owner: mb.node, Addresses: mb.addresses}
}

// engineSession is what the data plane learns of a session: the gateway answers
// handshakes and starts none.
func (mb *member) engineSession(gate engine.Gate) engine.Session {
	direction, rx, tx := mb.limits().engine()
	return engine.Session{
		ID: mb.id, PeerKey: engine.PublicKey(mb.peerKey), PresharedKey: mb.psk, Gate: gate, Deadline: mb.life.Deadline(bootNow(), time.Now()), Responder: true, AcceptAbove: mb.base.Accepted,
		AllowedIPs: mb.prefixes(), Direction: direction, RxRate: rx, TxRate: tx,
	}
}

// newMember enters a session of a control connection.
func (g *gateway) newMember(n *network, p *peerConn, s control.Session) *member {
	mb := &member{
		id: s.ID, network: n, conn: p, local: s.LocalID, serial: s.Changes, node: p.node, nodeID: p.nodeID,
		state: s.State, began: time.Now(), since: time.Now(), resumes: s.Resumes, epoch: s.KeyEpoch,
		addresses: s.Addresses, advertise: s.Advertise, terms: termsOf(s), peerKey: s.PeerKey, psk: s.PresharedKey,
		life: newLife(n.lifetimeOf(s), s, s.Began, wire.RefresherGateway), told: s.Lifetime, held: s.Held,
	}
	mb.life.CertTo = p.certTo
	if p.provenAt != 0 {
		mb.life.Proven = p.provenAt
	}
	g.members.add(mb)
	g.followKeysLocked(mb, s)
	return mb
}

// admitLocked decides whether a node may have a session; nil: it may. The
// caller holds gateway.mu.
func (n *network) admitLocked(p *peerConn, q *wire.ICRQ, networks []string, granted []netip.Prefix) *wire.Result {
	if !slices.Contains(networks, n.cfg.Name) {
		return refusal(wire.CauseNetworkRight, "node %q has no right to network %q", p.node, n.cfg.Name)
	}
	if n.limitsOf(p.nodeID).direction == nothingPasses {
		return refusal(wire.CauseNetworkRight, "network %q is for %s alone, which node %q may not use", n.cfg.Name, n.cfg.Direction, p.node)
	}
	if r := n.checkAdvertiseLocked(p, q.Advertise, granted); r != nil {
		return r
	}
	if r := p.proofTooOld(n); r != nil {
		return r
	}
	if n.g.members.byKey[q.PublicKey] != nil {
		return refusal(wire.CauseKeyInUse, "that session key is in use")
	}
	_, r := n.policy().Answer(q.Expires)
	return r
}

// grantLocked gives a session what it needs, if there is an address for it. The
// caller holds gateway.mu.
func (n *network) grantLocked(p *peerConn, q *wire.ICRQ) (control.Grant, *wire.Result) {
	id := session.NewID()
	lease, err := n.pool.Lease(id, p.node, time.Now())
	if err != nil {
		return control.Grant{}, &wire.Result{Code: wire.CDNNoFacilities, Error: wire.ErrorResources, Cause: wire.CausePoolExhausted, Text: err.Error()}
	}
	return n.grantOf(q, id, lease.Addresses), nil
}

// grantOf is what a session with these addresses gets.
func (n *network) grantOf(q *wire.ICRQ, id session.ID, addresses []netip.Addr) control.Grant {
	expires, _ := n.policy().Answer(q.Expires) // admitted
	return control.Grant{
		ID: id, PrivateKey: n.private, PublicKey: n.public, Addresses: addresses,
		Peers: n.addresses(), Routes: n.routesFor(nil), MTU: uint16(n.g.m.cfg.Data.MTU),
		Timers:   n.timers(),
		Lifetime: n.lifetime(), Expires: expires, Began: time.Now(),
	}
}

// checkAdvertise accepts only prefixes granted to the node that overlap nothing
// in use: no pool, no other session, no route of the host.
func (n *network) checkAdvertiseLocked(p *peerConn, advertise, granted []netip.Prefix) *wire.Result {
	for _, a := range advertise {
		if !slices.ContainsFunc(granted, func(g netip.Prefix) bool { return covers(g, a) }) {
			return refusal(wire.CausePrefixRight, "node %q may not advertise %v", p.node, a)
		}
		for _, other := range n.g.networks {
			for _, pl := range other.cfg.Pools {
				if pl.Overlaps(a) {
					return refusal(wire.CausePrefixInUse, "prefix %v overlaps pool %v of network %q", a, pl, other.cfg.Name)
				}
			}
		}
		for _, other := range n.g.networks {
			for mb := range n.g.members.advertising[other] {
				if mb.nodeID != p.nodeID && slices.ContainsFunc(mb.advertise, a.Overlaps) {
					return refusal(wire.CausePrefixInUse, "prefix %v overlaps one that node %q advertises", a, mb.node)
				}
			}
		}
		found, ifname, ok, err := n.g.m.host.Overlap(a, n.g.ours)
		if err == nil && ok {
			return refusal(wire.CausePrefixInUse, "prefix %v overlaps %v of the gateway (interface %s)", a, found, ifname)
		}
	}
	return nil
}

// refusal is a CDN 3 with a cause and one sentence for the peer.
func refusal(c wire.Cause, format string, args ...any) *wire.Result {
	return &wire.Result{Code: wire.CDNAdministrative, Cause: c, Text: fmt.Sprintf(format, args...)}
}

// stats are the counters of every session of the network in this process.
func (n *network) stats() iter.Seq2[session.ID, engine.Stats] {
	if n.dev == nil {
		return func(func(session.ID, engine.Stats) bool) {}
	}
	return n.dev.AllStats()
}
