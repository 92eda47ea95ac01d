package carrier

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const testTimeout = 30 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inbox is a Handler that hands over what it gets.
type inbox struct {
	control chan Conn
	enrol   func(context.Context, EnrolConn)
}

func (h *inbox) Control(ctx context.Context, c Conn) {
	select {
	case h.control <- c:
	case <-ctx.Done():
	}
}

func (h *inbox) Enrol(ctx context.Context, c EnrolConn) {
	if h.enrol != nil {
		h.enrol(ctx, c)
	}
}

// gateway is a Server on a loopback port.
type gateway struct {
	t       *testing.T
	addr    string
	ca      *authority
	in      *inbox
	cancel  context.CancelFunc
	stopped chan error
}

// startGateway runs a Server until the test ends; change may edit it first.
func startGateway(t *testing.T, change func(*Server, *inbox)) *gateway {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{t: t, addr: l.Addr().String(), ca: newAuthority(t, "home"), in: &inbox{control: make(chan Conn, 8)}, stopped: make(chan error, 1)}
	id := g.ca.identity("gateway", "gw", "node")
	s := &Server{
		Identity: func() Identity { return id },
		Handler:  g.in,
		Log:      slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if change != nil {
		change(s, g.in)
	}
	ctx, cancel := context.WithCancel(t.Context())
	g.cancel = cancel
	go func() { g.stopped <- s.Serve(ctx, l) }()
	t.Cleanup(g.stop)
	return g
}

// stop ends the server and waits for it.
func (g *gateway) stop() {
	g.cancel()
	select {
	case err := <-g.stopped:
		if err != nil {
			g.t.Errorf("Serve = %v, want nil", err)
		}
		g.stopped <- nil
	case <-time.After(testTimeout):
		g.t.Error("Serve does not return")
	}
}

// node is a Dialer with a certificate of the gateway's deployment.
func (g *gateway) node() *Dialer {
	return &Dialer{Identity: g.ca.identity("node", "branch", "gateway")}
}

// accept is the next transport the server let in.
func (g *gateway) accept() Conn {
	g.t.Helper()
	select {
	case c := <-g.in.control:
		g.t.Cleanup(func() { c.Close() })
		return c
	case <-time.After(testTimeout):
		g.t.Fatal("no transport arrived")
		return nil
	}
}

// pair is both ends of a transport.
func (g *gateway) pair() (node, gw Conn) {
	g.t.Helper()
	node, err := g.node().Dial(g.t.Context(), g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { node.Close() })
	greet(g.t, node)
	gw = g.accept()
	greeted(g.t, gw)
	return node, gw
}

// greet has the gateway see a transport.
func greet(t *testing.T, node Conn) {
	t.Helper()
	if _, err := node.Write([]byte("!")); err != nil {
		t.Fatal(err)
	}
}

// greeted reads what greet wrote.
func greeted(t *testing.T, gw Conn) {
	t.Helper()
	if _, err := io.ReadFull(gw, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

func deadline(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
}

func TestControlBothWays(t *testing.T) {
	g := startGateway(t, nil)
	node, gw := g.pair()
	for _, c := range []struct{ from, to Conn }{{node, gw}, {gw, node}} {
		deadline(t, c.to)
		msg := bytes.Repeat([]byte("0123456789abcdef"), 4096) // several frames, within the window
		if _, err := c.from.Write(msg); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(msg))
		if _, err := io.ReadFull(c.to, got); err != nil || !bytes.Equal(got, msg) {
			t.Fatalf("a message of %d octets arrived as another, %v", len(msg), err)
		}
	}
	if got := gw.Peer().URIs[0].String(); got != "tunneld://home/node/branch" {
		t.Errorf("the gateway's Peer() is %v", got)
	}
	if got := node.Peer().URIs[0].String(); got != "tunneld://home/gateway/gw" {
		t.Errorf("the node's Peer() is %v", got)
	}
	if node.RemoteAddr().String() != g.addr {
		t.Errorf("RemoteAddr() = %v, want %v", node.RemoteAddr(), g.addr)
	}
}

func TestExportIsOfThisTransport(t *testing.T) {
	g := startGateway(t, nil)
	export := func(c Conn, label, context string) string {
		b, err := c.Export(label, []byte(context), 32)
		if err != nil || len(b) != 32 {
			t.Fatalf("Export = %x, %v, want 32 octets", b, err)
		}
		return string(b)
	}
	seen := make(map[string]bool)
	for range 2 {
		node, gw := g.pair()
		for _, in := range [][2]string{{"EXPORTER-a", ""}, {"EXPORTER-b", ""}, {"EXPORTER-a", "x"}} {
			a, b := export(node, in[0], in[1]), export(gw, in[0], in[1])
			if a != b {
				t.Errorf("Export(%q, %q) differs at the two ends", in[0], in[1])
			}
			if seen[a] {
				t.Errorf("Export(%q, %q) repeats", in[0], in[1])
			}
			seen[a] = true
		}
	}
}

func TestNodeDoesNotPassForGateway(t *testing.T) {
	// Before the false gateway's Verify could matter, the node's has to refuse.
	g := startGateway(t, func(s *Server, _ *inbox) {})
	plain := g.ca.issue("node", "evil", nil)
	asServer := g.ca.issue("node", "evil", func(c *x509.Certificate) {
		c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	})
	for name, cert := range map[string]tls.Certificate{"node certificate": plain, "node certificate with serverAuth": asServer} {
		t.Run(name, func(t *testing.T) {
			evil := startGateway(t, func(s *Server, _ *inbox) {
				s.Identity = func() Identity {
					return Identity{Certificate: cert, Roots: g.ca.pool(), Verify: func([]*x509.Certificate) error { return nil }}
				}
			})
			c, err := g.node().Dial(t.Context(), evil.addr)
			if !errors.Is(err, ErrPeerCertificate) {
				t.Fatalf("Dial = %v, %v, want ErrPeerCertificate", c, err)
			}
		})
	}
}

func TestGatewayOfAnotherDeployment(t *testing.T) {
	g := startGateway(t, nil)
	d := &Dialer{Identity: newAuthority(t, "elsewhere").identity("node", "branch", "gateway")}
	_, err := d.Dial(t.Context(), g.addr)
	if !errors.Is(err, ErrPeerCertificate) || !strings.Contains(err.Error(), `"tunneld://home/gateway/gw"`) {
		t.Errorf("Dial = %v, want ErrPeerCertificate naming the gateway's certificate", err)
	}
}

func TestIdentityWithoutVerifyBelievesNobody(t *testing.T) {
	g := startGateway(t, nil)
	d := g.node()
	d.Identity.Verify = nil
	if _, err := d.Dial(t.Context(), g.addr); !errors.Is(err, ErrPeerCertificate) {
		t.Errorf("Dial = %v, want ErrPeerCertificate", err)
	}
}

func TestOurCertificateRefused(t *testing.T) {
	revoked := errors.New("revoked")
	cases := map[string]struct {
		edit func(*x509.Certificate)
		ca   func(g *gateway) *authority
		want string
	}{
		"expired":            {edit: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, want: "expired"},
		"not yet valid":      {edit: func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, want: "expired"},
		"refused by Verify":  {edit: func(c *x509.Certificate) { c.SerialNumber.SetInt64(666) }, want: "revoked"},
		"another deployment": {ca: func(g *gateway) *authority { return newAuthority(g.t, "elsewhere") }, want: "of another deployment"},
		"server only": {edit: func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}, want: "not for this use"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, func(s *Server, _ *inbox) {
				id := s.Identity()
				id.Verify = func(chain []*x509.Certificate) error {
					if chain[0].SerialNumber.Int64() == 666 {
						return revoked
					}
					return nil
				}
				s.Identity = func() Identity { return id }
			})
			ca := g.ca
			if c.ca != nil {
				ca = c.ca(g)
			}
			d := &Dialer{Identity: Identity{Certificate: ca.issue("node", "branch", c.edit), Roots: g.ca.pool(), Verify: wantRole("gateway")}}
			err := firstRead(t, d, g.addr)
			if !errors.Is(err, ErrOurCertificate) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("first error = %v, want ErrOurCertificate with %q", err, c.want)
			}
		})
	}
}

