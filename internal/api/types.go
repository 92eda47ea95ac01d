package api

import (
	"context"
	"net/netip"
	"time"
)

// Manager is what the server needs of the daemon. Errors it returns are
// *Error; any other error is answered as Failed. Methods may be called from
// any goroutine and end early when ctx does.
type Manager interface {
	Version() Version
	Status(ctx context.Context) (Status, error)
	Sessions(ctx context.Context) ([]Session, error)
	Session(ctx context.Context, id string) (SessionDetail, error)
	KillSession(ctx context.Context, id, reason string) error
	// ReleaseSession lets the packets of a quarantined session pass.
	ReleaseSession(ctx context.Context, id string) error

	Invite(ctx context.Context, req InviteRequest) (InviteReply, error)
	Nodes(ctx context.Context) ([]Node, error)
	RevokeNode(ctx context.Context, name string) error
	// Drain has every node leave this gateway, in order, and refuses what is
	// new, until it is cancelled or the daemon ends.
	Drain(ctx context.Context, req DrainRequest) error

	Join(ctx context.Context, req JoinRequest) (JoinReply, error)
	// Up starts a tunnel and, with a wait above zero, returns when its
	// session is established or refused for good, or fails when wait is over.
	Up(ctx context.Context, tunnel string, wait time.Duration) (Tunnel, error)
	Down(ctx context.Context, tunnel string) error
	Leave(ctx context.Context, tunnel string) error
	// Suspend holds a tunnel's session, also over restarts, until Resume:
	// everything is kept, nothing passes.
	Suspend(ctx context.Context, tunnel string) error
	Resume(ctx context.Context, tunnel string) error
	// Extend asks the gateway to let a tunnel's session live longer; what it
	// grants is in ExpiresAt.
	Extend(ctx context.Context, tunnel string, by time.Duration) (Tunnel, error)

	// Events returns the remembered events and, with follow, a channel with
	// those after them, closed when the reader falls behind or when ctx has
	// ended and all before that was read. The caller reads it until then.
	Events(ctx context.Context, follow bool) ([]Event, <-chan Event, error)
}

// Code classifies an Error; it decides the exit status of tunnelctl.
type Code string

// The codes and the exit statuses they lead to.
const (
	Failed     Code = "failed"      // 1
	Usage      Code = "usage"       // 2
	NoSuch     Code = "no-such"     // 4
	NotAllowed Code = "not-allowed" // 5
	Stale      Code = "stale"       // 6: the session is at another serial than the request was made for
)

// Error is what a request failed with. Message is one sentence, lower case,
// that names the thing and the value; Hint, if any, is the way out.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Version says what a program is and what it was built from.
type Version struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Go       string `json:"go"`
}

// Status is the answer to `status`: a contract, see docs/operations.md. All
// keys are always there; unknown is null, lists are never null.
type Status struct {
	Node     string    `json:"node"`
	BootID   string    `json:"boot_id"`
	Engine   string    `json:"engine"` // of the data plane: native or reference
	Tunnels  []Tunnel  `json:"tunnels"`
	Networks []Network `json:"networks"`
	Problems []Problem `json:"problems"`
	Drain    *Drain    `json:"drain"` // null: this node is no gateway, or stays
	// KeyMemory is whether live keys could reach a disk.
	KeyMemory KeyMemory `json:"key_memory"`
}

// KeyMemory is where the live keys of the data plane lie: Locked, so that no
// swap takes them in, or why not, and the command that mends that. Swap is
// whether the machine has one; null: that is not known.
type KeyMemory struct {
	Locked bool    `json:"locked"`
	Swap   *bool   `json:"swap"`
	Why    *string `json:"why"`
	Mend   *string `json:"mend"`
}

