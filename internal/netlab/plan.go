package netlab

import (
	"fmt"
	"strings"
)

// Net is a network that was built from a plan.
type Net struct {
	Hosts map[string]*Host // by name
	Wires map[string]*Wire // by the name of each end: host.interface
	NATs  map[string]*NAT  // by host
}

// Build makes the hosts and wires of a plan, one thing a line:
//
//	alice.eth0 192.168.1.10/24 -- nat.lan 192.168.1.1/24   a wire, its ends with their addresses
//	alice default 192.168.1.1                              where packets go without a better route
//	hq route 10.20.0.0/24 10.50.0.2                        where those to a prefix go
//	hq forwards                                            a router
//	nat translates wan                                     and one that hides what is behind it
//
// A host is made where it is first named. Empty lines do not matter. Wires have
// no impairment: see [Wire.Set].
func (l *Lab) Build(plan string) (*Net, error) {
	n := &Net{Hosts: map[string]*Host{}, Wires: map[string]*Wire{}, NATs: map[string]*NAT{}}
	for line := range strings.Lines(plan) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if err := n.build(l, f); err != nil {
			return nil, fmt.Errorf("plan: %q: %w", strings.TrimSpace(line), err)
		}
	}
	return n, nil
}

func (n *Net) build(l *Lab, f []string) error {
	if before, after, ok := cutWords(f, "--"); ok {
		return n.wire(l, before, after)
	}
	h, err := n.host(l, f[0])
	if err != nil {
		return err
	}
	switch {
	case len(f) == 3 && f[1] == "default":
		return h.DefaultRoute(f[2])
	case len(f) == 4 && f[1] == "route":
		return h.Route(f[2], f[3])
	case len(f) == 2 && f[1] == "forwards":
		return h.Forward(true)
	case len(f) == 3 && f[1] == "translates":
		n.NATs[f[0]], err = l.NAT(h, f[2])
		return err
	}
	return fmt.Errorf("what about host %s?", f[0])
}

// wire makes the wire between two ends, each a name and addresses.
func (n *Net) wire(l *Lab, a, b []string) error {
	var hosts [2]*Host
	var ifs [2]string
	for i, end := range [][]string{a, b} {
		if len(end) == 0 {
			return fmt.Errorf("a wire needs two ends")
		}
		name, ifname, ok := strings.Cut(end[0], ".")
		if !ok {
			return fmt.Errorf("end %q is not host.interface", end[0])
		}
		h, err := n.host(l, name)
		if err != nil {
			return err
		}
		hosts[i], ifs[i] = h, ifname
	}
	w, err := l.Wire(hosts[0], ifs[0], hosts[1], ifs[1], Impairment{Seed: uint64(len(n.Wires))})
	if err != nil {
		return err
	}
	n.Wires[a[0]], n.Wires[b[0]] = w, w
	if err := hosts[0].SetAddr(ifs[0], a[1:]...); err != nil {
		return err
	}
	return hosts[1].SetAddr(ifs[1], b[1:]...)
}

func (n *Net) host(l *Lab, name string) (h *Host, err error) {
	if n.Hosts[name] == nil {
		if h, err = l.Host(name); err != nil {
			return nil, err
		}
		n.Hosts[name] = h
	}
	return n.Hosts[name], nil
}

func cutWords(f []string, sep string) (before, after []string, ok bool) {
	for i, word := range f {
		if word == sep {
			return f[:i], f[i+1:], true
		}
	}
	return f, nil, false
}
