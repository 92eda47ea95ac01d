package carrier

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/yamux"
)

// noControl fails the test when anything reaches Control.
func (g *gateway) noControl() {
	g.t.Helper()
	g.stop()
	select {
	case c := <-g.in.control:
		g.t.Errorf("%v reached Control", c.RemoteAddr())
	default:
	}
}

// rawTLS is the node's configuration, for a test to spoil.
func (g *gateway) rawTLS() *tls.Config { return dialConfig(g.node().Identity, time.Now) }

// handshake runs TLS and then reads: in TLS 1.3 a refusal comes that late.
func (g *gateway) handshake(cfg *tls.Config) (*tls.Conn, error) {
	g.t.Helper()
	c, err := tls.Dial("tcp", g.addr, cfg)
	if err != nil {
		return nil, err
	}
	g.t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(testTimeout))
	_, err = c.Read(make([]byte, 1))
	return c, err
}

func TestStrangersAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(*tls.Config){
		"TLS 1.2":        func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		"X25519 alone":   func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} },
		"no certificate": func(c *tls.Config) { c.GetClientCertificate = nil },
		"no ALPN":        func(c *tls.Config) { c.NextProtos, c.VerifyConnection = nil, nil },
		"another ALPN":   func(c *tls.Config) { c.NextProtos = []string{"h2"} },
		"both, no certificate": func(c *tls.Config) {
			c.NextProtos = []string{ALPNEnrol, ALPNControl}
			c.GetClientCertificate = nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, func(s *Server, in *inbox) {
				s.Limits.SetupTime = time.Minute // its end would look like a refusal
				in.enrol = func(context.Context, EnrolConn) { t.Error("reached Enrol") }
			})
			cfg := g.rawTLS()
			spoil(cfg)
			if _, err := g.handshake(cfg); err == nil || isTimeout(err) {
				t.Errorf("handshake = %v, want a refusal", err)
			}
			g.noControl()
		})
	}
}

