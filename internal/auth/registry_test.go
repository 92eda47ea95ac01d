package auth

import (
	"crypto/x509"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"tunneld/internal/session"
	"tunneld/internal/store"
	"tunneld/internal/store/storetest"
)

func TestOpenRegistryWithoutGateway(t *testing.T) {
	if _, err := OpenRegistry(storetest.New(t)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("OpenRegistry = %v, want store.ErrNotFound", err)
	}
}

func TestInviteRefuses(t *testing.T) {
	h := newHouse(t)
	h.enrol(h.invite(request("live")), newTestKey(t))
	for name, c := range map[string]struct {
		change func(*InviteRequest)
		want   error // nil: any
	}{
		"name":         {func(r *InviteRequest) { r.Node = "a/b" }, ErrName},
		"network":      {func(r *InviteRequest) { r.Networks = []string{"a b"} }, ErrName},
		"a live name":  {func(r *InviteRequest) { r.Node = "live" }, ErrNameTaken},
		"address":      {func(r *InviteRequest) { r.Gateway = "vpn" }, nil},
		"prefix":       {func(r *InviteRequest) { r.Advertise = []netip.Prefix{netip.MustParsePrefix("10.20.1.1/16")} }, nil},
		"no prefix":    {func(r *InviteRequest) { r.Advertise = []netip.Prefix{{}} }, nil},
		"negative ttl": {func(r *InviteRequest) { r.TTL = -time.Second }, nil},
		"endless ttl":  {func(r *InviteRequest) { r.TTL = 365 * 24 * time.Hour }, nil},
		"too much":     {func(r *InviteRequest) { r.Networks = make([]string, maxGrants+1) }, nil},
	} {
		req := request("branch")
		c.change(&req)
		code, err := h.Invite(req, now)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: Invite = %v, %v, want %v", name, code, err, c.want)
		}
	}
	if nodes, _ := h.List(); len(nodes) != 1 {
		t.Errorf("refused invites left %v", nodes)
	}
}

func TestReplace(t *testing.T) {
	h := newHouse(t)
	old := h.enrol(h.invite(request("branch")), newTestKey(t))
	req := request("branch")
	req.Replace, req.Networks = true, []string{"lab"}
	code := h.invite(req)

	// An invite alone cuts nobody off.
	if h.Revoked(old.ID) {
		t.Fatal("the old node was revoked by an invite that nobody used")
	}
	if networks, _, ok := h.Rights(old.ID); !ok || networks[0] != "office" {
		t.Fatalf("the old node's rights = %v, %v", networks, ok)
	}
	serial := h.RevocationSerial()
	r := h.enrolAt(code, newTestKey(t), now)
	if r.err != nil || r.done.Replaced != old.ID || r.done.ID == old.ID {
		t.Fatalf("enrolment = %+v, %v, want one that replaced %v", r.done, r.err, old.ID)
	}
	for range 2 { // before and after a restart
		if !h.Revoked(old.ID) || h.Revoked(r.done.ID) || h.RevocationSerial() != serial+1 {
			t.Errorf("Revoked(old) = %v, Revoked(new) = %v, serial %d, want true, false, %d",
				h.Revoked(old.ID), h.Revoked(r.done.ID), h.RevocationSerial(), serial+1)
		}
		if _, _, ok := h.Rights(old.ID); ok {
			t.Error("the old node still has rights")
		}
		if networks, _, ok := h.Rights(r.done.ID); !ok || networks[0] != "lab" {
			t.Errorf("the new node's rights = %v, %v", networks, ok)
		}
		h.open()
	}
}

