// Package config is the daemon's file, typed: every key, its default and what
// may stand there.
package config

import (
	"net/netip"
	"time"
)

// Config is the whole file (tunneld.toml) with defaults filled in.
type Config struct {
	Node     Node
	Gateway  *Gateway // nil: this node listens to nobody
	Networks []Network
	Tunnels  []Tunnel // of the file; those that join wrote are read by ReadTunnels
	Data     Data
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
}

// Network is what a gateway offers under a name.
type Network struct {
	Name       string
	Pools      []netip.Prefix // at most one of each family
	Routes     []netip.Prefix
	Interface  string
	Masquerade bool
	Timers     Timers
}

// Timers of a network's control connections and sessions.
type Timers struct {
	Hello   time.Duration
	Misses  int
	Grace   time.Duration
	Cooloff time.Duration
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
}

// Data is the data plane.
type Data struct {
	Engine string // "reference"
	MTU    int
}
