// Package host touches the kernel: links, addresses, routes, rules, packet
// filter, and news of network changes. It knows interfaces by name and nothing
// of sessions.
package host

import (
	"context"
	"errors"
	"net/netip"
)

// Mark is the fwmark of the tunnel's own packets (UDP data and TCP control), by
// which the rule that sends everything through the tunnel leaves them out.
const Mark = 0x746e

// Table is the routing table that holds default routes through tunnels, and
// Protocol the number that marks every route and rule of ours.
const (
	Table    = 5182
	Protocol = 99
)

// Errors that callers branch on.
var (
	ErrNotPermitted = errors.New("host: not permitted (CAP_NET_ADMIN is missing)")
	ErrNoInterface  = errors.New("host: no such interface")
)

// Host is the kernel as the manager sees it. Methods may be called from any
// goroutine; one that returns nil has taken effect. Each Set makes things
// exactly as its arguments say, and saying the same again changes nothing.
type Host interface {
	// SetLink gives the interface its addresses (each with its own prefix
	// length; the first of a family is the source its routes prefer) and MTU,
	// and sets it up. Link-local addresses are left alone.
	SetLink(ifname string, addresses []netip.Prefix, mtu int) error
	// SetRoutes makes our routes through the interface exactly these. A
	// default route goes into Table with a rule that leaves out marked
	// packets and everything the main table knows better; the others go into
	// the main table. A prefix that another interface has already is an error,
	// and then nothing changes. Routes vanish with their interface; rules are
	// taken back by SetRoutes with none, also when the interface is gone.
	SetRoutes(ifname string, routes []netip.Prefix) error
	// SetMasquerade rewrites the source of packets that come from inside and
	// leave by another interface than ifname, for hosts without a route
	// back. None takes it back.
	SetMasquerade(ifname string, inside []netip.Prefix) error
	// Problems says what on this host stops packets between ifname and the
	// others: forwarding that is off, a filter that drops. Empty: none found.
	Problems(ifname string) ([]Problem, error)
	// Swap reports whether the machine has a swap now.
	Swap() (on bool, err error)
	// FreeInterface returns the lowest free name prefix0, prefix1, ….
	FreeInterface(prefix string, taken func(string) bool) (string, error)
	// Overlap returns an address or a route of this host that overlaps p, the
	// widest if there are several, and its interface; ok is false if there is
	// none. Interfaces for which skip answers true are not looked at, nor are
	// default routes.
	Overlap(p netip.Prefix, skip func(ifname string) bool) (found netip.Prefix, ifname string, ok bool, err error)
	// Fingerprint names the present network, as a Change does.
	Fingerprint() (string, error)
	// Watch sends a value after each change of addresses, links or routes
	// that are not ours, until ctx ends; then the channel is closed. It never
	// misses one: after an overrun it sends one and goes on. A reader that is
	// busy gets the changes meanwhile as one.
	Watch(ctx context.Context) (<-chan Change, error)
	// FlushConntrack makes the kernel forget the connections it tracks from or
	// to these addresses, so that the next tenant of an address inherits none
	// of them. A kernel that tracks no connections has nothing to forget: nil.
	FlushConntrack(addrs []netip.Addr) error
	// Cleanup takes our routes, rules and filters for the interface off the
	// host, and whatever a killed process left behind: rules whose table is
	// empty, filters that name an interface which is gone. With an empty name
	// it takes off only what was left behind. The interface and its addresses
	// belong to the engine and stay.
	Cleanup(ifname string) error
}

// Change tells of a network change.
type Change struct {
	// Fingerprint names the present default routes, and the addresses and
	// carrier of the interfaces that lead to a router (of all interfaces but
	// ours, in a family without any router); two changes with the same
	// Fingerprint need no new dial. It is for comparing and for the log.
	Fingerprint string
}

// Problem is one thing on this host that stops traffic, and what mends it.
type Problem struct {
	What   string // "IPv4 forwarding is off"
	Mended string // the command: "sysctl -w net.ipv4.ip_forward=1"
}
