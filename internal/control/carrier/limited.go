package carrier

import (
	"log/slog"
	"sync/atomic"
	"time"
)

// limited logs what strangers cause: one line a second at most, the rest is
// dropped.
type limited struct {
	log  *slog.Logger
	next atomic.Int64 // UnixNano of when a line is welcome again
}

func newLimited(log *slog.Logger) *limited {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &limited{log: log}
}

func (l *limited) warn(msg string, args ...any) {
	now, next := time.Now().UnixNano(), l.next.Load()
	if now < next || !l.next.CompareAndSwap(next, now+int64(time.Second)) {
		return
	}
	l.log.Warn(msg, args...)
}
