package hosttest

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"

	"tunneld/internal/tunnel/host"
)

func TestFakeRecords(t *testing.T) {
	f := New()
	p := netip.MustParsePrefix("10.77.0.2/32")
	full := errors.New("disk full")
	f.Fail("SetMasquerade", full)
	if err := f.SetLink("tnl0", []netip.Prefix{p}, 1420); err != nil {
		t.Fatal(err)
	}
	if err := f.SetMasquerade("tnl0", []netip.Prefix{p}); !errors.Is(err, full) {
		t.Errorf("SetMasquerade = %v, want %v", err, full)
	}
	if err := f.SetRoutes("tnl0", []netip.Prefix{p}); err != nil {
		t.Fatal(err)
	}
	if err := f.SetRoutes("tnl1", []netip.Prefix{p}); err == nil {
		t.Error("one prefix through two interfaces: no error")
	}
	var got []string
	for _, c := range f.Calls() {
		got = append(got, c.String())
	}
	want := []string{"SetLink(tnl0 [10.77.0.2/32] 1420)", "SetMasquerade(tnl0 [10.77.0.2/32])", "SetRoutes(tnl0 [10.77.0.2/32])", "SetRoutes(tnl1 [10.77.0.2/32])"}
	if !slices.Equal(got, want) {
		t.Errorf("calls = %q, want %q", got, want)
	}
	if len(f.Masquerade("tnl0")) != 0 || len(f.Routes("tnl0")) != 1 {
		t.Errorf("masquerade = %v, routes = %v, want none and one", f.Masquerade("tnl0"), f.Routes("tnl0"))
	}
}

func TestFakeWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New()
		ctx, cancel := context.WithCancel(t.Context())
		changes, err := f.Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		f.Change("a")
		f.Change("b")
		synctest.Wait()
		if got := <-changes; got != (host.Change{Fingerprint: "b"}) {
			t.Errorf("change = %v, want the last, b", got)
		}
		cancel()
		synctest.Wait()
		if _, ok := <-changes; ok || f.Watchers() != 0 {
			t.Errorf("after the end: open = %v, watchers = %d, want closed and 0", ok, f.Watchers())
		}
	})
}
