package interop

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"tunneld/internal/tunnel/engine/enginetest"
)

// streamSize is enough for windows to open and packets to be joined.
const streamSize = 32 << 20

// TestStream sends much through the tunnel, both ways at once, and compares
// what arrives: with and without offloads, at several MTUs, over both families.
func TestStream(t *testing.T) {
	for _, c := range []struct {
		name      string
		kinds     kinds
		plain     [2]bool // node, gateway
		mtu       int
		outer, to string
	}{
		{"native", kinds{"native", "native"}, [2]bool{}, 1420, "192.0.2.2", "10.1.0.2"},
		{"over and in IPv6", kinds{"native", "native"}, [2]bool{}, 1420, "2001:db8::2", "fd01::2"},
		{"to reference", kinds{"native", "reference"}, [2]bool{}, 1420, "192.0.2.2", "10.1.0.2"},
		{"no offloads", kinds{"native", "native"}, [2]bool{true, true}, 1420, "192.0.2.2", "10.1.0.2"},
		{"offloads at one end", kinds{"native", "native"}, [2]bool{true, false}, 1420, "192.0.2.2", "fd01::2"},
		{"small MTU", kinds{"native", "native"}, [2]bool{}, 1280, "2001:db8::2", "10.1.0.2"},
		{"large MTU", kinds{"native", "native"}, [2]bool{}, 8920, "2001:db8::2", "fd01::2"},
		{"larger than the wire's", kinds{"native", "native"}, [2]bool{}, 1500, "192.0.2.2", "10.1.0.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ha, hb := newHost(t), newHost(t)
			wire(ha, hb, "wire", "192.0.2.", "2001:db8::")
			if c.mtu > 1500 {
				ha.run("ip", "link", "set", "wire", "mtu", "9000")
				hb.run("ip", "link", "set", "wire", "mtu", "9000")
			}
			node, gateway := ha.start(c.kinds.node), hb.start(c.kinds.gateway)
			node.plain, gateway.plain = c.plain[0], c.plain[1]
			node.engine("[::]:0")
			gateway.engine("[::]:443")
			to := netip.AddrPortFrom(netip.MustParseAddr(c.outer), 443)
			pair(node, gateway, "tnl0", 1, to.String(), func(a, b *end) { a.mtu, b.mtu = c.mtu, c.mtu })
			gateway.call("Mirror", Args{})
			var sums [2]string
			if err := node.client.Call("Node.Stream", Args{Addr: netip.AddrPortFrom(netip.MustParseAddr(c.to), mirrorPort), Size: streamSize}, &sums); err != nil {
				t.Fatal(err)
			}
			if sums[0] != sums[1] {
				t.Errorf("sent %s, came back %s", sums[0], sums[1])
			}
		})
	}
}

const mirrorPort = 7070

// Mirror sends back what one TCP connection brings, until the process ends.
func (n *Node) Mirror(Args, *struct{}) error {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", mirrorPort))
	if err != nil {
		return err
	}
	go func() {
		c, err := l.Accept()
		l.Close()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, struct{ io.Reader }{c}) // no splice: packets of all sizes
	}()
	return nil
}

// Stream sends a.Size octets and reads them back; sums are of both.
func (n *Node) Stream(a Args, sums *[2]string) error {
	c, err := net.DialTimeout("tcp", a.Addr.String(), 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(90 * time.Second))
	out, in := sha256.New(), sha256.New()
	failed := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.MultiWriter(c, out), io.LimitReader(rand.NewChaCha8([32]byte{1}), int64(a.Size)))
		failed <- err
	}()
	_, err = io.CopyN(in, c, int64(a.Size))
	if err := <-failed; err != nil {
		return err
	}
	*sums = [2]string{hex.EncodeToString(out.Sum(nil)), hex.EncodeToString(in.Sum(nil))}
	return err
}

// TestPacketsWait has a session whose peer is nowhere yet: packets wait for the handshake.
func TestPacketsWait(t *testing.T) {
	t.Parallel()
	node, gateway := hosts(t, kinds{"native", "native"})
	a, b := pair(node, gateway, "tnl0", 1, "192.0.2.2:443", func(a, _ *end) { a.session.Endpoint = netip.AddrPort{} })
	done := make(chan int)
	go func() { done <- node.ping("10.1.0.2", 3, "-W", "10") }()
	enginetest.Eventually(t, "packets are sent into the tunnel", func() bool { return a.now().TxPackets == 3 })
	a.do("SetEndpoint", Args{Addr: netip.MustParseAddrPort("192.0.2.2:443")})
	if got := <-done; got != 3 {
		t.Errorf("ping before there was an endpoint: %d answers, want 3", got)
	}
	if s := b.now(); s.RxPackets != 3 {
		t.Errorf("stats of the gateway = %+v, want 3 packets", s)
	}
}
