// Package config is the daemon's file, typed: every key, its default and what
// may stand there.
//
// A file is TOML. [Parse] reports everything that is wrong with it at once, each
// with the line and column of the key or value that it is about; key paths
// count tables from 1, so network[2].pools[1] is the first pool of the second
// [[network]]. Nothing outside the file is looked at: whether an address of this
// host overlaps a pool, or an interface is there, the manager finds out.
//
// Tunnels that `tunnelctl join` adds stand in files of their own under the
// state directory, since the administrator's file is never rewritten: see
// [ReadTunnels] and [Merge].
package config

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"
)

// DefaultDir is where the file and, beside it, the administrator's other files
// are, unless said otherwise; DefaultPath is the file itself.
const (
	DefaultDir  = "/etc/tunneld"
	FileName    = "tunneld.toml"
	DefaultPath = DefaultDir + "/" + FileName
)

// Engine names that [data] engine may have.
const (
	EngineNative    = "native"    // our own data plane
	EngineReference = "reference" // wireguard-go's
)

// Config is the whole file (tunneld.toml) with defaults filled in.
type Config struct {
	Node     Node
	Gateway  *Gateway // nil: this node listens to nobody
	Networks []Network
	Tunnels  []Tunnel // of the file; those that join wrote are read by ReadTunnels
	Data     Data

	file string // where it was read from, for the text of errors
}

// Node says who this machine is and where it keeps things.
type Node struct {
	Name     string
	StateDir string
	Socket   string
}

// Gateway makes this node listen.
type Gateway struct {
	Listen string // ADDR:PORT or :PORT; TCP for control, UDP for data
	Public string // HOST:PORT as nodes dial it

	TicketDir string // what is to outlive the state directory; empty: state_dir with "-tickets" behind it

	DrainOnStop time.Duration // how long SIGTERM lets nodes leave before the end; zero: not at all
}

// Network is what a gateway offers under a name.
type Network struct {
	Name       string
	Pools      []netip.Prefix // at most one of each family
	Routes     []netip.Prefix
	Interface  string // empty: the lowest free tnlN, kept
	Masquerade bool

	// What bounds each session, seen from the nodes: up is what they send.
	RateUp    Rate
	RateDown  Rate
	Direction string // of the names above

	Timers Timers
}

// Timers of a network's control connections and sessions.
type Timers struct {
	Hello   time.Duration
	Misses  int
	Grace   time.Duration
	Cooloff time.Duration

	// What ends a session whatever its ends do; zero: nothing does.
	Idle     time.Duration // without an inner packet in either direction
	Absolute time.Duration // from its beginning, over all resumes and restarts
	Reauth   time.Duration // since the node proved last who it is

	Extend time.Duration // how much longer than Absolute a session may live, in all, if its node asks for that; zero: not at all

	// What is agreed with nodes of how long a session lives after it was
	// refreshed last.
	Lifetime    time.Duration // at most, and for nodes that ask for none; zero: what the node asks for
	MinLifetime time.Duration // at least; zero: 90 s, or Lifetime where that is shorter
	Refresher   string        // "node" or "gateway", where the node names none
}

// Tunnel is what a node dials.
type Tunnel struct {
	Name         string
	Gateways     []string // HOST:PORT, tried in this order
	Network      string   // as the gateway names it; default: Name
	Interface    string   // empty: the lowest free tnlN, kept
	Auto         bool     // start with the daemon; default true
	Advertise    []netip.Prefix
	AcceptRoutes []netip.Prefix // nil: the pools and nothing else

	Lifetime  time.Duration // to ask for, between two refreshes; zero: the network's
	Refresher string        // "node" or "gateway"; empty: the network's
}

// The refreshers of sessions.
const (
	RefresherNode    = "node"
	RefresherGateway = "gateway"
)

// Data is the data plane.
type Data struct {
	Engine string // of the names above
	MTU    int    // of the inside, in octets

	// How often a node changes the keys of what it dialled.
	Rekey  time.Duration // of the data
	Redial time.Duration // of control, by a new transport beside the old one

	AllowSwap bool // keys may lie in memory that a swap could take in
	Offload   bool // the kernel may cut and join packets
}

// Default returns what stands where the file says nothing.
func Default() Config {
	return Config{
		Node: Node{StateDir: "/var/lib/tunneld", Socket: "/run/tunneld/tunneld.sock"},
		Data: Data{Engine: EngineNative, MTU: 1420, Rekey: time.Hour, Redial: time.Hour, Offload: true},
	}
}

// DefaultGateway returns the defaults of a [gateway] section.
func DefaultGateway() Gateway { return Gateway{Listen: ":443"} }

// DefaultTimers returns the defaults of [network.timers].
func DefaultTimers() Timers {
	return Timers{Hello: 20 * time.Second, Misses: 3, Grace: 24 * time.Hour, Cooloff: 15 * time.Minute, Refresher: RefresherNode}
}

// Load reads and parses the file at path.
func Load(path string) (Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("config: %w: write the file with `tunneld init`, or name another with --config", err)
	}
	return Parse(path, b)
}

