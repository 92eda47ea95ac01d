package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"tunneld/internal/session"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func addrs(texts ...string) (out []netip.Addr) {
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

func id(n int) session.ID { return session.ID{14: byte(n >> 8), 15: byte(n)} }

func mustNew(t testing.TB, cooloff time.Duration, texts ...string) *Pool {
	t.Helper()
	p, err := New(prefixes(texts...), cooloff)
	if err != nil {
		t.Fatalf("New(%q) = %v, want nil", texts, err)
	}
	return p
}

func wantLease(t *testing.T, p *Pool, n int, owner string, now time.Time, want ...string) {
	t.Helper()
	l, err := p.Lease(id(n), owner, now)
	if err != nil || fmt.Sprint(l.Addresses) != fmt.Sprint(want) {
		t.Errorf("Lease(%d, %q) = %v, %v, want %v", n, owner, l.Addresses, err, want)
	}
	if l.Session != id(n) || l.Owner != owner {
		t.Errorf("Lease(%d, %q) is of session %v, owner %q", n, owner, l.Session, l.Owner)
	}
}

func TestSizes(t *testing.T) {
	for _, c := range []struct {
		prefixes []netip.Prefix
		size     int
		gateway  string
		first    string
		last     string
	}{
		{prefixes("10.77.0.0/16"), 65533, "[10.77.0.1/16]", "10.77.0.2", "10.77.255.254"},
		{prefixes("10.0.0.0/24"), 253, "[10.0.0.1/24]", "10.0.0.2", "10.0.0.254"},
		{prefixes("10.0.0.248/29"), 5, "[10.0.0.249/29]", "10.0.0.250", "10.0.0.254"},
		{prefixes("10.0.0.4/30"), 1, "[10.0.0.5/30]", "10.0.0.6", "10.0.0.6"},
		{prefixes("10.0.0.0/8"), 1<<24 - 3, "[10.0.0.1/8]", "10.0.0.2", "10.255.255.254"},
		{prefixes("fd77::/64"), 1<<31 - 2, "[fd77::1/64]", "fd77::2", "fd77::7fff:ffff"},
		{prefixes("fd77::ff00/120"), 254, "[fd77::ff01/120]", "fd77::ff02", "fd77::ffff"},
		{prefixes("fd77::/126"), 2, "[fd77::1/126]", "fd77::2", "fd77::3"},
		{prefixes("fd77::/64", "10.0.0.0/24"), 253, "[10.0.0.1/24 fd77::1/64]", "10.0.0.2", "10.0.0.254"},
		{prefixes("10.0.0.0/24", "fd77::/126"), 2, "[10.0.0.1/24 fd77::1/126]", "10.0.0.2", "10.0.0.3"},
	} {
		p, err := New(c.prefixes, time.Minute)
		if err != nil {
			t.Errorf("New(%v) = %v, want nil", c.prefixes, err)
			continue
		}
		if got := p.Size(); got != c.size {
			t.Errorf("%v: Size() = %d, want %d", c.prefixes, got, c.size)
		}
		if got := fmt.Sprint(p.Gateway()); got != c.gateway {
			t.Errorf("%v: Gateway() = %s, want %s", c.prefixes, got, c.gateway)
		}
		if got := p.addresses(first)[0].String(); got != c.first {
			t.Errorf("%v: lowest = %s, want %s", c.prefixes, got, c.first)
		}
		if got := p.addresses(p.last)[0].String(); got != c.last {
			t.Errorf("%v: highest = %s, want %s", c.prefixes, got, c.last)
		}
	}
}

func TestRefusedPrefixes(t *testing.T) {
	for _, c := range []struct {
		prefixes []netip.Prefix
		says     string
	}{
		{nil, "none given"},
		{prefixes("10.0.0.0/31"), "10.0.0.0/31 has no address left beside the gateway's: use a /30 or shorter"},
		{prefixes("10.0.0.1/32"), "use a /30"},
		{prefixes("fd77::/127"), "use a /126"},
		{prefixes("fd77::1/128"), "use a /126"},
		{prefixes("10.0.0.1/24"), "10.0.0.1/24 has host bits set: use 10.0.0.0/24"},
		{prefixes("::ffff:10.0.0.0/120"), "neither an IPv4 nor an IPv6 prefix"},
		{[]netip.Prefix{{}}, "neither"},
		{prefixes("10.0.0.0/24", "10.1.0.0/24"), "10.0.0.0/24 and 10.1.0.0/24 are of one family"},
		{prefixes("fd77::/64", "10.0.0.0/24", "fd78::/64"), "fd77::/64 and fd78::/64"},
	} {
		_, err := New(c.prefixes, time.Minute)
		if !errors.Is(err, ErrPrefix) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("New(%v) = %v, want ErrPrefix that says %q", c.prefixes, err, c.says)
		}
	}
}

