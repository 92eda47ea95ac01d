package noise

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"tunneld/internal/secret"
)

// The tests of this file have wireguard-go's device at the other end, so that
// they find what two copies of our own code would agree on.

const (
	patience = 20 * time.Second      // until a test gives up
	between  = 50 * time.Millisecond // two initiations: each end accepts one in 20 ms, with stamps 17 ms apart
)

var ourInner, theirInner = netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2")

// foreign is a wireguard-go device with our end of its wire.
type foreign struct {
	t      *testing.T
	dev    *device.Device
	peer   *device.Peer // us, as the device knows us
	tun    *tuntest.ChannelTUN
	wire   *wire
	us     *end
	psk    secret.Value
	opened time.Time
	index  uint32
}

func newForeign(t *testing.T, psk secret.Value, extra string) *foreign {
	t.Helper()
	return newForeignWith(t, randomSecret(t), randomSecret(t), psk, extra)
}

func newForeignWith(t *testing.T, ours, theirs, psk secret.Value, extra string) *foreign {
	t.Helper()
	key, err := NewStaticKey(ours)
	if err != nil {
		t.Fatal(err)
	}
	their, err := NewStaticKey(theirs)
	if err != nil {
		t.Fatal(err)
	}
	f := &foreign{
		t: t, tun: tuntest.NewChannelTUN(), wire: newWire(), psk: psk, opened: time.Now(),
		us: &end{key, NewPeer(their.Public())}, index: 0x1000,
	}
	logger := device.NewLogger(device.LogLevelError, "")
	logger.Errorf = func(format string, args ...any) {}
	f.dev = device.NewDevice(f.tun.TUN(), f.wire, logger)
	t.Cleanup(f.dev.Close)
	public := key.Public()
	conf := fmt.Sprintf("private_key=%x\npublic_key=%x\nallowed_ip=%s/32\nendpoint=192.0.2.1:1\n", theirs.Reveal(), public[:], ourInner)
	if !psk.IsZero() {
		conf += "preshared_key=" + hex.EncodeToString(psk.Reveal()) + "\n"
	}
	if err := f.dev.IpcSet(conf + extra); err != nil {
		t.Fatal(err)
	}
	if err := f.dev.Up(); err != nil {
		t.Fatal(err)
	}
	f.peer = f.dev.LookupPeer(device.NoisePublicKey(public))
	return f
}

// now is a clock for our end.
func (f *foreign) now() Instant { return testStart.Add(time.Since(f.opened)) }

// receive is the next datagram of that kind from the device; of any kind for
// KindInvalid.
func (f *foreign) receive(kind Kind) []byte {
	f.t.Helper()
	limit := time.After(patience)
	for {
		select {
		case msg := <-f.wire.out:
			if kind == KindInvalid || Classify(msg) == kind {
				return msg
			}
		case <-limit:
			f.t.Fatalf("no message of kind %v from the device", kind)
		}
	}
}

