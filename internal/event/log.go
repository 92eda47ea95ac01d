package event

// Keys of log attributes: the whole vocabulary. A test checks that every call
// to slog in the tree uses one of them.
const (
	KeyTunnel  = "tunnel"
	KeySession = "session"
	KeyRequest = "request"
	KeyNode    = "node"
	KeyUser    = "user"
	KeyNetwork = "network"
	KeyPeer    = "peer"
	KeyRemote  = "remote"
	KeyState   = "state"
	KeyFrom    = "from"
	KeyEvent   = "event"
	KeyCause   = "cause"
	KeyCode    = "code"
	KeyErr     = "err"
	KeyAttempt = "attempt"
	KeyIn      = "in"
	KeyMTU     = "mtu"
	KeyBytes   = "bytes"
)
