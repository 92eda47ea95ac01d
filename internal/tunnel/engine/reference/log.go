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

// Formats of wireguard-go's log lines that say when it began to wait before
// the next initiation; the first argument is the *device.Peer. A test holds
// them, because no other way tells.
const (
	formatSendingInitiation = "%v - Sending handshake initiation"
	formatSendingResponse   = "%v - Sending handshake response"
)

// newLogger hands wireguard-go's lines to log: its errors as warnings, at most
// a few in a row since peers cause them, the rest at debug. armed is called
// when a handshake message is about to be sent to a peer.
func newLogger(log *slog.Logger, armed func(*device.Peer)) *device.Logger {
	limit := rate.NewLimiter(rate.Every(10*time.Second), 5)
	return &device.Logger{
		Verbosef: func(format string, args ...any) {
			if format == formatSendingInitiation || format == formatSendingResponse {
				if peer, ok := args[0].(*device.Peer); ok {
					armed(peer)
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
