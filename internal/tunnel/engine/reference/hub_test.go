package reference

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
	"tunneld/internal/tunnel/engine/udp"
)

// A listener reads a bind as wireguard-go does.
type listener struct {
	*bind
	fns  []conn.ReceiveFunc
	got  chan []byte
	from chan conn.Endpoint
	err  chan error // one from each function
}

func listenOn(t *testing.T, h *hub, public engine.PublicKey) *listener {
	t.Helper()
	l := &listener{bind: &bind{hub: h, mayShake: new(roles).mayLeave}, got: make(chan []byte, 4096), from: make(chan conn.Endpoint, 4096), err: make(chan error, 2)}
	l.mac1.Store(newMAC1Key(public))
	var err error
	if l.fns, _, err = l.Open(0); err != nil {
		t.Fatal(err)
	}
	for _, fn := range l.fns {
		go func() { l.err <- l.loop(fn) }()
	}
	t.Cleanup(func() { l.end(t) })
	return l
}

func (l *listener) loop(fn conn.ReceiveFunc) error {
	bufs, sizes, eps := buffers(batchSize)
	for {
		n, err := fn(bufs, sizes, eps)
		if err != nil {
			return err
		}
		for i := range n {
			if sizes[i] > 0 {
				l.got <- append([]byte(nil), bufs[i][:sizes[i]]...)
				l.from <- eps[i]
			}
		}
	}
}

// end closes the bind and waits for its functions.
func (l *listener) end(t *testing.T) {
	t.Helper()
	l.Close()
	for range l.fns {
		select {
		case err := <-l.err:
			if err != net.ErrClosed {
				t.Errorf("receive function ended with %v, want exactly net.ErrClosed", err)
			}
		case <-time.After(patience):
			t.Fatal("receive function does not end after Close")
		}
	}
	l.fns = nil
}

// next is the next datagram; nil if none comes within d.
func (l *listener) next(d time.Duration) []byte { return within(l.got, d) }

func buffers(n int) ([][]byte, []int, []conn.Endpoint) {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, 1<<16)
	}
	return bufs, make([]int, n), make([]conn.Endpoint, n)
}

// message makes a message of a type with an index at offset 4.
func message(kind, index uint32, size int) []byte {
	b := make([]byte, size)
	binary.LittleEndian.PutUint32(b, kind)
	binary.LittleEndian.PutUint32(b[4:], index)
	return b
}

// initiation makes an initiation for a public key.
func initiation(k engine.PublicKey, sender uint32) []byte {
	b := message(device.MessageInitiationType, sender, device.MessageInitiationSize)
	var g device.CookieGenerator
	g.Init(device.NoisePublicKey(k))
	g.AddMacs(b)
	return b
}

