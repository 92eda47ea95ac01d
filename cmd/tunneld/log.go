package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
)

// newLog writes text to stderr: with times for people, or for the journal with
// the priorities it understands in front (sd-daemon(3)) and no times, since it
// has its own.
func newLog(stderr io.Writer, level slog.Level, journal bool) *slog.Logger {
	if !journal {
		return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	}
	w := &priorityWriter{w: stderr}
	text := slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: withoutTime})
	return slog.New(&priorityHandler{Handler: text, w: w})
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// priorityHandler puts the priority of a record in front of its line.
type priorityHandler struct {
	slog.Handler
	w *priorityWriter
}

func (h *priorityHandler) Handle(ctx context.Context, r slog.Record) error {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.w.priority = priority(r.Level)
	return h.Handler.Handle(ctx, r)
}

func (h *priorityHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &priorityHandler{h.Handler.WithAttrs(attrs), h.w}
}

func (h *priorityHandler) WithGroup(name string) slog.Handler {
	return &priorityHandler{h.Handler.WithGroup(name), h.w}
}

// priorityWriter is written to by the handler below, one record a call.
type priorityWriter struct {
	mu       sync.Mutex // guards everything below, for as long as a record is handled
	w        io.Writer
	priority int
}

func (w *priorityWriter) Write(line []byte) (int, error) {
	if _, err := fmt.Fprintf(w.w, "<%d>%s", w.priority, line); err != nil {
		return 0, err
	}
	return len(line), nil
}

// priority is a level as syslog(3) numbers it.
func priority(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}

// toJournal reports whether stderr is a stream of the journal. The variable
// names the device and inode of that stream, because programs pass their
// environment on but may send stderr elsewhere (systemd.exec(5)).
func toJournal(stderr io.Writer, stream string) bool {
	f, ok := stderr.(*os.File)
	if !ok || stream == "" {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && stream == streamOf(st)
}

// streamOf writes a file's device and inode as JOURNAL_STREAM does.
func streamOf(st *syscall.Stat_t) string { return fmt.Sprintf("%d:%d", st.Dev, st.Ino) }