func TestRevoke(t *testing.T) {
	h := newHouse(t)
	id := h.enrol(h.invite(request("branch")), newTestKey(t))
	verify := VerifyNode(h.Deployment(), h.Revoked)
	got, err := h.Revoke("branch", now)
	if err != nil || got != id.ID {
		t.Fatalf("Revoke = %v, %v, want %v", got, err, id.ID)
	}
	if err := verify([]*x509.Certificate{id.Certificate}); !errors.Is(err, ErrRevoked) || !strings.Contains(err.Error(), "branch") {
		t.Errorf("VerifyNode = %v, want ErrRevoked naming the node", err)
	}
	if _, err := h.Renew(peerOf(t, id), newCSR(t), now); !errors.Is(err, ErrRevoked) {
		t.Errorf("Renew = %v, want ErrRevoked", err)
	}
	serial := h.RevocationSerial()
	if got, err := h.Revoke("branch", now); err != nil || got != id.ID || h.RevocationSerial() != serial {
		t.Errorf("Revoke again = %v, %v, serial %d, want %v, nil, %d", got, err, h.RevocationSerial(), id.ID, serial)
	}
	if _, err := h.Revoke("nobody", now); !errors.Is(err, ErrNoNode) {
		t.Errorf("Revoke of an unknown name = %v, want ErrNoNode", err)
	}
	h.open()
	if !h.Revoked(id.ID) {
		t.Error("the revocation did not survive a restart")
	}
	// The name may live again, under another id.
	again := h.enrol(h.invite(request("branch")), newTestKey(t))
	if again.ID == id.ID || h.Revoked(again.ID) || !h.Revoked(id.ID) {
		t.Errorf("the new node has id %v, revoked %v", again.ID, h.Revoked(again.ID))
	}
}

func TestRevokeFailsWithTheStore(t *testing.T) {
	h := newHouse(t)
	id := h.enrol(h.invite(request("branch")), newTestKey(t))
	h.st.FailUpdates(1)
	if _, err := h.Revoke("branch", now); err == nil {
		t.Fatal("Revoke succeeded without a store")
	}
	if _, _, ok := h.Rights(id.ID); !ok || h.Revoked(id.ID) {
		t.Error("a revocation that is not durable shows in memory")
	}
}

func TestList(t *testing.T) {
	h := newHouse(t)
	first := h.invite(request("b"))
	live := h.enrol(h.invite(request("a")), newTestKey(t))
	h.enrol(h.invite(request("c")), newTestKey(t))
	if _, err := h.Revoke("c", now); err != nil {
		t.Fatal(err)
	}
	req := request("a")
	req.Replace = true
	open := h.invite(req)
	nodes, err := h.List()
	if err != nil || len(nodes) != 3 {
		t.Fatalf("List = %v, %v, want three nodes", nodes, err)
	}
	var states []State
	for _, n := range nodes {
		states = append(states, n.State)
	}
	if !reflect.DeepEqual(states, []State{Enrolled, Invited, Revoked}) {
		t.Errorf("states of a, b, c = %v", states)
	}
	a, b := nodes[0], nodes[1]
	if a.ID != live.ID || !a.ExpiresAt.Equal(live.Certificate.NotAfter) || a.Invite == nil || !a.Invite.Equal(open.ExpiresAt) {
		t.Errorf("a = %+v", a)
	}
	if !b.ID.IsZero() || !b.ExpiresAt.Equal(first.ExpiresAt) || b.Networks[0] != "office" {
		t.Errorf("b = %+v", b)
	}
	if _, err := h.Revoke("b", now); err != nil {
		t.Fatal(err)
	}
	if nodes, _ = h.List(); len(nodes) != 2 {
		t.Errorf("a node that never enrolled is still there after Revoke: %v", nodes)
	}
}