func TestIndexIsInverseOfAt(t *testing.T) {
	p := mustNew(t, 0, "10.255.0.0/16", "fd77:0:0:ff::/64")
	for _, index := range []uint32{2, 3, 255, 256, 257, 65533, 65534} {
		for _, a := range p.addresses(index) {
			if got, ok := p.index(a); got != index || !ok {
				t.Errorf("index(%v) = %d, %v, want %d, true", a, got, ok, index)
			}
		}
	}
	for _, text := range []string{"10.255.0.0", "10.255.0.1", "10.255.255.255", "10.254.0.2", "fd77:0:0:ff::", "fd77:0:0:ff::1", "fd77:0:0:ff:0:1::2", "fd77:0:0:ff:ffff:ffff:ffff:ffff", "::ffff:10.255.0.2"} {
		if got, ok := p.index(netip.MustParseAddr(text)); ok {
			t.Errorf("index(%s) = %d, true, want false", text, got)
		}
	}
}

func TestOrderOfLeases(t *testing.T) {
	p := mustNew(t, 15*time.Minute, "10.0.0.0/29", "fd77::/64")
	wantLease(t, p, 1, "ann", t0, "10.0.0.2", "fd77::2")
	wantLease(t, p, 2, "ben", t0, "10.0.0.3", "fd77::3")
	wantLease(t, p, 1, "ann", t0, "10.0.0.2", "fd77::2") // the same again
	p.Free(id(2), t0)
	p.Free(id(1), t0.Add(time.Minute))
	wantLease(t, p, 3, "cem", t0.Add(time.Hour), "10.0.0.4", "fd77::4") // fresh before rested
	wantLease(t, p, 4, "ben", t0.Add(2*time.Minute), "10.0.0.3", "fd77::3")
	wantLease(t, p, 5, "ben", t0, "10.0.0.5", "fd77::5") // a second session
	wantLease(t, p, 6, "dan", t0, "10.0.0.6", "fd77::6")
	p.Free(id(4), t0.Add(3*time.Minute)) // ben's rests longer than ann's

	_, err := p.Lease(id(7), "eve", t0.Add(16*time.Minute-time.Nanosecond))
	var full *ExhaustedError
	if !errors.As(err, &full) || !errors.Is(err, ErrExhausted) {
		t.Fatalf("Lease = %v, want ErrExhausted", err)
	}
	want := ExhaustedError{prefixes("10.0.0.0/29", "fd77::/64"), 5, 3, 2, t0.Add(16 * time.Minute)}
	if !reflect.DeepEqual(*full, want) {
		t.Errorf("error = %+v, want %+v", *full, want)
	}
	if got, want := err.Error(), "pool exhausted: 10.0.0.0/29, fd77::/64 has room for 5, 3 leased, 2 resting: the next is free at 2026-01-01T00:16:00Z; try again then, or enlarge the network's pools"; got != want {
		t.Errorf("error = %q, want %q", got, want)
	}
	wantLease(t, p, 7, "eve", t0.Add(16*time.Minute), "10.0.0.2", "fd77::2")
	wantLease(t, p, 8, "ann", t0.Add(18*time.Minute), "10.0.0.3", "fd77::3") // hers is gone, ben's has rested
	_, err = p.Lease(id(9), "ben", t0.Add(time.Hour))
	if got, want := err.Error(), "pool exhausted: 10.0.0.0/29, fd77::/64 has room for 5, 5 leased, 0 resting: end a session or enlarge the network's pools"; got != want {
		t.Errorf("error = %q, want %q", got, want)
	}
}

func TestStickyTakesTheLatest(t *testing.T) {
	p := mustNew(t, time.Minute, "10.0.0.0/24")
	for n := range 3 {
		wantLease(t, p, n, "ann", t0, fmt.Sprintf("10.0.0.%d", n+2))
	}
	p.Free(id(0), t0)
	p.Free(id(2), t0.Add(2))
	p.Free(id(1), t0.Add(1))
	wantLease(t, p, 4, "ann", t0, "10.0.0.4")
	wantLease(t, p, 5, "ann", t0, "10.0.0.3")
	wantLease(t, p, 6, "ann", t0, "10.0.0.2")
	wantLease(t, p, 7, "ann", t0, "10.0.0.5")
}

func TestNobodyIsNotSticky(t *testing.T) {
	p := mustNew(t, time.Minute, "10.0.0.0/24")
	wantLease(t, p, 1, "", t0, "10.0.0.2")
	p.Free(id(1), t0)
	wantLease(t, p, 2, "", t0, "10.0.0.3")
}