// initiate makes a handshake that we start.
func (f *foreign) initiate() *Keypair {
	f.t.Helper()
	f.index++
	msg, h, err := f.us.key.CreateInitiation(nil, f.us.peer, f.index, f.now(), time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	f.wire.in <- msg
	return f.complete(h, f.receive(KindResponse))
}

func (f *foreign) complete(h *Handshake, resp []byte) *Keypair {
	f.t.Helper()
	if !f.us.key.CheckMAC1(resp) {
		f.t.Fatal("mac1 of the device's response is refused")
	}
	var keys Keys
	if _, err := h.ConsumeResponse(f.us.key, resp, f.now(), &keys, f.psk); err != nil {
		f.t.Fatal(err)
	}
	return NewKeypair(&keys)
}

// respond answers an initiation of the device.
func (f *foreign) respond(msg []byte) *Keypair {
	f.t.Helper()
	f.index++
	resp, keys := answer(f.t, f.us, msg, f.index, f.now(), f.psk)
	f.wire.in <- resp
	return NewKeypair(&keys)
}

// theirData is an inner packet that the device is given to send.
func (f *foreign) theirData() []byte {
	packet := tuntest.Ping(ourInner, theirInner)
	f.tun.Outbound <- packet
	return packet
}

// expect opens messages, each with the pair it names, until one carries packet.
func (f *foreign) expect(packet []byte, pairs ...*Keypair) {
	f.t.Helper()
	for {
		msg := f.receive(KindTransport)
		i := slices.IndexFunc(pairs, func(k *Keypair) bool { return k.Local == Receiver(msg) })
		if i < 0 {
			f.t.Fatalf("a message for index %x", Receiver(msg))
		}
		got, err := pairs[i].Open(msg, f.now())
		if err != nil {
			f.t.Fatal(err)
		}
		if len(got) > 0 {
			if string(got[:len(packet)]) != string(packet) {
				f.t.Fatalf("opened %x, want %x", got, packet)
			}
			return
		}
	}
}

// ourData sends an inner packet and waits until it leaves the device's TUN.
func (f *foreign) ourData(k *Keypair) {
	f.t.Helper()
	packet := tuntest.Ping(theirInner, ourInner)
	f.wire.in <- seal(f.t, k, string(packet))
	select {
	case got := <-f.tun.Inbound:
		if string(got) != string(packet) {
			f.t.Fatalf("the device delivered %x, want %x", got, packet)
		}
	case <-time.After(patience):
		f.t.Fatal("the device delivered nothing")
	}
}

// forEachPSK runs a test with and without a preshared key.
func forEachPSK(t *testing.T, run func(t *testing.T, psk secret.Value)) {
	t.Run("no preshared key", func(t *testing.T) { run(t, secret.Value{}) })
	t.Run("preshared key", func(t *testing.T) { run(t, randomSecret(t)) })
}

func TestForeignResponder(t *testing.T) {
	forEachPSK(t, func(t *testing.T, psk secret.Value) {
		f := newForeign(t, psk, "")
		for range 2 { // the second is a rekey
			k := f.initiate()
			f.ourData(k)
			f.expect(f.theirData(), k)
			f.ourData(k)
			<-time.After(between)
		}
	})
}

func TestForeignInitiator(t *testing.T) {
	forEachPSK(t, func(t *testing.T, psk secret.Value) {
		f := newForeign(t, psk, "")
		for range 2 {
			f.peer.ExpireCurrentKeypairs() // and with them the 5 s
			packet := f.theirData()
			k := f.respond(f.receive(KindInitiation))
			f.expect(packet, k)
			f.ourData(k)
			f.expect(f.theirData(), k)
			<-time.After(between)
		}
	})
}

// An empty packet confirms a handshake at the device, and the device sends one
// when it has nothing else to confirm with.
func TestForeignKeepalives(t *testing.T) {
	f := newForeign(t, secret.Value{}, "")
	k := f.initiate()
	f.wire.in <- seal(t, k, "")
	waitFor(t, func() bool {
		state, err := f.dev.IpcGet()
		return err == nil && !strings.Contains(state, "last_handshake_time_sec=0")
	})

	f = newForeign(t, secret.Value{}, "persistent_keepalive_interval=1\n")
	k = f.respond(f.receive(KindInitiation))
	msg := f.receive(KindTransport)
	if len(msg) != KeepaliveSize {
		t.Errorf("the device's first packet has %d octets, want %d", len(msg), KeepaliveSize)
	}
	if got, err := k.Open(msg, f.now()); err != nil || len(got) != 0 {
		t.Errorf("Open of an empty packet = %x, %v", got, err)
	}
}

// A device under load wants mac2, and is content with ours.
func TestForeignCookie(t *testing.T) {
	f := newForeign(t, secret.Value{}, "")
	msg, _, err := f.us.key.CreateInitiation(nil, f.us.peer, 0x2000, f.now(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	flood := append([]byte(nil), msg...)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() { // holds the device's queue over an eighth
		for {
			select {
			case f.wire.in <- flood:
			case <-stop:
				return
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	if err := f.us.peer.ConsumeCookieReply(f.receive(KindCookieReply), f.now()); err != nil {
		t.Fatalf("the device's cookie reply: %v", err)
	}
	for {
		f.index++
		msg, h, err := f.us.key.CreateInitiation(nil, f.us.peer, f.index, f.now(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if !f.dev.IsUnderLoad() {
			t.Fatal("the device is not under load")
		}
		f.wire.in <- msg
		select {
		case resp := <-f.wire.responses:
			if Receiver(resp) == f.index {
				f.complete(h, resp)
				return
			}
		case <-time.After(time.Second): // its limit of messages from one source, or its queue
		}
		h.Wipe()
		if time.Since(f.opened) > patience {
			t.Fatal("no response under load with a cookie")
		}
	}
}

// The device takes our cookie and shows it.
func TestForeignTakesCookie(t *testing.T) {
	f := newForeign(t, secret.Value{}, "")
	src := netip.MustParseAddrPort("192.0.2.9:9")
	checker := NewCookieChecker()
	f.theirData()
	msg := f.receive(KindInitiation)
	if checker.CheckMAC2(msg, src, f.now()) {
		t.Fatal("mac2 holds without a cookie")
	}
	limit := time.Now().Add(patience)
	for !checker.CheckMAC2(msg, src, f.now()) {
		if time.Now().After(limit) {
			t.Fatal("the device never showed the cookie")
		}
		f.wire.in <- checker.Reply(nil, f.us.key, msg, src, f.now())
		<-time.After(between) // it is for the last message only
		f.peer.ExpireCurrentKeypairs()
		if err := f.peer.SendHandshakeInitiation(false); err != nil {
			t.Fatal(err)
		}
		msg = f.receive(KindInitiation)
	}
	f.respond(msg)
}

// Both ends initiate at once, at several delays: the device, which keeps one
// handshake, and we, who answer and wait on, are through after a round trip and
// a half, where two such devices need 5 s.
func TestForeignCrossing(t *testing.T) {
	for _, delay := range []time.Duration{0, 20 * time.Millisecond, 150 * time.Millisecond, 600 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			t.Parallel()
			f := newForeign(t, secret.Value{}, "")
			begin := time.Now()
			f.theirData()
			theirs := f.receive(KindInitiation)
			f.index++
			ours, h, err := f.us.key.CreateInitiation(nil, f.us.peer, f.index, f.now(), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			<-time.After(delay) // both on the wire
			f.wire.in <- ours
			// Two handshake messages at the very same moment garble the one
			// handshake that the device keeps; no wire makes that.
			<-time.After(max(delay, 10*time.Millisecond))
			var ring Keypairs
			next := f.respond(theirs)
			ring.Responded(next)
			pairs := []*Keypair{next}
			for ring.Current == nil {
				// On a slow machine the device may complete its own after all.
				msg := f.receive(KindInvalid)
				switch Classify(msg) {
				case KindResponse:
					k := f.complete(h, msg)
					ring.Initiated(k, f.now())
					pairs = append(pairs, k)
				case KindTransport:
					if _, err := next.Open(msg, f.now()); err != nil {
						t.Fatal(err)
					}
					ring.Confirmed(next, f.now(), true)
				}
			}
			<-time.After(delay)
			f.ourData(ring.Current)
			f.expect(f.theirData(), pairs...)
			if took := time.Since(begin); took > 3*delay+3*time.Second { // at 600 ms still under 5 s
				t.Errorf("data both ways after %v, with %v one way", took, delay)
			}
		})
	}
}

// waitFor waits until done.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	limit := time.Now().Add(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(limit) {
			t.Fatal("it did not come about")
		}
		<-tick.C
	}
}

// wire is a conn.Bind between the device and the test.
type wire struct {
	in        chan []byte // to the device
	out       chan []byte // from it
	responses chan []byte // a copy of the responses, for who floods
	mu        sync.Mutex
	closed    chan struct{}
}

func newWire() *wire {
	return &wire{in: make(chan []byte, 1024), out: make(chan []byte, 4096), responses: make(chan []byte, 64)}
}

func (w *wire) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	closed := make(chan struct{})
	w.closed = closed
	return []conn.ReceiveFunc{func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case msg := <-w.in:
			sizes[0], eps[0] = copy(packets[0], msg), wireEnd{}
			return 1, nil
		case <-closed:
			return 0, net.ErrClosed
		}
	}}, 1, nil
}

func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed != nil {
		close(w.closed)
		w.closed = nil
	}
	return nil
}

func (w *wire) Send(bufs [][]byte, _ conn.Endpoint) error {
	for _, b := range bufs {
		b = append([]byte(nil), b...)
		if Classify(b) == KindResponse {
			select {
			case w.responses <- b:
			default:
			}
		}
		select {
		case w.out <- b:
		default: // nobody reads any more
		}
	}
	return nil
}

func (w *wire) SetMark(uint32) error                        { return nil }
func (w *wire) BatchSize() int                              { return 1 }
func (w *wire) ParseEndpoint(string) (conn.Endpoint, error) { return wireEnd{}, nil }

type wireEnd struct{}

func (wireEnd) ClearSrc()           {}
func (wireEnd) SrcToString() string { return "" }
func (wireEnd) DstToString() string { return "192.0.2.1:1" }
func (wireEnd) DstToBytes() []byte  { return []byte{192, 0, 2, 1, 0, 1} }
func (wireEnd) DstIP() netip.Addr   { return netip.MustParseAddr("192.0.2.1") }
func (wireEnd) SrcIP() netip.Addr   { return netip.Addr{} }