// TestConfigurations: what every handshake is bound to, on each configuration
// that can take part in one.
func TestConfigurations(t *testing.T) {
	id := newAuthority(t, "home").identity("gateway", "gw", "node")
	var none func()
	sv := &serving{Server: &Server{Identity: func() Identity { return id }}, enrolments: newSlots(1, 1, 1)}
	outer := sv.config(netip.Addr{}, &none)
	chosen := func(alpn ...string) *tls.Config {
		c, err := outer.GetConfigForClient(&tls.ClientHelloInfo{SupportedProtos: alpn})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	control := chosen(ALPNEnrol, ALPNControl)
	if control.ClientAuth != tls.RequireAndVerifyClientCert || control.ClientCAs == nil {
		t.Errorf("control has ClientAuth %v, CAs %v", control.ClientAuth, control.ClientCAs)
	}
	for name, c := range map[string]struct {
		cfg  *tls.Config
		alpn string
	}{
		"outer":       {outer, ALPNControl},
		"control":     {control, ALPNControl},
		"enrol":       {chosen(ALPNEnrol), ALPNEnrol},
		"dial":        {dialConfig(id, time.Now), ALPNControl},
		"dial, enrol": {enrolDialConfig(id.Verify, time.Now), ALPNEnrol},
	} {
		cfg := c.cfg
		if cfg.MinVersion != tls.VersionTLS13 || !cfg.SessionTicketsDisabled || cfg.ClientSessionCache != nil {
			t.Errorf("%s: version %x, tickets disabled %v, cache %v", name, cfg.MinVersion, cfg.SessionTicketsDisabled, cfg.ClientSessionCache)
		}
		if !slices.Equal(cfg.CurvePreferences, []tls.CurveID{tls.X25519MLKEM768}) || !slices.Equal(cfg.NextProtos, []string{c.alpn}) {
			t.Errorf("%s: key exchange %v, ALPN %q", name, cfg.CurvePreferences, cfg.NextProtos)
		}
		if cfg == outer {
			continue // chooses, and is never used itself
		}
		for _, cs := range []tls.ConnectionState{{}, {NegotiatedProtocol: "h2"}, {NegotiatedProtocol: c.alpn, DidResume: true}} {
			if err := cfg.VerifyConnection(cs); err == nil {
				t.Errorf("%s: VerifyConnection(%q, resumed %v) = nil", name, cs.NegotiatedProtocol, cs.DidResume)
			}
		}
	}
}

// TestNoTickets: a client with a cache, and a second connection with what it
// may have cached.
func TestNoTickets(t *testing.T) {
	var identities atomic.Int32
	g := startGateway(t, func(s *Server, _ *inbox) {
		id := s.Identity()
		s.Identity = func() Identity { identities.Add(1); return id }
	})
	cache := &countingCache{ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	cfg := g.rawTLS()
	cfg.SessionTicketsDisabled, cfg.ClientSessionCache, cfg.ServerName = false, cache, "gw"
	for range 3 {
		c, err := tls.Dial("tcp", g.addr, cfg)
		if err != nil {
			t.Fatal(err)
		}
		// The answer to the first stream comes after any ticket would have.
		mux, err := yamux.Client(c, muxConfig())
		if err != nil {
			t.Fatal(err)
		}
		stream, err := mux.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		gw := g.accept()
		gw.Write([]byte("x"))
		if _, err := io.ReadFull(stream, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if c.ConnectionState().DidResume {
			t.Error("a TLS session was resumed")
		}
		mux.Close()
		gw.Close()
	}
	if n := cache.puts.Load(); n != 0 {
		t.Errorf("%d tickets were given out", n)
	}
	if n := identities.Load(); n != 3 {
		t.Errorf("the identity was asked for %d times in 3 handshakes", n)
	}
}

type countingCache struct {
	tls.ClientSessionCache
	puts atomic.Int32
}

func (c *countingCache) Put(key string, cs *tls.ClientSessionState) {
	if cs != nil {
		c.puts.Add(1)
	}
	c.ClientSessionCache.Put(key, cs)
}

// TestEnrolmentIsNoWayIn: a stream of the enrolment protocol that speaks yamux
// like a node stays what it is.
func TestEnrolmentIsNoWayIn(t *testing.T) {
	seen := make(chan []byte, 1)
	g := startGateway(t, func(_ *Server, in *inbox) {
		in.enrol = func(_ context.Context, c EnrolConn) {
			b := make([]byte, frameHeaderLen)
			io.ReadFull(c, b)
			seen <- b
		}
	})
	c, err := new(Dialer).DialEnrol(t.Context(), g.addr, wantRole("gateway"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	mux, err := yamux.Client(c, muxConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer mux.Close()
	mux.OpenStream()
	select {
	case <-seen:
	case <-time.After(testTimeout):
		t.Error("nothing reached Enrol")
	}
	g.noControl()
}

func TestEnrolmentSlots(t *testing.T) {
	var at, peak atomic.Int32
	g := startGateway(t, func(s *Server, in *inbox) {
		s.Limits = Limits{Enrolments: 4, SetupTime: time.Second}
		in.enrol = func(_ context.Context, c EnrolConn) {
			n := at.Add(1)
			defer at.Add(-1)
			for p := peak.Load(); n > p && !peak.CompareAndSwap(p, n); p = peak.Load() {
			}
			io.Copy(io.Discard, c) // a peer that never asks, until the setup time ends
		}
	})
	var wg sync.WaitGroup
	var refused atomic.Int32
	for i := range 12 {
		wg.Go(func() {
			c, err := tlsFrom(t, i/4, g.addr, enrolDialConfig(wantRole("gateway"), time.Now))
			if err != nil {
				refused.Add(1)
				return
			}
			defer c.Close()
			c.SetReadDeadline(time.Now().Add(testTimeout))
			if _, err := c.Read(make([]byte, 1)); isTimeout(err) {
				t.Error("an enrolment outlives the setup time")
			}
		})
	}
	wg.Wait()
	if peak.Load() > 4 || refused.Load() < 8 {
		t.Errorf("%d enrolments at once, %d of 12 refused, want at most 4 and at least 8", peak.Load(), refused.Load())
	}
}

// from dials addr from host n of 127/8: all of them are ours.
func from(t *testing.T, n int, addr string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(n>>8), byte(n))}, Timeout: testTimeout}
	return d.DialContext(t.Context(), "tcp", addr)
}

func tlsFrom(t *testing.T, n int, addr string, cfg *tls.Config) (*tls.Conn, error) {
	nc, err := from(t, n, addr)
	if err != nil {
		return nil, err
	}
	c := tls.Client(nc, cfg)
	if err := c.HandshakeContext(t.Context()); err != nil {
		nc.Close()
		return nil, err
	}
	return c, nil
}

// clientHello is the first flight of a node.
func clientHello(t *testing.T, cfg *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer b.Close()
		tls.Client(b, cfg).Handshake() // ends with the pipe
	}()
	buf := make([]byte, 8192)
	n, err := a.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	<-done
	return buf[:n]
}

// watched is a Server whose half-open transports can be counted from inside.
type watched struct {
	net.Listener
	open, peak atomic.Int32
	read       atomic.Int64 // octets, of all
	writes     atomic.Int32 // system calls, of all
	in         *inbox
}

// Accept counts a transport from here until its close.
func (w *watched) Accept() (net.Conn, error) {
	c, err := w.Listener.Accept()
	if err != nil {
		return nil, err
	}
	n := w.open.Add(1)
	for p := w.peak.Load(); n > p && !w.peak.CompareAndSwap(p, n); p = w.peak.Load() {
	}
	wc := &watchedConn{Conn: c, w: w}
	wc.gone = sync.OnceFunc(func() { w.open.Add(-1) })
	return wc, nil
}

type watchedConn struct {
	net.Conn
	gone func()
	w    *watched
}

func (c *watchedConn) Write(p []byte) (int, error) {
	c.w.writes.Add(1)
	return c.Conn.Write(p)
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.w.read.Add(int64(n))
	return n, err
}

func (c *watchedConn) Close() error { defer c.gone(); return c.Conn.Close() }

// startWatched runs a Server with lim on a loopback port that counts.
func startWatched(t *testing.T, lim Limits) (*watched, *authority) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ca := newAuthority(t, "home")
	id := ca.identity("gateway", "gw", "node")
	w := &watched{Listener: l, in: &inbox{control: make(chan Conn)}}
	s := &Server{Identity: func() Identity { return id }, Handler: w.in, Limits: lim}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(ctx, w)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w, ca
}

// TestHalfOpenLimit: 300 peers from as many addresses stop at various points of
// their setup. At most 256 are held (and the one that is being refused), each
// costs at most 64 KiB, and all are gone when the setup time is over.
func TestHalfOpenLimit(t *testing.T) {
	const setup = 3 * time.Second
	w, ca := startWatched(t, Limits{SetupTime: setup, Known: func(a netip.Addr) bool {
		return a.As4()[3]%2 == 0 // so that both halves fill
	}})
	hello := clientHello(t, dialConfig(ca.identity("node", "branch", "gateway"), time.Now))
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)

	conns := make([]net.Conn, 300)
	start := time.Now()
	for i := range conns {
		c, err := from(t, i, w.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns[i] = c
		switch i % 3 {
		case 0: // nothing at all
		case 1:
			c.Write(hello[:len(hello)/2])
		case 2: // the whole first flight, then silence; ours is sent, and never answered
			c.Write(hello)
		}
	}
	var first sync.WaitGroup
	for i, c := range conns { // the server has worked when it answered
		if i%3 == 2 {
			first.Go(func() { c.SetReadDeadline(time.Now().Add(setup)); c.Read(make([]byte, 1)) })
		}
	}
	first.Wait()
	runtime.GC()
	runtime.ReadMemStats(&during)
	held := w.open.Load()
	if held > 256 || held < 200 {
		t.Errorf("%d half-open transports held, want nearly 256 and no more", held)
	}
	if peak := w.peak.Load(); peak > 257 {
		t.Errorf("%d half-open transports at once, want at most 256 and the one being refused", peak)
	}
	perConn := (int64(during.HeapAlloc+during.StackInuse) - int64(before.HeapAlloc+before.StackInuse)) / int64(max(held, 1))
	t.Logf("%d held, %d octets each", held, perConn)
	if perConn > 64<<10 {
		t.Errorf("a half-open transport costs %d octets, want at most 64 KiB", perConn)
	}
	for i, c := range conns {
		c.SetReadDeadline(start.Add(setup + testTimeout))
		if _, err := io.Copy(io.Discard, c); isTimeout(err) {
			t.Fatalf("transport %d is still there %v after the setup time", i, testTimeout)
		}
	}
	if took := time.Since(start); took > setup+5*time.Second {
		t.Errorf("the last one was gone after %v, want about %v", took, setup)
	}
	waitFor(t, "no transport is open", func() bool { return w.open.Load() == 0 })
}

// waitFor polls what has no event to wait for.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(testTimeout)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not within %v: %s", testTimeout, what)
		}
	}
}