func TestOtherOwner(t *testing.T) {
	p := mustNew(t, time.Minute, "10.0.0.0/24")
	wantLease(t, p, 1, "ann", t0, "10.0.0.2")
	if _, err := p.Lease(id(1), "ben", t0); !errors.Is(err, ErrTaken) {
		t.Errorf("Lease by another owner = %v, want ErrTaken", err)
	}
	if got, ok := p.Of(netip.MustParseAddr("10.0.0.2")); got != id(1) || !ok {
		t.Errorf("Of = %v, %v, want %v", got, ok, id(1))
	}
	if _, ok := p.Free(id(9), t0); ok {
		t.Errorf("Free(unknown) = true, want false")
	}
}

func TestCancel(t *testing.T) {
	p := mustNew(t, time.Minute, "10.0.0.0/29")
	wantLease(t, p, 1, "ann", t0, "10.0.0.2")
	p.Cancel(id(1))
	p.Cancel(id(1)) // nothing left to do
	wantLease(t, p, 2, "ben", t0, "10.0.0.2")
	p.Free(id(2), t0)
	wantLease(t, p, 3, "ben", t0.Add(time.Second), "10.0.0.2")
	p.Cancel(id(3))
	if got, want := p.Snapshot(), []Rest{{"ben", addrs("10.0.0.2"), t0}}; !reflect.DeepEqual(got, want) {
		t.Errorf("Snapshot() = %v, want %v", got, want)
	}
	for n := range 4 {
		wantLease(t, p, 10+n, "cem", t0, fmt.Sprintf("10.0.0.%d", n+3))
	}
	wantLease(t, p, 14, "cem", t0.Add(time.Minute), "10.0.0.2")
	p.Cancel(id(14))
	wantLease(t, p, 15, "ben", t0, "10.0.0.2") // still his
}

func TestReturnedThenRestored(t *testing.T) {
	p := mustNew(t, time.Minute, "10.0.0.0/29")
	wantLease(t, p, 1, "ann", t0, "10.0.0.2")
	p.Cancel(id(1))
	if err := p.Restore(Lease{id(2), "ben", addrs("10.0.0.2")}); err != nil {
		t.Fatal(err)
	}
	p.Cancel(id(2)) // took effect in an earlier life
	wantLease(t, p, 3, "cem", t0, "10.0.0.3")
}

func TestRestore(t *testing.T) {
	p := mustNew(t, time.Minute, "10.0.0.0/29", "fd77::/64")
	l := Lease{id(1), "ann", addrs("10.0.0.3", "fd77::3")}
	for range 2 {
		if err := p.Restore(l); err != nil {
			t.Errorf("Restore = %v, want nil", err)
		}
	}
	for _, bad := range []Lease{
		{id(1), "ann", addrs("10.0.0.4", "fd77::4")},
		{id(1), "ben", addrs("10.0.0.3", "fd77::3")},
		{id(2), "ben", addrs("10.0.0.3", "fd77::4")},
		{id(2), "ben", addrs("10.0.0.4", "fd77::3")},
	} {
		if err := p.Restore(bad); !errors.Is(err, ErrTaken) {
			t.Errorf("Restore(%v) = %v, want ErrTaken", bad, err)
		}
	}
	if got := p.Leases(); !reflect.DeepEqual(got, []Lease{l}) {
		t.Errorf("Leases() = %v, want %v alone", got, l)
	}
	wantLease(t, p, 2, "ben", t0, "10.0.0.2", "fd77::2")
	wantLease(t, p, 3, "cem", t0, "10.0.0.4", "fd77::4")
}

func TestRestoreRests(t *testing.T) {
	p := mustNew(t, time.Minute, "10.0.0.0/29")
	if err := p.Restore(Lease{id(1), "ann", addrs("10.0.0.2")}); err != nil {
		t.Fatal(err)
	}
	p.RestoreRests([]Rest{
		{"ben", addrs("10.0.0.3"), t0.Add(time.Hour)}, // the clock was set back
		{"old", addrs("10.0.0.3"), t0.Add(-time.Hour)},
		{"cem", addrs("10.0.0.4"), t0.Add(-time.Hour)},
		{"dan", addrs("10.0.0.2"), t0}, // stale: it was leased again
		{"eve", addrs("10.9.9.9"), t0}, // no longer ours
		{"eve", addrs("10.0.0.7"), t0}, // never leased
	}, t0)
	want := []Rest{{"cem", addrs("10.0.0.4"), t0.Add(-time.Hour)}, {"ben", addrs("10.0.0.3"), t0}}
	if got := p.Snapshot(); !reflect.DeepEqual(got, want) {
		t.Errorf("Snapshot() = %v, want %v", got, want)
	}
	wantLease(t, p, 2, "ben", t0, "10.0.0.3")
	wantLease(t, p, 3, "old", t0, "10.0.0.5")
}

