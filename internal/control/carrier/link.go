package carrier

import (
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// closeTimeout bounds every orderly end: our last words are sent, and the
// peer's end is awaited for as long as this.
const closeTimeout = time.Second

// link is what yamux writes to and reads from: TLS over a socket.
//
// It repairs three habits of yamux v0.1.2. A frame is written as header and body
// apart, which would be two TLS records and two system calls: the header is
// held and joined to its body. So are the frames that open a stream and refuse
// others: they leave with the first message. And between the start of a shutdown and the
// return of Close here, blocked readers of streams spin: Close shuts the socket
// and nothing else, since tls.Conn.Close may wait 5 s for its close_notify.
type link struct {
	tls    *tls.Conn
	sock   *socket
	frames frames // of the reader
	held   []byte // of the writer: what waits for the end of a frame's body
	body   bool   // of the writer: the last header's body comes next
	begun  bool   // of the writer: a message has left

	closing atomic.Bool   // yamux's own frames go nowhere any more
	gone    chan struct{} // closed when reading is over
	once    sync.Once
	mu      sync.Mutex
	readErr error // why reading is over; mu
	sendErr error // what broke writing; mu
}

func newLink(t *tls.Conn, s *socket) *link {
	return &link{tls: t, sock: s, gone: make(chan struct{})}
}

// Read has one caller, yamux's receive loop.
func (l *link) Read(p []byte) (int, error) {
	n, err := l.tls.Read(p)
	if n > 0 {
		if serr := l.frames.scan(p[:n]); serr != nil {
			n, err = 0, serr
		}
	}
	if err != nil {
		l.ended(err)
	}
	return n, err
}

// Write has one caller, yamux's send loop.
func (l *link) Write(p []byte) (int, error) {
	if l.closing.Load() {
		return len(p), nil
	}
	header := !l.body
	l.body = header && bodyFollows(p)
	if l.body || header && !l.begun {
		l.held = append(l.held, p...)
		return len(p), nil
	}
	l.begun = true
	out := p
	if len(l.held) > 0 {
		out = append(l.held, p...)
		l.held = out[:0]
	}
	if _, err := l.tls.Write(out); err != nil {
		l.writeFailed(err)
		return 0, err
	}
	return len(p), nil
}

// writeFailed gives the reader a moment before yamux closes everything: a peer
// that refused us has said why, in octets that are still unread.
func (l *link) writeFailed(err error) {
	l.mu.Lock()
	if l.sendErr == nil {
		l.sendErr = err
	}
	l.mu.Unlock()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-l.gone:
	case <-timer.C:
	}
}

// ended notes that nothing more will be read.
func (l *link) ended(err error) {
	l.once.Do(func() {
		l.mu.Lock()
		l.readErr = err
		l.mu.Unlock()
		close(l.gone)
	})
}

// Close cuts: yamux calls it, and only in a shutdown.
func (l *link) Close() error {
	err := l.sock.Close()
	l.ended(net.ErrClosed)
	return err
}

// finish ends the transport so that what was written arrives: close_notify and
// FIN go out, then the peer's end is awaited, all within closeTimeout. A
// transport that is broken already is only closed.
func (l *link) finish() {
	l.closing.Store(true)
	over := make(chan struct{})
	timer := time.AfterFunc(closeTimeout, func() {
		l.sock.Close() // also ends a write that holds up CloseWrite
		close(over)
	})
	defer timer.Stop()
	if l.cause() == nil {
		l.tls.CloseWrite()
		l.sock.closeWrite()
		select {
		case <-l.gone:
		case <-over:
		}
	}
	l.sock.Close()
}

// cause is what ended the transport, if anything has: what the peer said before
// what our writes met.
func (l *link) cause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if broken(l.readErr) || l.sendErr == nil {
		return l.readErr
	}
	return l.sendErr
}

// LocalAddr and RemoteAddr are the socket's; yamux asks for them in log lines.
func (l *link) LocalAddr() net.Addr  { return l.sock.LocalAddr() }
func (l *link) RemoteAddr() net.Addr { return l.sock.RemoteAddr() }