// TestOnePrefixLeavesRoom: a crowd at one address gets its share, another
// address gets in.
func TestOnePrefixLeavesRoom(t *testing.T) {
	w, ca := startWatched(t, Limits{HalfOpen: 16, PerPrefix: 4, SetupTime: time.Minute})
	for range 20 {
		c, err := from(t, 1, w.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	waitFor(t, "4 are held", func() bool { return w.open.Load() == 4 })
	c, err := tlsFrom(t, 2, w.Addr().String(), dialConfig(ca.identity("node", "branch", "gateway"), time.Now))
	if err != nil {
		t.Fatalf("another address: %v", err)
	}
	c.Close()
}

// longHello is a ClientHello that announces 65,535 octets, in full records.
func longHello() []byte {
	var out []byte
	for body := append([]byte{1, 0, 0xff, 0xff}, make([]byte, 65_535)...); len(body) > 0; {
		n := min(len(body), 16_384)
		out = append(out, 22, 3, 1, byte(n>>8), byte(n))
		out = append(out, body[:n]...)
		body = body[n:]
	}
	return out
}

// TestLongHelloIsBounded: peers that send as much as they can before anything
// is checked, and hold it there.
func TestLongHelloIsBounded(t *testing.T) {
	const peers = 64
	lim := Limits{}.withDefaults()
	w, _ := startWatched(t, Limits{SetupTime: time.Minute})
	send := longHello()[:lim.SetupBytes-1]
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range peers {
		c, err := from(t, i, w.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write(send)
	}
	waitFor(t, "all has been read", func() bool { return w.read.Load() == int64(peers*len(send)) })
	runtime.GC()
	runtime.ReadMemStats(&during)
	each := (int64(during.HeapAlloc+during.StackInuse) - int64(before.HeapAlloc+before.StackInuse)) / peers
	t.Logf("%d octets each", each)
	if each > 64<<10 {
		t.Errorf("a peer that sent %d octets costs %d, want at most 64 KiB", len(send), each)
	}
}

func TestGarbageAndTooMuch(t *testing.T) {
	w, ca := startWatched(t, Limits{SetupTime: testTimeout / 2})
	hello := clientHello(t, dialConfig(ca.identity("node", "branch", "gateway"), time.Now))
	long := longHello()
	for name, in := range map[string][]byte{
		"HTTP":                   []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"zeros":                  make([]byte, 12_000),
		"a 65,535-octet message": long,
		"a hello and garbage":    append(append([]byte(nil), hello...), make([]byte, 2048)...),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", w.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(testTimeout))
			c.Write(in)
			got, err := io.Copy(io.Discard, c)
			if isTimeout(err) {
				t.Error("the transport is kept")
			}
			// A reset could overtake the alert before it. Whoever sends more
			// than is read gets one.
			if len(in) < 16<<10 && err != nil {
				t.Errorf("the transport ended with %v, want an orderly end", err)
			}
			// A hello is answered with the server's flight; nothing else is.
			if limit := int64(4 * len(hello)); got > limit {
				t.Errorf("%d octets of answer, want at most %d", got, limit)
			}
		})
	}
}

// TestSetupBytes: what is read before authentication is bounded, and not after.
func TestSetupBytes(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	s := newSocket(b, 10)
	go a.Write(make([]byte, 100))
	n, err := io.Copy(io.Discard, io.LimitReader(s, 50))
	if n != 10 || !errors.Is(err, errSetupBytes) {
		t.Errorf("read %d octets, %v, want 10 and errSetupBytes", n, err)
	}
	s.admit()
	if n, err := io.ReadFull(s, make([]byte, 90)); n != 90 || err != nil {
		t.Errorf("after admit: %d octets, %v, want 90", n, err)
	}
}

// TestNoStreamInTime: authenticated, but no stream follows.
func TestNoStreamInTime(t *testing.T) {
	g := startGateway(t, func(s *Server, _ *inbox) { s.Limits.SetupTime = 500 * time.Millisecond })
	start := time.Now()
	if _, err := g.handshake(g.rawTLS()); err == nil || isTimeout(err) {
		t.Errorf("Read = %v, want the end", err)
	}
	if took := time.Since(start); took >= 10*time.Second { // the default
		t.Errorf("gone after %v, want about 500 ms", took)
	}
	g.noControl()
}

// TestSetupTimeEndsWithTheFirstStream: a transport may be silent afterwards.
func TestSetupTimeEndsWithTheFirstStream(t *testing.T) {
	var node, gw Conn
	setup := 150 * time.Millisecond
	for gw == nil { // as long as this machine needs for a set-up
		if setup *= 2; setup > time.Minute {
			t.Fatal("no transport is set up in time")
		}
		g := startGateway(t, func(s *Server, _ *inbox) { s.Limits.SetupTime = setup })
		var err error
		if node, err = g.node().Dial(t.Context(), g.addr); err != nil {
			continue
		}
		defer node.Close()
		node.Write([]byte("x"))
		select {
		case gw = <-g.in.control:
		case <-time.After(2 * setup):
		}
	}
	if _, err := io.ReadFull(gw, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	gw.SetReadDeadline(time.Now().Add(2 * setup))
	if _, err := gw.Read(make([]byte, 1)); !isTimeout(err) {
		t.Fatalf("after the setup time: %v, want silence", err)
	}
	deadline(t, gw)
	node.Write([]byte("x"))
	if _, err := io.ReadFull(gw, make([]byte, 1)); err != nil {
		t.Errorf("after the setup time: %v", err)
	}
}

// TestThousandStreams: a node of ours gone bad opens streams without end. The
// extra ones are refused, and the transport ends before they cost anything.
func TestThousandStreams(t *testing.T) {
	g := startGateway(t, nil)
	c, err := tls.Dial("tcp", g.addr, g.rawTLS())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go io.Copy(io.Discard, c)
	syn := func(id int) []byte {
		return []byte{0, 1, 0, flagSYN, 0, 0, byte(id >> 8), byte(id), 0, 0, 0, 0}
	}
	c.Write(syn(1))
	gw := g.accept()
	goroutines := runtime.NumGoroutine()
	for id := 3; id < 2003; id += 2 {
		if _, err := c.Write(syn(id)); err != nil {
			break
		}
	}
	deadline(t, gw)
	if _, err := gw.Read(make([]byte, 1)); !errors.Is(err, errStray) {
		t.Errorf("Read = %v, want errStray", err)
	}
	if n := runtime.NumGoroutine(); n > goroutines+8 {
		t.Errorf("%d goroutines, were %d", n, goroutines)
	}
}

// TestExtraStreamIsRefused: one stream too many ends, the first goes on.
func TestExtraStreamIsRefused(t *testing.T) {
	g := startGateway(t, nil)
	c, err := tls.Dial("tcp", g.addr, g.rawTLS())
	if err != nil {
		t.Fatal(err)
	}
	mux, err := yamux.Client(c, muxConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer mux.Close()
	first, err := mux.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	gw := g.accept()
	gw.Write([]byte("x")) // with it goes what waited for a message
	extra, err := mux.OpenStream()
	if err == nil {
		extra.SetReadDeadline(time.Now().Add(testTimeout))
		_, err = extra.Read(make([]byte, 1))
	}
	if err == nil || isTimeout(err) {
		t.Errorf("the extra stream: %v, want its end", err)
	}
	first.SetReadDeadline(time.Now().Add(testTimeout))
	if _, err := io.ReadFull(first, make([]byte, 1)); err != nil {
		t.Errorf("the first stream: %v", err)
	}
}

// TestOneMessageIsOneRecord: yamux hands header and body over apart, and begins
// with frames of its own.
func TestOneMessageIsOneRecord(t *testing.T) {
	w, ca := startWatched(t, Limits{})
	node, err := (&Dialer{Identity: ca.identity("node", "branch", "gateway")}).Dial(t.Context(), w.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	greet(t, node)
	gw := <-w.in.control
	defer gw.Close()
	deadline(t, node)
	msg := make([]byte, 4000)
	before := w.writes.Load()
	for range 10 {
		gw.Write(msg)
		if _, err := io.ReadFull(node, msg); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.writes.Load() - before; n != 10 {
		t.Errorf("10 messages took %d writes, want 10", n)
	}
}

func TestLogLinesOfStrangersAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := newLimited(slog.New(slog.NewTextHandler(&out, nil)))
		for range 30 {
			l.warn("transport refused")
			time.Sleep(100 * time.Millisecond)
		}
		if n := bytes.Count(out.Bytes(), []byte("\n")); n != 3 {
			t.Errorf("%d lines in 3 s, want 3", n)
		}
	})
}

func TestServeEndsWithItsListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s := &Server{Identity: func() Identity { return Identity{} }, Handler: new(inbox)}
	if err := s.Serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve = %v, want net.ErrClosed", err)
	}
}

