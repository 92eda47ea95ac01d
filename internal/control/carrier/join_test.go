package carrier_test

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"tunneld/internal/auth"
	"tunneld/internal/control/carrier"
	"tunneld/internal/store"
	"tunneld/internal/store/storetest"
)

// deployment is a gateway with its registry on a loopback port.
type deployment struct {
	*auth.Registry
	addr string
	up   chan carrier.Conn
}

func (d *deployment) identity() carrier.Identity {
	id := d.Identity()
	return carrier.Identity{Certificate: id.TLS(), Roots: id.Roots(), Verify: auth.VerifyNode(id.Deployment, d.Revoked)}
}

func (d *deployment) Control(_ context.Context, c carrier.Conn) { d.up <- c }

func (d *deployment) Enrol(_ context.Context, c carrier.EnrolConn) {
	d.ServeEnrol(c, c.Export, func([]string) []auth.Network { return nil }, time.Now())
}

func newDeployment(t *testing.T) *deployment {
	t.Helper()
	st := storetest.New(t)
	if _, err := auth.InitGateway(st, "gw", time.Now()); err != nil {
		t.Fatal(err)
	}
	r, err := auth.OpenRegistry(st)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &deployment{Registry: r, addr: l.Addr().String(), up: make(chan carrier.Conn, 1)}
	s := &carrier.Server{Identity: d.identity, Handler: d}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })
	return d
}

// join enrols node name, from code to identity, as the daemon does.
func (d *deployment) join(t *testing.T, name string) auth.Identity {
	t.Helper()
	invited, err := d.Invite(auth.InviteRequest{Node: name, Gateway: d.addr}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	line, err := invited.Text()
	if err != nil {
		t.Fatal(err)
	}
	code, err := auth.ParseCode(line)
	if err != nil {
		t.Fatal(err)
	}
	st := storetest.New(t)
	key, err := auth.JoinKey(st, code)
	if err != nil {
		t.Fatal(err)
	}
	c, err := new(carrier.Dialer).DialEnrol(t.Context(), code.Gateway, code.VerifyGateway)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	reply, err := auth.Enrol(c, c.Export, code, key)
	if err != nil {
		t.Fatal(err)
	}
	id, err := reply.Identity(code, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Update(func(tx store.Tx) error { return auth.Joined(tx, code, id) }); err != nil {
		t.Fatal(err)
	}
	return id
}

func dialer(id auth.Identity, gateway auth.Identity) *carrier.Dialer {
	return &carrier.Dialer{Identity: carrier.Identity{
		Certificate: id.TLS(),
		Roots:       id.Roots(),
		Verify:      auth.VerifyGateway(id.Deployment, gateway.ID),
	}}
}

// TestFromInviteToTransportToRevocation is the life of a node with the real
// certificates.
func TestFromInviteToTransportToRevocation(t *testing.T) {
	d := newDeployment(t)
	id := d.join(t, "branch")
	dial := dialer(id, d.Identity())
	c, err := dial.Dial(t.Context(), d.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("SCCRQ"))
	gw := <-d.up
	defer gw.Close()
	p, err := auth.ParseCertificate(gw.Peer())
	if err != nil || p.Name != "branch" || p.ID != id.ID {
		t.Errorf("the gateway sees %+v, %v", p, err)
	}
	if _, err := d.RenewGateway(time.Now()); err != nil { // counts from the next handshake on
		t.Fatal(err)
	}
	if _, err := d.Revoke("branch", time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := talk(t, dial, d.addr); !errors.Is(err, carrier.ErrOurCertificate) {
		t.Errorf("a revoked node: %v, want ErrOurCertificate", err)
	}
}

// TestNodePosesAsGateway: a node of the same deployment answers at the
// gateway's address, with the certificate it has.
func TestNodePosesAsGateway(t *testing.T) {
	d := newDeployment(t)
	evil, victim := d.join(t, "evil"), d.join(t, "victim")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &carrier.Server{
		Identity: func() carrier.Identity {
			return carrier.Identity{Certificate: evil.TLS(), Roots: evil.Roots(), Verify: func([]*x509.Certificate) error { return nil }}
		},
		Handler: d,
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()
	if err := talk(t, dialer(victim, d.Identity()), l.Addr().String()); !errors.Is(err, carrier.ErrPeerCertificate) {
		t.Errorf("a node as gateway: %v, want ErrPeerCertificate", err)
	}
	// And when the chain is not looked at, the role still is.
	dial := dialer(victim, d.Identity())
	if err := dial.Identity.Verify([]*x509.Certificate{evil.Certificate, evil.CA}); !errors.Is(err, auth.ErrWrongRole) {
		t.Errorf("Verify = %v, want ErrWrongRole", err)
	}
}

// talk dials and exchanges nothing but the refusal.
func talk(t *testing.T, d *carrier.Dialer, addr string) error {
	t.Helper()
	c, err := d.Dial(t.Context(), addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	c.Write([]byte("SCCRQ"))
	if _, err = c.Read(make([]byte, 1)); err == io.EOF {
		t.Error("the transport ended without a reason")
	}
	return err
}