// firstRead is what a dial and the first message end with.
func firstRead(t *testing.T, d *Dialer, addr string) error {
	t.Helper()
	c, err := d.Dial(t.Context(), addr)
	if err != nil {
		return err
	}
	defer c.Close()
	deadline(t, c)
	c.Write([]byte("SCCRQ"))
	_, err = c.Read(make([]byte, 1))
	return err
}

func TestIdentityIsAskedInEveryHandshake(t *testing.T) {
	var refuse bool
	var id Identity
	g := startGateway(t, func(s *Server, _ *inbox) {
		id = s.Identity()
		s.Identity = func() Identity {
			now := id
			if refuse {
				now.Verify = func([]*x509.Certificate) error { return errors.New("revoked") }
			}
			return now
		}
	})
	d := g.node()
	c, err := d.Dial(t.Context(), g.addr)
	if err != nil {
		t.Fatal(err)
	}
	greet(t, c)
	g.accept().Close()
	c.Close()
	refuse = true // no handshake runs now
	if err := firstRead(t, d, g.addr); !errors.Is(err, ErrOurCertificate) {
		t.Errorf("after a revocation: %v, want ErrOurCertificate", err)
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	d := &Dialer{Identity: newAuthority(t, "home").identity("node", "branch", "gateway"), Timeout: 300 * time.Millisecond}
	if _, err := d.Dial(t.Context(), addr); !errors.Is(err, ErrUnreachable) { // connects, hears nothing
		t.Errorf("a silent peer: %v, want ErrUnreachable", err)
	}
	l.Close()
	if _, err := d.Dial(t.Context(), addr); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), addr) {
		t.Errorf("a closed port: %v, want ErrUnreachable naming %v", err, addr)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Dial(ctx, addr); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context: %v, want context.Canceled", err)
	}
}