func TestSortByReceiver(t *testing.T) {
	defer goleak.VerifyNone(t)
	e, err := New(Config{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	peer, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(e.addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	_, keyA := enginetest.NewKey(t)
	_, keyB := enginetest.NewKey(t)
	_, keyC := enginetest.NewKey(t)
	a, b := listenOn(t, e.hub, keyA), listenOn(t, e.hub, keyB)
	there := newEndpoint(peer.LocalAddr().(*net.UDPAddr).AddrPort())
	leave := func(l *listener, m []byte) {
		t.Helper()
		if err := l.Send([][]byte{m}, there); err != nil {
			t.Fatal(err)
		}
	}
	leave(a, message(device.MessageInitiationType, 11, device.MessageInitiationSize))
	leave(b, message(device.MessageInitiationType, 22, device.MessageInitiationSize))
	leave(a, message(device.MessageResponseType, 33, device.MessageResponseSize))
	response := func(receiver uint32) []byte {
		m := message(device.MessageResponseType, 99, device.MessageResponseSize)
		binary.LittleEndian.PutUint32(m[8:], receiver)
		return m
	}
	for _, c := range []struct {
		name string
		m    []byte
		to   *listener
	}{
		{"initiation for a", initiation(keyA, 1), a},
		{"initiation for b", initiation(keyB, 2), b},
		{"initiation for nobody", initiation(keyC, 3), nil},
		{"response for a", response(11), a},
		{"response for b", response(22), b},
		{"response for nobody", response(44), nil},
		{"cookie for b", message(device.MessageCookieReplyType, 22, device.MessageCookieReplySize), b},
		{"data for a, from its initiation", message(device.MessageTransportType, 11, 100), a},
		{"data for a, from its response", message(device.MessageTransportType, 33, 100), a},
		{"data for b", message(device.MessageTransportType, 22, 9000), b},
		{"data for nobody", message(device.MessageTransportType, 44, 100), nil},
		{"garbage", bytes.Repeat([]byte{0xee}, 100), nil},
		{"too short", []byte{4, 0, 0, 0, 11, 0, 0}, nil},
	} {
		if _, err := peer.Write(c.m); err != nil {
			t.Fatal(err)
		}
		for _, l := range []*listener{a, b} {
			wait := 30 * time.Millisecond
			if l == c.to {
				wait = patience
			}
			if got := l.next(wait); l == c.to != bytes.Equal(got, c.m) || l != c.to && got != nil {
				t.Errorf("%s: device %s got %d octets, is receiver = %v", c.name, map[*listener]string{a: "a", b: "b"}[l], len(got), l == c.to)
			}
		}
	}
	for i := range 3 { // whoever leads now, the other goes on without it
		first, second := a, b
		if i%2 == 1 {
			first, second = b, a
		}
		first.end(t)
		index := map[*listener]uint32{a: 11, b: 22}[second]
		m := message(device.MessageTransportType, index, 200+i)
		if _, err := peer.Write(m); err != nil {
			t.Fatal(err)
		}
		if got := second.next(patience); !bytes.Equal(got, m) {
			t.Fatalf("round %d: after one device closed, the other got %d octets, want %d", i, len(got), len(m))
		}
		again := listenOn(t, e.hub, map[*listener]engine.PublicKey{a: keyA, b: keyB}[first])
		leave(again, message(device.MessageInitiationType, map[*listener]uint32{a: 11, b: 22}[first], device.MessageInitiationSize))
		if first == a {
			a = again
		} else {
			b = again
		}
	}
	a.end(t)
	b.end(t)
}

func TestSlowDeviceLosesItsOwn(t *testing.T) {
	e := loopback(t)
	peer, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(e.addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	_, keyA := enginetest.NewKey(t)
	_, keyB := enginetest.NewKey(t)
	a := listenOn(t, e.hub, keyA)
	slow := &bind{hub: e.hub, mayShake: new(roles).mayLeave}
	slow.mac1.Store(newMAC1Key(keyB))
	if _, _, err := slow.Open(0); err != nil { // and never reads
		t.Fatal(err)
	}
	defer slow.Close()
	e.hub.indices.learn(1, a.bind)
	e.hub.indices.learn(2, slow)
	for i := range 3 * queueLength {
		if _, err := peer.Write(message(device.MessageTransportType, 2, 64)); err != nil {
			t.Fatal(err)
		}
		if i%queueLength == 0 {
			m := message(device.MessageTransportType, 1, 100+i)
			if _, err := peer.Write(m); err != nil {
				t.Fatal(err)
			}
			if got := a.next(patience); !bytes.Equal(got, m) {
				t.Fatalf("behind %d datagrams of a slow device: got %d octets, want %d", i, len(got), len(m))
			}
		}
	}
	enginetest.Eventually(t, "the slow device's queue is full", func() bool { return len(slow.tap.queues[0]) == queueLength })
}

func TestIndexTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := new(bind), new(bind)
		var x indexTable
		x.learn(1, a)
		x.learn(2, b)
		time.Sleep(indexLife + 1)
		x.learn(3, a)
		for index, want := range map[uint32]*bind{1: a, 2: b, 3: a, 4: nil} {
			if got := x.owner(index); got != want {
				t.Errorf("owner(%d) after one life = %p, want %p", index, got, want)
			}
		}
		x.forget(b)
		if x.owner(2) != nil {
			t.Error("an index of a closed device is still known")
		}
		for range 2 {
			time.Sleep(indexLife + 1)
			x.learn(5, a)
		}
		for index, want := range map[uint32]*bind{1: nil, 3: nil, 5: a} {
			if got := x.owner(index); got != want {
				t.Errorf("owner(%d) after three lives = %p, want %p", index, got, want)
			}
		}
		for i := range uint32(3 * maxIndices) {
			x.learn(i, a)
		}
		if n := len(x.young) + len(x.old); n > 2*maxIndices {
			t.Errorf("%d indices remembered, want at most %d", n, 2*maxIndices)
		}
		if last := uint32(3*maxIndices - 1); x.owner(last) != a {
			t.Error("the latest index is forgotten")
		}
	})
}

func TestMAC1(t *testing.T) {
	_, k := enginetest.NewKey(t)
	_, other := enginetest.NewKey(t)
	m := initiation(k, 7)
	if !newMAC1Key(k).made(m) {
		t.Error("mac1 made by wireguard-go is not recognised")
	}
	if newMAC1Key(other).made(m) {
		t.Error("mac1 is recognised with another key")
	}
	m[20]++
	if newMAC1Key(k).made(m) {
		t.Error("mac1 of a changed message is recognised")
	}
}

func TestDialledAddresses(t *testing.T) {
	h := newHub(nil, nil)
	r := newReader(nil)
	ours := udp.Source{Addr: netip.MustParseAddr("192.0.2.1"), Ifindex: 3}
	gateway, client := netip.MustParseAddrPort("192.0.2.9:443"), netip.MustParseAddrPort("192.0.2.8:5000")
	h.dial(gateway, 1)
	if e := r.endpoint(gateway, ours, h); e.HasSource(h.path.Load()) {
		t.Error("to an address that we chose: the source is fixed, want routed")
	}
	e := r.endpoint(client, ours, h)
	if !e.HasSource(h.path.Load()) || e.SrcIP() != ours.Addr {
		t.Error("to an address that came to us: the source is routed, want fixed")
	}
	if r.endpoint(client, ours, h) != e {
		t.Error("an unchanged path makes a new endpoint")
	}
	h.pathChanged()
	if e.HasSource(h.path.Load()) {
		t.Error("after a change of paths: the source is still fixed")
	}
	fresh := r.endpoint(client, ours, h)
	if fresh == e || !fresh.HasSource(h.path.Load()) {
		t.Error("heard of again after a change of paths: the source is not fixed again")
	}
	fresh.ClearSrc()
	if fresh.SrcIP().IsValid() || r.endpoint(client, ours, h) == fresh {
		t.Error("after ClearSrc the endpoint is used again when a datagram arrives")
	}
	h.dial(gateway, -1)
	if e := r.endpoint(gateway, ours, h); !e.HasSource(h.path.Load()) {
		t.Error("no session speaks to the address any more: want the source fixed")
	}
}

// FuzzSort is a stranger on the network: whatever is sent goes to at most one
// device, whole, and nothing breaks.
func FuzzSort(f *testing.F) {
	var key engine.PublicKey
	key[0] = 9
	f.Add(initiation(key, 1), uint32(1))
	f.Add(message(device.MessageTransportType, 1, 32), uint32(1))
	f.Add(message(device.MessageResponseType, 1, device.MessageResponseSize), uint32(0))
	f.Add(message(device.MessageCookieReplyType, 1, device.MessageCookieReplySize), uint32(1))
	f.Add([]byte{}, uint32(0))
	f.Fuzz(func(t *testing.T, data []byte, known uint32) {
		if len(data) > 1<<16 {
			return
		}
		h := newHub([]*socket{nil}, nil)
		a, b := &bind{hub: h}, &bind{hub: h}
		b.mac1.Store(newMAC1Key(key))
		ta, tb := &tap{bind: a, queues: []chan parcel{make(chan parcel, 1)}}, &tap{bind: b, queues: []chan parcel{make(chan parcel, 1)}}
		h.indices.learn(known, b)
		sizes, eps := []int{len(data)}, []conn.Endpoint{newEndpoint(netip.AddrPort{})}
		mine := h.sort(ta, 0, []*tap{ta, tb}, [][]byte{data}, sizes, eps)
		if mine || sizes[0] != 0 {
			t.Fatalf("%x went to a device that knows neither its index nor its key", data)
		}
		select {
		case p := <-tb.queues[0]:
			if !bytes.Equal(p.data, data) {
				t.Fatalf("%x arrived as %x", data, p.data)
			}
		default:
		}
	})
}

func TestClosedEngine(t *testing.T) {
	e := loopback(t)
	if err := errors.Join(e.Close(), e.Close()); err != nil {
		t.Errorf("Close twice = %v, want nil", err)
	}
	if _, err := e.Open(engine.DeviceConfig{Interface: "x", MTU: 1420}); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Open after Close = %v, want %v", err, engine.ErrClosed)
	}
}