func TestSlots(t *testing.T) {
	s := newSlots(4, 2, 3)
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	take := func(addr netip.Addr, known, want bool) func() {
		t.Helper()
		release, ok := s.take(addr, known)
		if ok != want {
			t.Errorf("take(%v, %v) = %v, want %v", addr, known, ok, want)
		}
		return release
	}
	first := take(a, false, true)
	take(b, false, true)
	take(a, false, false) // strangers have their half
	take(c, true, true)
	take(c, true, true)
	take(c, true, false) // three of one /64, and all are taken
	first()
	first() // only once
	take(a, false, true)
	take(a, true, false)
	if len(s.byPrefix) != 2 {
		t.Errorf("%d prefixes are counted, want 2", len(s.byPrefix))
	}
}

// However many come back at once, somebody new comes in.
func TestSlotsForStrangers(t *testing.T) {
	s := newSlots(16, 8, 16)
	var back int
	for {
		if _, ok := s.take(netip.MustParseAddr("192.0.2.1"), true); !ok {
			break
		}
		back++
	}
	if _, ok := s.take(netip.MustParseAddr("198.51.100.1"), false); back != 14 || !ok {
		t.Errorf("%d known peers of 16 have a place, want 14; a stranger beside them %v", back, ok)
	}
}

// FuzzFrames: the attacker is a node with a certificate. However its octets are
// cut, the count is the same and nothing panics.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 'h', 'i', 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1}, uint8(5))
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		var whole, parts frames
		werr := whole.scan(in)
		var perr error
		for rest := in; len(rest) > 0 && perr == nil; {
			n := min(len(rest), int(cut)+1)
			perr = parts.scan(rest[:n])
			rest = rest[n:]
		}
		if fmt.Sprint(werr) != fmt.Sprint(perr) || werr == nil && whole != parts {
			t.Errorf("%x: %v %+v whole, %v %+v in parts of %d", in, werr, whole, perr, parts, int(cut)+1)
		}
	})
}