func TestRenew(t *testing.T) {
	h := newHouse(t)
	id := h.enrol(h.invite(request("branch")), newTestKey(t))
	key := newTestKey(t)
	csr, err := NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	later := now.Add(60 * 24 * time.Hour)
	der, err := h.Renew(peerOf(t, id), csr, later)
	if err != nil {
		t.Fatal(err)
	}
	renewed, err := NewIdentity(key, der, id.CA)
	if err != nil || renewed.ID != id.ID || renewed.Name != id.Name || renewed.Role != Node {
		t.Fatalf("renewed = %v %v %v, %v", renewed.Name, renewed.ID, renewed.Role, err)
	}
	if nodes, _ := h.List(); !nodes[0].ExpiresAt.Equal(later.Add(DefaultLifetime)) {
		t.Errorf("ExpiresAt = %v, want %v", nodes[0].ExpiresAt, later.Add(DefaultLifetime))
	}
	gw := peerOf(t, h.Identity())
	if _, err := h.Renew(gw, csr, later); !errors.Is(err, ErrWrongRole) {
		t.Errorf("Renew of a gateway = %v, want ErrWrongRole", err)
	}
	if _, err := h.Renew(peerOf(t, id), []byte("x"), later); !errors.Is(err, ErrCSR) {
		t.Errorf("Renew with garbage = %v, want ErrCSR", err)
	}
	req := request("branch")
	req.Replace = true
	h.enrol(h.invite(req), newTestKey(t))
	if _, err := h.Renew(peerOf(t, id), csr, later); !errors.Is(err, ErrRevoked) {
		t.Errorf("Renew of a replaced node = %v, want ErrRevoked", err)
	}
}

func TestRenewGateway(t *testing.T) {
	h := newHouse(t)
	old := h.Identity()
	id, err := h.RenewGateway(now.Add(60 * 24 * time.Hour))
	if err != nil || id.ID != old.ID || id.Certificate.Equal(old.Certificate) {
		t.Fatalf("RenewGateway = %v, %v, want the same id and a new certificate", id.ID, err)
	}
	if !h.Identity().Certificate.Equal(id.Certificate) {
		t.Error("Identity() is still the old one")
	}
	h.open()
	if !h.Identity().Certificate.Equal(id.Certificate) {
		t.Error("the new identity was not stored")
	}
}

// TestCheckGrant: a decision made before a revocation must not be committed
// after it, whatever lies between.
func TestCheckGrant(t *testing.T) {
	h := newHouse(t)
	a := h.enrol(h.invite(request("a")), newTestKey(t))
	b := h.enrol(h.invite(request("b")), newTestKey(t))
	serial := h.RevocationSerial()
	check := func(id session.ID) error {
		return h.st.Update(func(tx store.Tx) error { return CheckGrant(tx, id, serial) })
	}
	if err := check(a.ID); err != nil {
		t.Errorf("before: %v", err)
	}
	if _, err := h.Revoke("a", now); err != nil {
		t.Fatal(err)
	}
	if err := check(a.ID); !errors.Is(err, ErrRevoked) {
		t.Errorf("the revoked node: %v, want ErrRevoked", err)
	}
	if err := check(b.ID); err != nil {
		t.Errorf("another node: %v, want nil", err)
	}
}

// TestRevokeAgainstEnrol: whichever comes first, a revoked name has no rights.
func TestRevokeAgainstEnrol(t *testing.T) {
	h := newHouse(t)
	for range 20 {
		code := h.invite(request("branch"))
		var wg sync.WaitGroup
		var r try
		wg.Go(func() { r = h.enrolAt(code, newTestKey(t), now) })
		wg.Go(func() { h.Revoke("branch", now) })
		wg.Wait()
		if r.err == nil && !h.Revoked(r.done.ID) {
			// Enrolled after the revocation would need an invite that was
			// withdrawn by it.
			t.Fatalf("%v enrolled through a withdrawn invite", r.done.ID)
		}
		if _, _, ok := h.Rights(r.done.ID); ok {
			t.Fatal("a revoked node has rights")
		}
		h.Revoke("branch", now)
	}
}

func TestOldInvitesAreForgotten(t *testing.T) {
	h := newHouse(t)
	h.invite(request("a"))
	if _, err := h.Invite(request("b"), now.Add(forgetInvites+2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	var n int
	err := h.st.View(func(tx store.Tx) error {
		return tx.Each(bucketInvites, func(string, []byte) error { n++; return nil })
	})
	if err != nil || n != 1 {
		t.Errorf("%d invites, %v, want the new one alone", n, err)
	}
}
