package interop

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What a packet grows by on its way through a tunnel: IP and UDP outside, and
// header and tag of the transport message.
const headers4, headers6 = 20 + 8 + 32, 40 + 8 + 32

// TestForeignMTU sends packets at, just below and above the limit of tunnels of
// several sizes to a foreign end and back, over both families outside, on a wire
// that takes what fits the tunnel and not an octet more; then streams, which
// offloads join and cut.
func TestForeignMTU(t *testing.T) { testForeignMTU(t, wireguardGo, 8<<20) }

func testForeignMTU(t *testing.T, far far, stream int) {
	for _, mtu := range []int{1280, 1420, 9000} {
		for _, c := range []struct {
			outer   string
			headers int
		}{{"192.0.2.2", headers4}, {"2001:db8::2", headers6}} {
			t.Run(fmt.Sprintf("%d over %s", mtu, c.outer), func(t *testing.T) {
				if far != kernel {
					t.Parallel()
				}
				to := netip.AddrPortFrom(netip.MustParseAddr(c.outer), farPort)
				f := meet(t, far, "native", mtu, func(s *Session) { s.Endpoint = to })
				for _, h := range []host{f.host, f.ours.host} {
					h.run("ip", "link", "set", "wire", "mtu", fmt.Sprint(mtu+c.headers))
				}
				before := [2]int{f.fragments(), f.ours.fragments()}
				atTheLimit(t, "to the far end", f.ours.host, "10.1.0.2", "fd01::2", mtu)
				atTheLimit(t, "from the far end", f.host, "10.1.0.1", "fd01::1", mtu)
				inner := [2]int{f.fragments() - before[0], f.ours.fragments() - before[1]}
				// Of the packets above the limit that may be cut, three each way
				// and family are, and so are their answers: in two each.
				if want := 2 * 2 * 2 * probes; inner[0] != want || inner[1] != want {
					t.Errorf("fragments made at the far end and here: %v, want %d each, of inner packets alone", inner, want)
				}
				f.streams(stream)
			})
		}
	}
}

// probes is how many packets of a size are sent at once.
const probes = 3

// atTheLimit sends packets from a host through a tunnel.
func atTheLimit(t *testing.T, what string, from host, to4, to6 string, mtu int) {
	t.Helper()
	for _, c := range []struct {
		to   string
		ip   int // octets of header
		size int
		cut  string // whether routers may cut it, as ping has it
		want int
	}{
		{to4, 20, mtu - 1, "do", probes}, {to4, 20, mtu, "do", probes}, {to4, 20, mtu + 1, "do", 0}, {to4, 20, mtu + 1, "dont", probes},
		{to6, 40, mtu - 1, "do", probes}, {to6, 40, mtu, "do", probes}, {to6, 40, mtu + 1, "do", 0}, {to6, 40, mtu + 1, "dont", probes},
	} {
		if got := from.ping(c.to, probes, "-M", c.cut, "-s", fmt.Sprint(c.size-c.ip-8)); got != c.want {
			t.Errorf("%s: ping %s with packets of %d, -M %s: %d answers, want %d", what, c.to, c.size, c.cut, got, c.want)
		}
	}
}

// streams sends much both ways at once, over both families inside.
func (f *foreign) streams(size int) {
	f.t.Helper()
	mirror := f.start("native")
	for _, to := range []string{"10.1.0.2", "fd01::2"} {
		mirror.call("Mirror", Args{})
		var sums [2]string
		if err := f.ours.client.Call("Node.Stream", Args{Addr: netip.AddrPortFrom(netip.MustParseAddr(to), mirrorPort), Size: size}, &sums); err != nil {
			f.t.Fatal(err)
		}
		if sums[0] != sums[1] {
			f.t.Errorf("stream to %s: sent %s, came back %s", to, sums[0], sums[1])
		}
	}
}

// fragments is how many the host has cut packets into.
func (h host) fragments() (n int) {
	h.t.Helper()
	at := 0
	for line := range strings.Lines(h.run("cat", "/proc/net/snmp", "/proc/net/snmp6")) {
		value := "0"
		switch f := strings.Fields(line); {
		case f[0] == "Ip:" && at == 0: // names come first, then values
			at = slices.Index(f, "FragCreates")
		case f[0] == "Ip:":
			value = f[at]
		case f[0] == "Ip6FragCreates":
			value = f[1]
		}
		v, err := strconv.Atoi(value)
		if err != nil {
			h.t.Fatal(err)
		}
		n += v
	}
	return n
}
