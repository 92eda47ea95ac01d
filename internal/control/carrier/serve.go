package carrier

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"tunneld/internal/event"
)

// refusalTimeout is how long a refused peer may take to read the alert that says
// why. It still holds its slot, and its setup time still runs.
const refusalTimeout = time.Second

var errEnrolBusy = errors.New("too many enrolments at once")

// Server lets nodes in. Its fields must not change while Serve runs.
type Server struct {
	// Identity is asked in every handshake, so that a renewed certificate or
	// a new revocation counts from the next one on. It must not block.
	Identity func() Identity
	Limits   Limits
	Handler  Handler
	Log      *slog.Logger // nil: nothing is logged

	now func() time.Time // for tests; nil: time.Now
}

// Serve accepts transports from l, which it owns, until ctx ends or l is
// closed; it returns when everything it started is over. Transports that nobody
// has authenticated are cut when ctx ends; a Handler sees its context end and
// has the time to say goodbye. A transport that a Handler left open when it
// returned stays open until its owner closes it or ctx ends.
//
// The error is nil when ctx ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	lim := s.Limits.withDefaults()
	sv := &serving{
		Server:   s,
		limits:   lim,
		halfOpen: newSlots(lim.HalfOpen, lim.HalfOpen-lim.HalfOpen/2, lim.PerPrefix),
		// Half for one prefix: whoever sits on enrolments leaves room.
		enrolments: newSlots(lim.Enrolments, lim.Enrolments, max(1, lim.Enrolments/2)),
		log:        newLimited(s.Log),
	}
	defer sv.wg.Wait() // runs last
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer l.Close()
	defer stop()

	for delay := time.Duration(0); ; {
		nc, err := l.Accept()
		switch {
		case err == nil:
			delay = 0
			sv.admit(ctx, nc)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on %v: %w", l.Addr(), err)
		default: // out of descriptors, or a peer that left: neither is for good
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			sv.log.warn("accept", event.KeyErr, err)
			pause(ctx, delay)
		}
	}
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// serving is one run of Serve.
type serving struct {
	*Server
	limits     Limits
	halfOpen   *slots
	enrolments *slots
	log        *limited
	wg         sync.WaitGroup
}

// admit starts the transport if there is room for it, and else closes it
// without a word. The check comes before the goroutine, so that a flood of
// connections costs no more than their accept.
func (s *serving) admit(ctx context.Context, nc net.Conn) {
	addr := remoteAddr(nc)
	release, ok := s.halfOpen.take(addr, s.limits.Known(addr))
	if !ok {
		s.log.warn("transport refused", event.KeyRemote, nc.RemoteAddr(), event.KeyCause, "too many are being set up")
		reset(nc)
		return
	}
	s.wg.Go(func() {
		defer release()
		s.serve(ctx, nc, release)
	})
}

// serve sees one transport through. release gives back its half-open slot.
func (s *serving) serve(ctx context.Context, nc net.Conn, release func()) {
	sock := newSocket(nc, s.limits.SetupBytes)
	defer sock.Close()
	sock.SetDeadline(time.Now().Add(s.limits.SetupTime)) // up to the first stream
	stop := context.AfterFunc(ctx, func() { sock.Close() })
	defer stop()

	var enrolment func()
	t := tls.Server(sock, s.config(remoteAddr(nc), &enrolment))
	err := handshake(t)
	if enrolment != nil {
		defer enrolment()
	}
	if err != nil {
		s.log.warn("transport refused", event.KeyRemote, nc.RemoteAddr(), event.KeyErr, err)
		sock.drain(refusalTimeout)
		return
	}
	switch t.ConnectionState().NegotiatedProtocol {
	case ALPNControl:
		sock.admit()
		s.control(ctx, t, sock, func() {
			stop()
			sock.SetDeadline(time.Time{})
			release()
		})
	case ALPNEnrol:
		c := newEnrolConn(t, sock)
		defer c.Close()
		s.Handler.Enrol(ctx, c)
	}
}

// handshake has a goroutine of its own, for the sake of its stack: what TLS needs of
// it the transport would keep for life.
// It ends with the socket.
func handshake(t *tls.Conn) error {
	done := make(chan error)
	go func() { done <- t.Handshake() }()
	return <-done
}

// config chooses by ALPN in the ClientHello. What one transport negotiated is
// fixed with the configuration it got: each knows one protocol, and the one for
// enrolment leads to Handler.Enrol and to nothing else. Whoever offers both
// gets control and must show a certificate.
func (s *serving) config(from netip.Addr, enrolment *func()) *tls.Config {
	now := s.clock()
	c := baseConfig(now, ALPNControl)
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		switch {
		case slices.Contains(hello.SupportedProtos, ALPNControl):
			return serveConfig(s.Identity(), now), nil
		case !slices.Contains(hello.SupportedProtos, ALPNEnrol):
			return nil, errNoALPN
		}
		if *enrolment == nil { // a second ClientHello may follow a retry request
			release, ok := s.enrolments.take(from, true)
			if !ok {
				return nil, errEnrolBusy
			}
			*enrolment = release
		}
		return enrolServeConfig(s.Identity(), now), nil
	}
	return c
}

func (s *Server) clock() func() time.Time {
	if s.now != nil {
		return s.now
	}
	return time.Now
}

// control runs yamux on an authenticated transport until it is over. admitted
// is called when the first stream is there.
func (s *serving) control(ctx context.Context, t *tls.Conn, sock *socket, admitted func()) {
	l := newLink(t, sock)
	mux, err := yamux.Server(l, muxConfig())
	if err != nil {
		s.log.warn("transport refused", event.KeyRemote, sock.RemoteAddr(), event.KeyErr, err)
		return
	}
	defer mux.Close()
	stream, err := mux.AcceptStream() // ends with the socket's deadline
	if err != nil {
		s.log.warn("no control stream", event.KeyRemote, sock.RemoteAddr(), event.KeyErr, l.cause())
		return
	}
	mux.GoAway() // yamux refuses further streams by itself from now on
	admitted()

	ended := make(chan struct{})
	c := &conn{Stream: stream, mux: mux, link: l, state: t.ConnectionState(), ended: ended}
	var handler sync.WaitGroup
	defer handler.Wait()
	handler.Go(func() { s.Handler.Control(ctx, c) })
	cut := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cut)
		timer := time.NewTimer(closeTimeout)
		defer timer.Stop()
		select {
		case <-mux.CloseChan(): // its owner was first
		case <-timer.C:
			c.Close()
		}
	})
	defer func() {
		if !stop() {
			<-cut
		}
	}()
	defer close(ended) // before the waits
	refuseStreams(mux)
}

// refuseStreams keeps the peer at its one stream until the transport ends: it
// closes what came before the go-away.
func refuseStreams(mux *yamux.Session) {
	for {
		extra, err := mux.AcceptStream()
		if err != nil {
			return
		}
		extra.Close()
	}
}
