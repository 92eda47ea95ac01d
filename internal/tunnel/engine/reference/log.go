package reference

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/device"

	"tunneld/internal/event"
)

// A notice is what a log line of wireguard-go says of a peer.
type notice int

const (
	sendsHandshake notice = 1 + iota // and waits before the next
	hasResponse
	gaveUp
)

// notices are the formats of wireguard-go's log lines that say so; the first
// argument is the *device.Peer. A test holds them, because no other way tells.
var notices = map[string]notice{
	"%v - Sending handshake initiation":                            sendsHandshake,
	"%v - Sending handshake response":                              sendsHandshake,
	"%v - Received handshake response":                             hasResponse,
	"%s - Handshake did not complete after %d attempts, giving up": gaveUp,
}

// newLogger hands wireguard-go's lines to log: its errors as warnings, at most
// a few in a row since peers cause them, the rest at debug. heard is told the
// notices.
func newLogger(log *slog.Logger, heard func(*device.Peer, notice)) *device.Logger {
	limit := rate.NewLimiter(rate.Every(10*time.Second), 5)
	return &device.Logger{
		Verbosef: func(format string, args ...any) {
			if what, ok := notices[format]; ok {
				if peer, ok := args[0].(*device.Peer); ok {
					heard(peer, what)
				}
			}
			if log.Enabled(context.Background(), slog.LevelDebug) {
				log.Debug("wireguard", event.KeyEvent, fmt.Sprintf(format, args...))
			}
		},
		Errorf: func(format string, args ...any) {
			if limit.Allow() {
				log.Warn("wireguard complains", event.KeyErr, fmt.Sprintf(format, args...))
			}
		},
	}
}