func TestDialerControlSeesTheSocket(t *testing.T) {
	g := startGateway(t, nil)
	d := g.node()
	marked := errors.New("not marked")
	d.Control = func(fd uintptr) error { return marked }
	if _, err := d.Dial(t.Context(), g.addr); !errors.Is(err, marked) {
		t.Errorf("Dial = %v, want the error of Control", err)
	}
}

func TestEnrol(t *testing.T) {
	var served [32]byte
	g := startGateway(t, func(s *Server, in *inbox) {
		in.enrol = func(_ context.Context, c EnrolConn) {
			var req [5]byte
			io.ReadFull(c, req[:])
			key, _ := c.Export("EXPORTER-tunneld-enrol", req[:], 32)
			copy(served[:], key)
			c.Write(append([]byte("re:"), req[:]...))
		}
	})
	var chain []*x509.Certificate
	c, err := new(Dialer).DialEnrol(t.Context(), g.addr, func(got []*x509.Certificate) error {
		chain = got
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if len(chain) != 2 || !chain[1].Equal(g.ca.cert) {
		t.Fatalf("verify got %d certificates, want the leaf and the CA's", len(chain))
	}
	c.Write([]byte("hello"))
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "re:hello" {
		t.Fatalf("answer = %q, %v", got, err)
	}
	if key, err := c.Export("EXPORTER-tunneld-enrol", []byte("hello"), 32); err != nil || !bytes.Equal(key, served[:]) {
		t.Errorf("the two ends export different keys: %x, %x, %v", key, served, err)
	}
}

func TestEnrolVerifyRefuses(t *testing.T) {
	g := startGateway(t, nil)
	stranger := errors.New("fingerprint differs")
	_, err := new(Dialer).DialEnrol(t.Context(), g.addr, func([]*x509.Certificate) error { return stranger })
	if !errors.Is(err, ErrPeerCertificate) || !errors.Is(err, stranger) {
		t.Errorf("DialEnrol = %v, want ErrPeerCertificate and its cause", err)
	}
}