// Tunnel is one tunnel this node dials.
type Tunnel struct {
	Name            string       `json:"name"`
	State           string       `json:"state"`
	Session         *string      `json:"session"`
	Addresses       []netip.Addr `json:"addresses"`
	Gateway         *string      `json:"gateway"`
	Path            *string      `json:"path"`
	Endpoint        *string      `json:"endpoint"`
	Interface       *string      `json:"interface"`
	MTU             *int         `json:"mtu"`
	KeyEpoch        *uint32      `json:"key_epoch"`
	Resumes         uint64       `json:"resumes"`
	LastHandshakeAt *time.Time   `json:"last_handshake_at"`
	RxBytes         uint64       `json:"rx_bytes"`
	TxBytes         uint64       `json:"tx_bytes"`
	Since           *time.Time   `json:"since"`

	Routes        []netip.Prefix `json:"routes"`
	RefusedRoutes []netip.Prefix `json:"refused_routes"`
	Advertise     []netip.Prefix `json:"advertise"`
	// DataAlive says whether the data path is known to work, apart from the
	// control connection; null when there is no session.
	DataAlive *bool `json:"data_alive"`
	// LastError is why the tunnel is not up, or was not at the last try.
	LastError *string `json:"last_error"`
	Enabled   bool    `json:"enabled"` // false after `down`
	// ExpiresAt is the earliest end of the session that is known, if nothing
	// moves it.
	ExpiresAt *time.Time `json:"expires_at"`
	Held      bool       `json:"held"` // by `suspend`, until `resume`
	// The lifetime that both ends agreed on, who of "node" and "gateway" refreshes
	// it and when that is due; null where there is none.
	LifetimeMillis *int64     `json:"lifetime_ms"`
	Refresher      *string    `json:"refresher"`
	RefreshAt      *time.Time `json:"refresh_at"`
	// Serial counts what somebody changed of the session; null without one.
	Serial *uint64 `json:"serial"`
	// Leaving is what this node does about a gateway that is about to go; null
	// when it stays.
	Leaving *Leaving `json:"leaving"`
}

// Leaving is when a tunnel moves to another gateway; To null: it has no other and
// waits for this one.
type Leaving struct {
	To *string    `json:"to"`
	At *time.Time `json:"at"`
}

// Drain is a gateway that is about to go: since when, where it sends its nodes
// (empty: to whatever other gateway each has), and how many sessions it has left.
type Drain struct {
	Since    time.Time `json:"since"`
	To       []string  `json:"to"`
	Sessions int       `json:"sessions"`
}

// Network is one network this gateway offers.
type Network struct {
	Name      string         `json:"name"`
	Interface string         `json:"interface"`
	Pools     []netip.Prefix `json:"pools"`
	Addresses []netip.Addr   `json:"addresses"`
	Routes    []netip.Prefix `json:"routes"`
	Sessions  int            `json:"sessions"`
	Leased    int            `json:"leased"`
	Limits                   // of each session
}

// Limits bound what passes a session, as its node sees it: up is what the node
// sends. Rates are bits a second, null: no bound. Direction is duplex, up or
// down, or none where a network and a node exclude each other's; null: not known
// at this end.
type Limits struct {
	RateUp    *uint64 `json:"rate_up"`
	RateDown  *uint64 `json:"rate_down"`
	Direction *string `json:"direction"`
}

// Drops are the packets of a session that were dropped since the daemon
// started, by cause.
type Drops struct {
	Gate      uint64 `json:"gate"`      // it was held, quarantined or closed
	Deadline  uint64 `json:"deadline"`  // it was over
	Direction uint64 `json:"direction"` // only the other one is open
	Rate      uint64 `json:"rate"`      // beyond it
	Source    uint64 `json:"source"`    // not the peer's
	NoKey     uint64 `json:"no_key"`    // a handshake was waited for in vain
	Congested uint64 `json:"congested"` // marked on the way
	Unsent    uint64 `json:"unsent"`    // no room in the kernel or the carrier
}

// Problem is something about this host that stops traffic, and its mending.
type Problem struct {
	Interface string `json:"interface"`
	What      string `json:"what"`
	Mend      string `json:"mend"`
}

// Session is one session as the gateway sees it, never a closed one.
type Session struct {
	Session         string       `json:"session"`
	Node            string       `json:"node"`
	User            *string      `json:"user"`
	Network         string       `json:"network"`
	State           string       `json:"state"`
	Addresses       []netip.Addr `json:"addresses"`
	Path            *string      `json:"path"`
	Endpoint        *string      `json:"endpoint"`
	KeyEpoch        *uint32      `json:"key_epoch"`
	Resumes         uint64       `json:"resumes"`
	LastHandshakeAt *time.Time   `json:"last_handshake_at"`
	RxBytes         uint64       `json:"rx_bytes"`
	TxBytes         uint64       `json:"tx_bytes"`
	Since           *time.Time   `json:"since"`
	ExpiresAt       *time.Time   `json:"expires_at"`
	Quarantined     bool         `json:"quarantined"` // nothing passes until `session release`, or until the book of nodes is back

	LifetimeMillis *int64     `json:"lifetime_ms"` // as of a Tunnel, with the two below
	Refresher      *string    `json:"refresher"`
	RefreshAt      *time.Time `json:"refresh_at"`
	Serial         *uint64    `json:"serial"` // null when it is over
}

