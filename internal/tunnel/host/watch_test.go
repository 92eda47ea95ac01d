package host

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// next waits for a change.
func next(t *testing.T, changes <-chan Change) Change {
	t.Helper()
	select {
	case c, ok := <-changes:
		if !ok {
			t.Fatal("the channel is closed")
		}
		return c
	case <-time.After(deadline):
		t.Fatal("no change came")
	}
	panic("unreachable")
}

// until waits for a change whose fingerprint satisfies f.
func until(t *testing.T, changes <-chan Change, what string, f func(string) bool) string {
	t.Helper()
	last := "nothing"
	timeout := time.After(deadline)
	for {
		select {
		case c := <-changes:
			if last = c.Fingerprint; f(last) {
				return last
			}
		case <-timeout:
			t.Fatalf("%s: last fingerprint %q", what, last)
		}
	}
}

func TestWatch(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.cable()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes, err := l.Watch(ctx)
	want(t, err)

	// A laboratory: no default route, the only address is all there is.
	steps := []struct {
		name, command string
		has           []string
		hasNot        []string
	}{
		{"address", "ip addr add 192.0.2.2/24 dev eth0", []string{"address 192.0.2.2/24 dev"}, nil},
		{"another address", "ip addr del 192.0.2.2/24 dev eth0 && ip addr add 192.0.2.3/24 dev eth0", []string{"address 192.0.2.3/24 dev"}, []string{"192.0.2.2"}},
		{"carrier lost", "ip link set eth1 down", []string{"down"}, nil},
		{"carrier back", "ip link set eth1 up", []string{"address 192.0.2.3/24"}, []string{"down"}},
		{"default route", "ip route add default via 192.0.2.1", []string{"default 0.0.0.0/0 via 192.0.2.1"}, nil},
		{"another router", "ip route replace default via 192.0.2.9", []string{"via 192.0.2.9"}, []string{"via 192.0.2.1"}},
		{"address where no router is", "ip addr add 198.51.100.1/24 dev eth1 && ip addr add 192.0.2.4/24 dev eth0", []string{"192.0.2.4/24"}, []string{"198.51.100.1"}},
		{"IPv6 address", "ip addr add 2001:db8::2/64 dev eth0 nodad", []string{"2001:db8::2/64"}, nil},
	}
	seen := map[string]string{}
	for _, step := range steps {
		s.run(step.command)
		got := until(t, changes, step.name, func(f string) bool {
			for _, x := range step.has {
				if !strings.Contains(f, x) {
					return false
				}
			}
			for _, x := range step.hasNot {
				if strings.Contains(f, x) {
					return false
				}
			}
			return true
		})
		seen[got] = step.name
	}
	cancel()
	for range changes { // closed in the end
	}
}

func TestWatchIgnoresOurs(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.cable()
	s.run("ip addr add 192.0.2.2/24 dev eth0")
	remove := s.tun("tnl0")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	before, err := l.Fingerprint()
	want(t, err)
	changes, err := l.Watch(ctx)
	want(t, err)

	want(t, l.SetLink("tnl0", prefixes("10.77.0.2/32", "fd77::2/128"), 1420))
	want(t, l.SetRoutes("tnl0", prefixes("10.77.0.0/16", "0.0.0.0/0", "::/0")))
	want(t, l.SetMasquerade("tnl0", prefixes("10.77.0.0/16")))
	want(t, l.SetRoutes("tnl0", prefixes("10.77.0.0/16")))
	want(t, l.SetLink("tnl0", prefixes("10.77.0.3/32"), 1400))
	want(t, l.Cleanup("tnl0"))
	remove()
	s.waitGone("tnl0")
	s.run("ip addr add 192.0.2.3/24 dev eth0") // the end mark
	if c := next(t, changes); !strings.Contains(c.Fingerprint, "192.0.2.3") {
		t.Errorf("a change of ours came through: %q", c.Fingerprint)
	}
	s.run("ip addr del 192.0.2.3/24 dev eth0")
	if got := until(t, changes, "back", func(f string) bool { return f == before }); got != before {
		t.Errorf("fingerprint = %q, want %q as before", got, before)
	}
}

// TestWatchSurvivesOverrun fills the socket, before anybody reads it, with news
// of an interface of ours, which is none; what comes then is lost.
func TestWatchSurvivesOverrun(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.cable()
	w, err := l.newWatcher(1) // the kernel makes it its minimum
	want(t, err)
	ours, err := l.link("eth1")
	want(t, err)
	l.claim(ours.Attrs().Index)
	var batch strings.Builder
	for i := range 200 {
		fmt.Fprintf(&batch, "addr add 203.0.113.%d/32 dev eth1\n", i)
	}
	s.run("ip -batch - <<'END'\n" + batch.String() + "addr add 198.51.100.199/32 dev eth0\nEND")

	ctx, cancel := context.WithCancel(t.Context())
	changes := make(chan Change)
	done := make(chan struct{})
	go func() { defer close(done); w.run(ctx, changes) }()
	until(t, changes, "after the overrun", func(f string) bool {
		return strings.Contains(f, "198.51.100.199/32")
	})
	s.run("ip addr add 192.0.2.3/24 dev eth0") // it goes on
	until(t, changes, "after that", func(f string) bool { return strings.Contains(f, "192.0.2.3") })
	cancel()
	for range changes {
	}
	<-done
}

// TestWatchBusyReader lets changes pile up and gets the last state.
func TestWatchBusyReader(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.cable()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes, err := l.Watch(ctx)
	want(t, err)
	for i := range 20 {
		s.run(fmt.Sprintf("ip addr add 198.51.100.%d/32 dev eth0", i))
	}
	n := 0
	until(t, changes, "all twenty", func(f string) bool { n++; return strings.Count(f, "address") == 20 })
	if n > 3 {
		t.Errorf("a busy reader got %d values, want a few", n)
	}
}

func TestWatchNeverReadEnds(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	ctx, cancel := context.WithCancel(t.Context())
	changes, err := l.Watch(ctx)
	want(t, err)
	s.run("ip addr add 192.0.2.3/24 dev lo")
	cancel()
	timeout := time.After(deadline)
	for {
		select {
		case _, ok := <-changes:
			if !ok {
				return
			}
		case <-timeout:
			t.Fatal("the channel stays open")
		}
	}
}
