package netlab

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestBuild(t *testing.T) {
	lab := ForTest(t)
	n := must(lab.Build(`
		a.eth0 10.1.0.2/24 fd01::2/64 -- r.left 10.1.0.1/24 fd01::1/64
		r.right 10.2.0.1/24 fd02::1/64 -- b.eth0 10.2.0.2/24 fd02::2/64

		a default 10.1.0.1
		a default fd01::1
		b route 10.1.0.0/16 10.2.0.1
		b route fd01::/64 fd02::1
		r forwards
	`))(t)
	for _, to := range []string{"10.2.0.2", "fd02::2"} {
		must(n.Hosts["a"].Ping(within(t, 5*time.Second), netip.MustParseAddr(to)))(t)
	}
	if n.Wires["a.eth0"] == nil || n.Wires["a.eth0"] != n.Wires["r.left"] {
		t.Errorf("Wires = %v, want one wire by both its ends", n.Wires)
	}
}

func TestBuildRefuses(t *testing.T) {
	for plan, want := range map[string]string{
		"a":                             `plan: "a": what about host a?`,
		"a sings":                       "what about host a?",
		"a -- b.eth0":                   `end "a" is not host.interface`,
		"a.eth0 --":                     "a wire needs two ends",
		"a.eth0 10.0.0.1 -- b.eth0":     "host a: address of eth0",
		"a default 10.0.0.1":            "host a: route to 0.0.0.0/0 by way of 10.0.0.1",
		"a.waytoolongname00 -- b.eth0":  `make TAP device "waytoolongname00"`,
		"a.eth0 -- b.eth0\nb route x y": "host b: route",
	} {
		lab := ForTest(t)
		if _, err := lab.Build(plan); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Build(%q) = %v, want an error with %q", plan, err, want)
		}
	}
}
