package tunnel

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/event"
)

// tracer writes every control message of the daemon to one capture file. A file
// that cannot be written any more ends the trace and nothing else.
type tracer struct {
	log *slog.Logger

	mu    sync.Mutex // guards everything below
	trace *wire.Trace
	over  bool
}

// conn returns c, with what is said on it traced; dialled says by whom it was
// begun. Without a tracer it is c itself.
func (t *tracer) conn(c net.Conn, dialled bool) net.Conn {
	if t == nil {
		return c
	}
	return &tracedConn{Conn: c, tracer: t, path: wire.Path{Local: addrPortOf(c.LocalAddr()), Remote: addrPortOf(c.RemoteAddr()), Dialled: dialled}}
}

func (t *tracer) write(p wire.Path, sent bool, message []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return
	}
	if err := t.trace.Write(p, sent, time.Now(), message); err != nil {
		t.over = true
		t.log.Error("trace ended", event.KeyErr, fmt.Errorf("%w; sessions go on without it, a restart begins it anew", err))
	}
}

// tracedConn shows a tracer what passes through a control stream. As any
// net.Conn it may be read and written at the same time.
type tracedConn struct {
	net.Conn
	tracer *tracer
	path   wire.Path
	in     wire.Splitter // of the goroutine that reads
	out    wire.Splitter // of the one that writes
}

func (c *tracedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.in.Feed(b[:n], func(message []byte) { c.tracer.write(c.path, false, message) })
	return n, err
}

// Write traces before it writes, so that a message stands before its answer.
func (c *tracedConn) Write(b []byte) (int, error) {
	c.out.Feed(b, func(message []byte) { c.tracer.write(c.path, true, message) })
	return c.Conn.Write(b)
}

// addrPortOf is a as address and port, without zone; the zero AddrPort if it has
// none.
func addrPortOf(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
