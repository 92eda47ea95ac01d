package event

import (
	"log/slog"

	"tunneld/internal/session"
)

// Keys of log attributes: the whole vocabulary. A test checks that every call
// to slog in the tree uses one of them.
const (
	KeyTunnel   = "tunnel"
	KeySession  = "session"
	KeyRequest  = "request"
	KeyNode     = "node"
	KeyUser     = "user"
	KeyNetwork  = "network"
	KeyPeer     = "peer"
	KeyRemote   = "remote"
	KeyState    = "state"
	KeyFrom     = "from"
	KeyEvent    = "event"
	KeyBoot     = "boot_id"
	KeyCause    = "cause"
	KeyCode     = "code"
	KeyErr      = "err"
	KeyAttempt  = "attempt"
	KeyIn       = "in"
	KeyMTU      = "mtu"
	KeyBytes    = "bytes"
	KeyPackets  = "packets"
	KeyKeypairs = "keypairs"
)

// Attributes that are left out where there is nothing to say.

// Request names the wish behind a line.
func Request(id session.ID) slog.Attr {
	if id.IsZero() {
		return slog.Attr{}
	}
	return slog.String(KeyRequest, id.String())
}

// From is where a transport came from.
func From(address string) slog.Attr {
	if address == "" {
		return slog.Attr{}
	}
	return slog.String(KeyFrom, address)
}

// Bytes are all octets of a session that is over.
func Bytes(c *Counters) slog.Attr {
	if c == nil {
		return slog.Attr{}
	}
	return slog.Uint64(KeyBytes, c.RxBytes+c.TxBytes)
}