// SessionDetail is `session show`: the session and its story, oldest first.
type SessionDetail struct {
	Session
	Advertise []netip.Prefix `json:"advertise"`
	History   []Event        `json:"history"`
	// Checkpoint is the serial that this end of the control connection stands
	// at: the peer's is the same when nothing is under way. Null when it is over.
	Checkpoint *uint64 `json:"checkpoint"`
	Limits
	// What this end received and what it was to send; null when it is over.
	RxDropped *Drops `json:"rx_dropped"`
	TxDropped *Drops `json:"tx_dropped"`
}

// Event is one line of `events --json`.
type Event struct {
	Time    time.Time `json:"time"`
	Event   string    `json:"event"`
	Session *string   `json:"session"`
	Node    *string   `json:"node"`
	Network *string   `json:"network"`
	Cause   *string   `json:"cause"`
	// Request names the wish behind it, the same at both ends; From is the
	// address of the transport that came to carry the session.
	Request *string `json:"request"`
	From    *string `json:"from"`
	// Of a session that is over: its inner octets over its whole life.
	RxBytes *uint64 `json:"rx_bytes"`
	TxBytes *uint64 `json:"tx_bytes"`
}

// InviteRequest asks for an invite code.
type InviteRequest struct {
	Node      string         `json:"node"`
	Networks  []string       `json:"networks"` // empty: every network of the gateway
	Advertise []netip.Prefix `json:"advertise"`
	TTLMillis int64          `json:"ttl_ms"`
	Replace   bool           `json:"replace"`

	// Limits of the node's sessions, spelt as in the configuration; empty: none.
	RateUp    string `json:"rate_up,omitempty"`
	RateDown  string `json:"rate_down,omitempty"`
	Direction string `json:"direction,omitempty"`
}

// InviteReply carries the code: one line, valid once until ExpiresAt.
type InviteReply struct {
	Code      string    `json:"code"`
	ExpiresAt time.Time `json:"expires_at"`
}

// JoinRequest enrols this node with an invite code.
type JoinRequest struct {
	Code      string `json:"code"`
	As        string `json:"as"`        // tunnel name; empty: the network's
	Interface string `json:"interface"` // empty: the lowest free tnlN
}

// JoinReply says what was written.
type JoinReply struct {
	Node    string         `json:"node"`
	Gateway string         `json:"gateway"`
	Tunnels []JoinedTunnel `json:"tunnels"`
}

// JoinedTunnel is one tunnel that join wrote.
type JoinedTunnel struct {
	Name   string         `json:"name"`
	File   string         `json:"file"`
	Routes []netip.Prefix `json:"routes"` // accepted from now on
}

// Node is one node a gateway has invited.
type Node struct {
	Name      string         `json:"name"`
	ID        *string        `json:"id"`
	State     string         `json:"state"` // invited, enrolled, revoked
	Networks  []string       `json:"networks"`
	Advertise []netip.Prefix `json:"advertise"`
	Sessions  int            `json:"sessions"`
	ExpiresAt *time.Time     `json:"expires_at"` // of the invite, or of the certificate
	Limits                   // beyond those of its networks
}

// TunnelRequest names the tunnel that `down`, `leave`, `suspend` and `resume` are about.
type TunnelRequest struct {
	Tunnel string `json:"tunnel"`
	Condition
}

// UpRequest starts a tunnel and waits for its session, for WaitMillis at most.
type UpRequest struct {
	Tunnel     string `json:"tunnel"`
	WaitMillis int64  `json:"wait_ms"`
}

// ExtendRequest asks for a longer life of a tunnel's session.
type ExtendRequest struct {
	Tunnel   string `json:"tunnel"`
	ByMillis int64  `json:"by_ms"`
	Condition
}

// KillRequest ends a session; Reason goes to the peer and into the record.
type KillRequest struct {
	Session string `json:"session"`
	Reason  string `json:"reason"`
	Condition
}

// ReleaseRequest lets a session out of quarantine.
type ReleaseRequest struct {
	Session string `json:"session"`
}

// DrainRequest announces that a gateway goes, within OverMillis, or with Cancel
// that it stays.
type DrainRequest struct {
	To         []string `json:"to"` // HOST:PORT of the gateways to go to; empty: whatever other each node has
	OverMillis int64    `json:"over_ms"`
	Cancel     bool     `json:"cancel"`
}

// RevokeRequest ends a node's rights and its sessions.
type RevokeRequest struct {
	Node string `json:"node"`
}