func TestListen(t *testing.T) {
	first := loopback(t)
	taken := first.addr()
	_, err := New(Config{Listen: taken})
	if !errors.Is(err, engine.ErrPortTaken) || !bytes.Contains([]byte(fmt.Sprint(err)), []byte(taken.String())) {
		t.Errorf("New on a taken port = %v, want %v naming %v", err, engine.ErrPortTaken, taken)
	}
	both, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer both.Close()
	if n := len(both.hub.sockets); n != 2 || both.hub.sockets[0].Local.Port() != both.hub.sockets[1].Local.Port() {
		t.Errorf("New on the wildcard: %d sockets, want 2 on one port", n)
	}
	if _, err := New(Config{Listen: netip.AddrPortFrom(netip.IPv6Unspecified(), both.Port())}); !errors.Is(err, engine.ErrPortTaken) {
		t.Errorf("New on a taken wildcard port = %v, want %v", err, engine.ErrPortTaken)
	}
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	handed, err := New(Config{Sockets: []*net.UDPConn{c}})
	if err != nil {
		t.Fatal(err)
	}
	if want := uint16(c.LocalAddr().(*net.UDPAddr).Port); handed.Port() != want {
		t.Errorf("Port with a socket handed over = %d, want %d", handed.Port(), want)
	}
	a, b := memPair(t, handed, first)
	if !arrives(a.tun, b.tun, aToB(100)) {
		t.Error("no packet crosses from a socket handed over")
	}
	handed.Close()
}

func TestMark(t *testing.T) {
	const mark = 0x7d
	e, err := New(Config{Mark: mark})
	if errors.Is(err, engine.ErrNotPermitted) {
		t.Skipf("needs CAP_NET_ADMIN: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, s := range e.hub.sockets {
		var got int
		s.raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) })
		if err != nil || got != mark {
			t.Errorf("mark of %v = %#x, %v, want %#x", s.Local, got, err, mark)
		}
	}
}