// Parse reads a whole file; name is how errors call it. The error joins one
// *Problem for each thing that is wrong, in the order of the file; the Config is
// to be used only without error.
func Parse(name string, b []byte) (Config, error) {
	d, top, err := newDecoder(name, b)
	if err != nil {
		return Config{}, err
	}
	c := d.config(top)
	c.file = name
	d.validate(&c)
	return c, d.err()
}

// Validate checks a Config that was made by hand as Parse checks a file, all
// but the places.
func (c Config) Validate() error {
	d := &decoder{file: c.file}
	d.validate(&c)
	return d.err()
}

// config reads the file's sections.
func (d *decoder) config(top *table) Config {
	c := Default()
	if t := top.table("node"); t != nil {
		t.text("name", &c.Node.Name)
		t.text("state_dir", &c.Node.StateDir)
		t.text("socket", &c.Node.Socket)
		t.end()
	}
	if t := top.table("gateway"); t != nil {
		g := DefaultGateway()
		c.Gateway = &g
		t.text("listen", &g.Listen)
		t.text("public", &g.Public)
		t.text("ticket_dir", &g.TicketDir)
		t.duration("drain_on_stop", &g.DrainOnStop)
		t.end()
	}
	for _, t := range top.tables("network") {
		c.Networks = append(c.Networks, network(t))
	}
	for _, t := range top.tables("tunnel") {
		c.Tunnels = append(c.Tunnels, tunnel(t))
	}
	if t := top.table("data"); t != nil {
		t.text("engine", &c.Data.Engine)
		t.integer("mtu", &c.Data.MTU)
		t.duration("rekey", &c.Data.Rekey)
		t.duration("redial", &c.Data.Redial)
		t.boolean("allow_swap", &c.Data.AllowSwap)
		t.boolean("offload", &c.Data.Offload)
		t.end()
	}
	top.end()
	if c.Gateway != nil && c.Gateway.TicketDir == "" {
		c.Gateway.TicketDir = ticketDir(c.Node.StateDir)
	}
	return c
}

// ticketDir is the default beside a state directory.
func ticketDir(state string) string { return state + "-tickets" }

func network(t *table) Network {
	n := Network{Direction: DirectionDuplex, Timers: DefaultTimers()}
	t.text("name", &n.Name)
	t.prefixes("pools", &n.Pools)
	t.prefixes("routes", &n.Routes)
	t.text("interface", &n.Interface)
	t.boolean("masquerade", &n.Masquerade)
	t.rate("rate_up", &n.RateUp)
	t.rate("rate_down", &n.RateDown)
	t.text("direction", &n.Direction)
	if t := t.table("timers"); t != nil {
		t.duration("hello", &n.Timers.Hello)
		t.integer("misses", &n.Timers.Misses)
		t.duration("grace", &n.Timers.Grace)
		t.duration("cooloff", &n.Timers.Cooloff)
		t.duration("idle", &n.Timers.Idle)
		t.duration("absolute", &n.Timers.Absolute)
		t.duration("reauth", &n.Timers.Reauth)
		t.duration("extend", &n.Timers.Extend)
		t.duration("lifetime", &n.Timers.Lifetime)
		t.duration("min_lifetime", &n.Timers.MinLifetime)
		t.text("refresher", &n.Timers.Refresher)
		t.end()
	}
	t.end()
	return n
}

func tunnel(t *table) Tunnel {
	n := Tunnel{Auto: true}
	t.text("name", &n.Name)
	t.texts("gateways", &n.Gateways)
	n.Network = n.Name
	t.text("network", &n.Network)
	t.text("interface", &n.Interface)
	t.boolean("auto", &n.Auto)
	t.prefixes("advertise", &n.Advertise)
	t.prefixes("accept_routes", &n.AcceptRoutes)
	t.duration("lifetime", &n.Lifetime)
	t.text("refresher", &n.Refresher)
	t.end()
	return n
}

// sections is every key by the section it stands in, for hints.
var sections = map[string][]string{
	"the file's top":   {"node", "gateway", "network", "tunnel", "data"},
	"[node]":           {"name", "state_dir", "socket"},
	"[gateway]":        {"listen", "public", "ticket_dir", "drain_on_stop"},
	"[[network]]":      {"name", "pools", "routes", "interface", "masquerade", "rate_up", "rate_down", "direction", "timers"},
	"[network.timers]": {"hello", "misses", "grace", "cooloff", "idle", "absolute", "reauth", "extend", "lifetime", "min_lifetime", "refresher"},
	"[[tunnel]]":       {"name", "gateways", "network", "interface", "auto", "advertise", "accept_routes", "lifetime", "refresher"},
	"[data]":           {"engine", "mtu", "rekey", "redial", "allow_swap", "offload"},
}

// home returns the section in which key is at home, if there is exactly one.
func home(key string) (section string, ok bool) {
	for name, keys := range sections {
		if slices.Contains(keys, key) {
			if ok {
				return "", false
			}
			section, ok = name, true
		}
	}
	return section, ok
}
