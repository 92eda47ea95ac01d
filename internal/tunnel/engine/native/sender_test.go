package native

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tunneld/internal/tunnel/engine/udp"
)

// TestSender sends datagrams of all sizes and marks to two places, with and
// without segmentation, and expects each whole and in order.
func TestSender(t *testing.T) {
	for _, plain := range []bool{false, true} {
		e, err := New(Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), NoOffload: plain})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		var conns []*net.UDPConn
		var to []*udp.Endpoint
		for range 2 {
			c := listenLoopback(t, 1)
			defer c.Close()
			c.SetReadBuffer(8 << 20)
			conns = append(conns, c)
			to = append(to, udp.NewRouted(udp.LocalAddr(c)))
		}
		s := newSender(e, arenaSize)
		want := make([][][]byte, 2)
		add := func(which, size int, ecn byte) {
			b := bytes.Repeat([]byte{byte(len(want[which]) + 1)}, size)
			s.commit(to[which], copy(s.room(size), b), ecn, nil)
			want[which] = append(want[which], b)
		}
		for range 150 { // more than one message's worth
			add(0, 100, 0)
		}
		for i := range 10 { // growing: each a message
			add(0, 200+i, 0)
		}
		for i := range 10 { // by turns
			add(i%2, 300, 0)
		}
		for i := range 10 { // of several marks
			add(1, 50, byte(i%3))
		}
		for range 60 { // more than the arena's worth
			add(1, 4000, ecnECT0)
		}
		add(1, 20000, 0)
		s.flush()
		if s.waiting() != 0 {
			t.Errorf("%d octets wait after flush", s.waiting())
		}
		for which, c := range conns {
			b := make([]byte, 1<<16)
			for i, w := range want[which] {
				c.SetReadDeadline(time.Now().Add(patience))
				n, err := c.Read(b)
				if err != nil {
					t.Fatalf("plain %v, place %d: datagram %d of %d: %v", plain, which, i, len(want[which]), err)
				}
				if !bytes.Equal(b[:n], w) {
					t.Fatalf("plain %v, place %d: datagram %d = %d octets of %d, want %d of %d", plain, which, i, n, b[0], len(w), w[0])
				}
			}
		}
		if n := e.counts.unsent.Load(); n != 0 {
			t.Errorf("plain %v: %d datagrams were refused", plain, n)
		}
	}
}

// TestRuns says what is sent as one message.
func TestRuns(t *testing.T) {
	e := &Engine{sockets: []*socket{{Socket: udp.Socket{Local: netip.MustParseAddrPort("127.0.0.1:9")}}}}
	e.sockets[0].GSO.Store(true)
	a, b := udp.NewRouted(netip.MustParseAddrPort("127.0.0.1:1")), udp.NewRouted(netip.MustParseAddrPort("127.0.0.1:2"))
	for name, c := range map[string]struct {
		to    []*udp.Endpoint
		sizes []int
		want  []int // datagrams in each run
	}{
		"equal":          {[]*udp.Endpoint{a, a, a}, []int{10, 10, 10}, []int{3}},
		"shorter last":   {[]*udp.Endpoint{a, a, a}, []int{10, 10, 5}, []int{3}},
		"after shorter":  {[]*udp.Endpoint{a, a, a}, []int{10, 5, 5}, []int{2, 1}},
		"longer":         {[]*udp.Endpoint{a, a}, []int{10, 11}, []int{1, 1}},
		"another":        {[]*udp.Endpoint{a, b, a}, []int{10, 10, 10}, []int{1, 1, 1}},
		"segment limit":  {slices.Repeat([]*udp.Endpoint{a}, 65), slices.Repeat([]int{9}, 65), []int{64, 1}},
		"datagram limit": {slices.Repeat([]*udp.Endpoint{a}, 3), slices.Repeat([]int{30000}, 3), []int{2, 1}},
	} {
		s := newSender(e, arenaSize)
		for i, to := range c.to {
			s.room(c.sizes[i])
			s.commit(to, c.sizes[i], 0, nil)
		}
		var got []int
		for _, r := range s.runs[:s.n] {
			got = append(got, r.count)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: runs of %v datagrams, want %v", name, got, c.want)
		}
	}
}