// redefined is the pool under other prefixes, as a manager makes it at a start
// from what the last process has left.
func redefined(t *testing.T, p *Pool, texts ...string) *Pool {
	t.Helper()
	q := mustNew(t, p.cooloff, texts...)
	for _, l := range p.Leases() {
		if err := q.Restore(l); err != nil {
			t.Fatalf("Restore(%v) = %v", l, err)
		}
	}
	q.RestoreRests(p.Snapshot(), t0)
	return q
}

func wantOutside(t *testing.T, p *Pool, want ...int) {
	t.Helper()
	var ids []session.ID
	for _, n := range want {
		ids = append(ids, id(n))
	}
	var got []session.ID
	for _, l := range p.Outside() {
		got = append(got, l.Session)
	}
	if fmt.Sprint(got) != fmt.Sprint(ids) {
		t.Errorf("outside are %v, want %v", got, ids)
	}
}

func TestOtherPrefixes(t *testing.T) {
	p := mustNew(t, time.Minute, "10.0.1.0/29")
	wantLease(t, p, 1, "ann", t0, "10.0.1.2")
	wantLease(t, p, 2, "ben", t0, "10.0.1.3")
	wantLease(t, p, 3, "cem", t0, "10.0.1.4")
	p.Free(id(3), t0)

	// Downwards, and a family more: 10.0.1.2 has index 258 now.
	p = redefined(t, p, "10.0.0.0/23", "fd77::/64")
	wantOutside(t, p)
	wantLease(t, p, 4, "cem", t0, "10.0.1.4", "fd77::104")
	wantLease(t, p, 5, "dan", t0, "10.0.0.2", "fd77::2")
	// 10.0.1.2 and 10.0.1.3 are outside; 10.0.1.4 too, though its fd77::104 is not.
	p = redefined(t, p, "10.0.0.0/24", "fd77::/64")
	wantOutside(t, p, 1, 2, 4)
	wantLease(t, p, 1, "ann", t0, "10.0.1.2") // lives on
	p.Free(id(1), t0)
	wantLease(t, p, 6, "ann", t0, "10.0.0.3", "fd77::3")
	p = redefined(t, p, "fd77::/64")
	wantOutside(t, p, 2, 4, 5, 6)
}

func TestGatewayAddressOfNewPrefixIsOutside(t *testing.T) {
	p := mustNew(t, time.Minute, "10.0.0.128/25")
	if err := p.Restore(Lease{id(1), "ann", addrs("10.0.0.129")}); err != nil {
		t.Fatal(err)
	}
	wantOutside(t, p, 1)
}

// A lease whose addresses other prefixes left under two indices blocks both.
func TestTwoIndices(t *testing.T) {
	p := mustNew(t, time.Minute, "10.0.1.0/29", "fd77::/64")
	wantLease(t, p, 1, "ann", t0, "10.0.1.2", "fd77::2")
	p = redefined(t, p, "10.0.0.0/23", "fd77::/64")
	wantLease(t, p, 2, "ben", t0, "10.0.0.3", "fd77::3") // not 10.0.0.2 with ann's fd77::2
	p.Free(id(1), t0)
	wantLease(t, p, 3, "ann", t0, "10.0.0.4", "fd77::4")
	for _, r := range p.Snapshot() {
		if r.Owner != "" || !r.FreedAt.Equal(t0) {
			t.Errorf("Snapshot has %v, want nobody's from %v", r, t0)
		}
	}
}

func TestJSON(t *testing.T) {
	b, err := json.Marshal(Lease{id(1), "ann", addrs("10.0.0.2", "fd77::2")})
	if want := `{"session":"00000000-0000-0000-0000-000000000001","owner":"ann","addresses":["10.0.0.2","fd77::2"]}`; err != nil || string(b) != want {
		t.Errorf("Marshal = %s, %v, want %s", b, err, want)
	}
}

// A full /16 and a /64 cost what is used of them.
func BenchmarkLease(b *testing.B) {
	for _, text := range []string{"10.77.0.0/16", "fd77::/64"} {
		b.Run(text, func(b *testing.B) {
			p := mustNew(b, time.Minute, text)
			for n := range 60000 {
				p.Lease(id(n), fmt.Sprint(n), t0)
			}
			b.ReportAllocs()
			for b.Loop() {
				p.Free(id(7), t0)
				p.Lease(id(7), "7", t0)
			}
		})
	}
}
