package netlab

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
)

// Picture draws the laboratory as it is now: hosts with their addresses and
// processes, wires with what they do and what they have done.
//
//	alice  node pid 4711 runs, default via 192.168.1.1
//	├─ eth0  192.168.1.10/24 ═══ 192.168.1.1/24  lan of nat
//	│    delay 5ms, → 212 frames, ← 208, lost 3
//	│    nat  masquerades out of wan, ports 20000-20999
//	│    ├─ lan  192.168.1.1/24 ═══ 192.168.1.10/24  eth0 of alice
//	├─ tnl0  10.77.0.2/32
func (l *Lab) Picture() string {
	p := picture{lab: l, drawn: map[*Host]bool{}, wires: l.wires()}
	for _, h := range l.Hosts() {
		if !p.drawn[h] {
			p.host(h, "")
		}
	}
	return p.out.String()
}

type picture struct {
	lab   *Lab
	out   strings.Builder
	drawn map[*Host]bool
	wires []*Wire
}

func (p *picture) line(format string, args ...any) {
	p.out.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " ") + "\n")
}

// host draws h, then each host behind its wires that is not drawn yet, further
// to the right.
func (p *picture) host(h *Host, indent string) {
	p.drawn[h] = true
	p.line("%s%s  %s", indent, h.name, h.describe(p.lab))
	wired := map[string]bool{}
	for _, w := range p.wires {
		for i, e := range w.ends {
			if e.Host == h {
				wired[e.If] = true
				p.wire(w, Direction(i), indent)
			}
		}
	}
	links, _ := h.nl.LinkList() // an incomplete picture is better than none
	for _, link := range links {
		if name := link.Attrs().Name; name != "lo" && !wired[name] {
			p.line("%s├─ %s  %s", indent, name, h.addrText(name))
		}
	}
}

// wire draws w as seen from the end that sends in direction d.
func (p *picture) wire(w *Wire, d Direction, indent string) {
	near, far := w.ends[d], w.ends[d.Other()]
	p.line("%s├─ %s  %s ═══ %s  %s of %s", indent, near.If, near.Host.addrText(near.If),
		far.Host.addrText(far.If), far.If, far.Host.name)
	if p.drawn[far.Host] {
		return
	}
	p.line("%s│    %s", indent, w.describe(d))
	p.host(far.Host, indent+"│    ")
}

// describe says what the wire does and did, as seen from the end that sends in
// direction d.
func (w *Wire) describe(d Direction) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	parts := []string{}
	if w.cut {
		parts = append(parts, "CUT")
	}
	if w.err != nil {
		parts = append(parts, "BROKEN: "+w.err.Error())
	}
	if im := w.im.String(); im != "" {
		parts = append(parts, im)
	}
	for key := range w.drops {
		parts = append(parts, fmt.Sprintf("drops %s port %d", map[uint8]string{protoTCP: "TCP", protoUDP: "UDP"}[key.proto], key.port))
	}
	there, back := w.counters[d], w.counters[d.Other()]
	parts = append(parts, fmt.Sprintf("→ %d frames, ← %d, lost %d", there.Delivered, back.Delivered,
		there.Received+there.Doubled-there.Delivered+back.Received+back.Doubled-back.Delivered))
	return strings.Join(parts, ", ")
}

// describe says what the host runs and where it sends what it knows no route to.
func (h *Host) describe(l *Lab) string {
	var parts []string
	l.mu.Lock()
	things := l.things
	l.mu.Unlock()
	for _, t := range things {
		if p, ok := t.(*Process); ok && p.host == h {
			state := "has ended"
			if p.Running() {
				state = "runs"
			}
			parts = append(parts, fmt.Sprintf("%s pid %d %s", p.name, p.PID(), state))
		}
	}
	h.mu.Lock()
	nat := h.nat
	h.mu.Unlock()
	if nat != nil {
		first, last := nat.ports()
		parts = append(parts, fmt.Sprintf("masquerades out of %s, ports %d-%d", nat.outside, first, last))
	}
	routes, _ := dump(func() ([]netlink.Route, error) { return h.nl.RouteList(nil, netlink.FAMILY_ALL) })
	for _, r := range routes {
		if gw, ok := netip.AddrFromSlice(r.Gw); ok && r.Dst != nil && toPrefix(r.Dst).Bits() == 0 {
			parts = append(parts, fmt.Sprintf("default via %v", gw.Unmap()))
		}
	}
	return strings.Join(parts, ", ")
}

func (h *Host) addrText(ifname string) string {
	addrs, err := h.Addrs(ifname)
	if err != nil {
		return "(gone)"
	}
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	if len(texts) == 0 {
		return "(no address)"
	}
	return strings.Join(texts, " ")
}
