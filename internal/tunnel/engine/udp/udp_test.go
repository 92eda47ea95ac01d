package udp

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine"
)

func TestRemedy(t *testing.T) {
	var s Socket
	for _, c := range []struct {
		name               string
		sourced, segmented bool
		err                error
		want               Remedy
		gso                bool
		flags              uint32
	}{
		{"no checksums in the device", false, true, unix.EIO, Divide, false, 0},
		{"segment larger than the MTU", false, true, unix.EINVAL, Divide, true, flagNoSegments},
		{"segment larger than the MTU, newer kernel", true, true, unix.EMSGSIZE, Divide, true, flagNoSegments},
		{"source gone", true, false, unix.EINVAL, Unsource, true, flagSourceCleared},
		{"interface gone", true, false, unix.ENODEV, Unsource, true, flagSourceCleared},
		{"no route from this source", true, false, unix.ENETUNREACH, Unsource, true, flagSourceCleared},
		{"no route at all", false, false, unix.ENETUNREACH, GiveUp, true, 0},
		{"buffer full", true, true, unix.EAGAIN, GiveUp, true, 0},
		{"filtered", true, true, unix.EPERM, GiveUp, true, 0},
	} {
		s.GSO.Store(true)
		e := NewRouted(netip.MustParseAddrPort("192.0.2.1:1"))
		if got := s.Remedy(e, c.sourced, c.segmented, c.err); got != c.want || s.GSO.Load() != c.gso || e.flags.Load() != c.flags {
			t.Errorf("%s: Remedy = %v, GSO = %v, flags = %b, want %v, %v, %b", c.name, got, s.GSO.Load(), e.flags.Load(), c.want, c.gso, c.flags)
		}
	}
}

// TestControl writes control messages and reads them back.
func TestControl(t *testing.T) {
	const marked = 3
	e := NewEndpoint(netip.MustParseAddrPort("[2001:db8::2]:9"), Source{netip.MustParseAddr("2001:db8::1"), 7}, 0)
	b := e.AppendECN(e.AppendSource(make([]byte, 0, ControlSize), 0), marked)
	b, size := appendControl(b, unix.IPPROTO_UDP, unix.UDP_GRO, 4)
	*(*int32)(size) = 1200
	if got, want := ParseControl(b), (Arrival{1200, marked, e.Src}); got != want {
		t.Errorf("ParseControl = %+v, want %+v", got, want)
	}
	for n := range b { // cut short anywhere, nothing is read beyond the end
		ParseControl(b[:n:n])
	}
	if b := e.AppendSource(make([]byte, 0, ControlSize), 1); len(b) != 0 {
		t.Errorf("in another generation of paths the source is named in %d octets, want none", len(b))
	}
}

// FuzzParseControl: the kernel writes control messages, but of what peers sent.
func FuzzParseControl(f *testing.F) {
	e := NewEndpoint(netip.MustParseAddrPort("192.0.2.2:9"), Source{netip.MustParseAddr("192.0.2.1"), 7}, 0)
	f.Add(AppendSegmentSize(e.AppendECN(e.AppendSource(make([]byte, 0, ControlSize), 0), 1), 1400))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a := ParseControl(append([]byte(nil), b...)); a.ECN > 3 {
			t.Errorf("ParseControl(%x) = %+v", b, a)
		}
	})
}

// TestEndpoint writes addresses as the kernel reads them, and back.
func TestEndpoint(t *testing.T) {
	for _, s := range []string{"192.0.2.1:443", "[2001:db8::1]:9", "[fe80::1%7]:9"} {
		dst := netip.MustParseAddrPort(s)
		var h Header
		h.Address(NewRouted(dst), nil)
		if got := AddrPort((*unix.RawSockaddrInet6)(unsafe.Pointer(h.Name))); got != dst {
			t.Errorf("the kernel's form of %v reads %v", dst, got)
		}
		if is4 := dst.Addr().Is4(); is4 != NewRouted(dst).Is4() {
			t.Errorf("%v: Is4 = %v", dst, !is4)
		}
	}
	a, src := netip.MustParseAddrPort("192.0.2.1:1"), Source{netip.MustParseAddr("192.0.2.9"), 1}
	e := NewEndpoint(a, src, 5)
	for name, c := range map[string]struct {
		e, f *Endpoint
		want bool
	}{
		"the same":           {e, NewEndpoint(a, src, 5), true},
		"other source":       {e, NewEndpoint(a, Source{src.Addr, 2}, 5), false},
		"other paths":        {e, NewEndpoint(a, src, 6), false},
		"routed, any source": {NewRouted(a), e, true},
		"another place":      {NewRouted(a), NewEndpoint(netip.MustParseAddrPort("192.0.2.1:2"), src, 5), false},
	} {
		if got := c.e.Covers(c.f); got != c.want {
			t.Errorf("%s: Covers = %v, want %v", name, got, c.want)
		}
	}
	e.ClearSource()
	if e.Covers(NewEndpoint(a, src, 5)) || e.HasSource(5) {
		t.Error("after ClearSource the source is named, or thought to be right")
	}
}

// TestOffloadsEnd prepares a socket again, as the next process does, without
// wanting what the one before had.
func TestOffloadsEnd(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, want := range []bool{true, false} {
		s := Socket{Local: netip.MustParseAddrPort("127.0.0.1:1")}
		if err := s.Prepare(fd, 0, want); err != nil {
			t.Fatal(err)
		}
		on, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO)
		if err != nil || on == 1 != want || s.GRO != want || s.GSO.Load() != want {
			t.Errorf("prepared with offloads %v: UDP_GRO = %d, %v, GRO %v, GSO %v", want, on, err, s.GRO, s.GSO.Load())
		}
	}
}

// TestListenSeveral binds several sockets to one port: what comes from one place
// comes to one of them, all have their part, and nobody else gets the port.
func TestListenSeveral(t *testing.T) {
	const n, places = 3, 100
	conns, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"), n)
	if err != nil {
		t.Fatal(err)
	}
	defer CloseAll(conns)
	at := LocalAddr(conns[0])
	if _, err := Listen(at, n); !errors.Is(err, engine.ErrPortTaken) {
		t.Errorf("Listen on a taken port = %v, want %v", err, engine.ErrPortTaken)
	}
	for range places {
		from, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := from.Write([]byte{1}); err != nil {
				t.Fatal(err)
			}
		}
		from.Close()
	}
	total := 0
	for i, c := range conns {
		got := make(map[netip.AddrPort]int)
		for {
			c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // all is there already
			_, from, err := c.ReadFromUDPAddrPort(make([]byte, 1))
			if err != nil {
				break
			}
			got[from]++
			total++
		}
		for from, k := range got {
			if k != 2 {
				t.Errorf("socket %d has %d of 2 datagrams from %v", i, k, from)
			}
		}
		if len(conns) != n || len(got) == 0 || LocalAddr(c) != at {
			t.Errorf("socket %d of %d, at %v, has had datagrams from %d places, want some", i, len(conns), LocalAddr(c), len(got))
		}
	}
	if total != 2*places {
		t.Errorf("%d datagrams arrived, want %d", total, 2*places)
	}
}
