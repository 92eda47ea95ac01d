package api

import (
	"context"
	"log/slog"
	"net"
	"sync"

	"tunneld/internal/event"
)

// listener hands out a bounded number of connections at a time and learns of
// each who is behind it.
type listener struct {
	net.Listener
	slots    chan struct{}
	closed   chan struct{}
	once     sync.Once
	identify func(net.Conn) (peer, error)
	log      *slog.Logger
}

func (s *server) newListener(l net.Listener) *listener {
	return &listener{
		Listener: l,
		slots:    make(chan struct{}, maxConns),
		closed:   make(chan struct{}),
		identify: s.identify,
		log:      s.log,
	}
}

// Accept waits for a free slot and then for a connection. A caller whom the
// kernel does not name is nobody.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	p, err := l.identify(c)
	if err != nil {
		l.log.Warn("local caller unknown", event.KeyErr, err)
	}
	return &conn{Conn: c, peer: p, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close ends Accept, also one that waits for a slot.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// conn is a connection with the name of its other end. Its slot is free again
// when it is closed.
type conn struct {
	net.Conn
	peer    peer
	release func()
}

func (c *conn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

type peerKey struct{}

// withPeer lets requests know whose connection they came by.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	if c, ok := c.(*conn); ok {
		return context.WithValue(ctx, peerKey{}, c.peer)
	}
	return ctx
}

func peerFrom(ctx context.Context) peer {
	if p, ok := ctx.Value(peerKey{}).(peer); ok {
		return p
	}
	return nobody
}
