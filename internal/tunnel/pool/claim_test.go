package pool

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// TestClaim: a session gets the very addresses it had, or none.
func TestClaim(t *testing.T) {
	claim := func(p *Pool, n int, owner string, now time.Time, texts ...string) error {
		return p.Claim(Lease{Session: id(n), Owner: owner, Addresses: addrs(texts...)}, now)
	}
	p := mustNew(t, time.Hour, "10.77.0.0/29", "fd77::/64")
	if err := claim(p, 1, "alice", t0, "10.77.0.4", "fd77::4"); err != nil {
		t.Fatalf("Claim of a fresh address = %v", err)
	}
	if err := claim(p, 1, "alice", t0, "10.77.0.4", "fd77::4"); !errors.Is(err, ErrTaken) {
		t.Errorf("Claim of what the session has = %v, want ErrTaken", err)
	}
	wantLease(t, p, 2, "bob", t0, "10.77.0.2", "fd77::2")
	wantLease(t, p, 3, "carol", t0, "10.77.0.3", "fd77::3")
	wantLease(t, p, 4, "dave", t0, "10.77.0.5", "fd77::5") // 4 is claimed
	for _, texts := range [][]string{
		{"10.77.0.3", "fd77::3"}, // leased
		{"10.77.0.5", "fd77::6"}, // of two indices
		{"10.77.0.1", "fd77::1"}, // the gateway's
		{"10.78.0.4", "fd78::4"}, // another pool's
		{"10.77.0.6"},            // half of it
		{},
	} {
		if err := claim(p, 9, "alice", t0, texts...); !errors.Is(err, ErrTaken) {
			t.Errorf("Claim(%v) = %v, want ErrTaken", texts, err)
		}
	}
	wantLease(t, p, 5, "erin", t0, "10.77.0.6", "fd77::6") // what was refused has left no trace

	p.Free(id(2), t0)
	if err := claim(p, 6, "mallory", t0.Add(time.Minute), "10.77.0.2", "fd77::2"); !errors.Is(err, ErrTaken) {
		t.Errorf("Claim of what rests for another = %v, want ErrTaken", err)
	}
	if err := claim(p, 6, "bob", t0.Add(time.Minute), "10.77.0.2", "fd77::2"); err != nil {
		t.Errorf("Claim of what rests for its owner = %v", err)
	}
	p.Cancel(id(6))
	if _, taken := p.Of(netip.MustParseAddr("10.77.0.2")); taken {
		t.Error("a claim that was cancelled holds its address")
	}
	if err := claim(p, 7, "mallory", t0.Add(time.Hour), "10.77.0.2", "fd77::2"); err != nil {
		t.Errorf("Claim of what has rested = %v", err)
	}
	if got := fmt.Sprint(len(p.Leases())); got != "5" {
		t.Errorf("%s leases, want 5", got)
	}
}
