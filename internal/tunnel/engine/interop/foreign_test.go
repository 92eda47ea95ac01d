package interop

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
)

// A far is a far end that others wrote.
type far string

const (
	wireguardGo far = "wireguard-go" // its own program
	kernel      far = "kernel"       // the kernel's, in the machine of TestKernel
)

// TestStockWireGuardGo has wireguard-go's own program, configured by wg, as
// the far end; each side starts a handshake once, over one family outside each.
func TestStockWireGuardGo(t *testing.T) {
	ofEach(t, func(t *testing.T, kind string) { testForeign(t, wireguardGo, kind) })
}

func testForeign(t *testing.T, far far, kind string) {
	f := meet(t, far, kind, 1420)
	if got := f.ours.ping("10.1.0.2", 3) + f.ours.ping("fd01::2", 3, "-s", "1300"); got != 6 {
		t.Errorf("ping the far end: %d answers, want 6", got)
	}
	if out := f.run("wg", "show", f.dev, "endpoints"); !strings.Contains(out, fmt.Sprintf("[2001:db8::1]:%d", f.port)) {
		t.Errorf("the far end sees us at %q, want port %d", out, f.port)
	}

	// It forgets us, and then starts the handshake.
	f.run("wg", "set", f.dev, "peer", f.peer[0], "remove")
	f.knowsUs("endpoint", fmt.Sprintf("192.0.2.1:%d", f.port))
	if got := f.ping("10.1.0.1", 3); got != 3 {
		t.Errorf("ping from the far end: %d answers, want 3", got)
	}
	if got := f.ours.now(); got.RxPackets != 9 || got.TxPackets != 9 || got.Endpoint.Addr() != netip.MustParseAddr("192.0.2.2") {
		t.Errorf("stats = %+v, want 9 packets each way, and the far end where it dialled from", got)
	}
}

// A foreign is an end of ours and its far end, which others wrote, on a wire
// that takes packets of 9,100 octets.
type foreign struct {
	host // of the far end
	dev  string
	peer []string         // how wg names us
	key  engine.PublicKey // of the far end
	ours *end
	port uint16 // ours
}

// meet makes them. Ours is told where the other is; options change that.
func meet(t *testing.T, far far, kind string, mtu int, options ...func(*Session)) *foreign {
	t.Helper()
	ha, hb := newHost(t), newHost(t)
	wire(ha, hb, "wire", "192.0.2.", "2001:db8::")
	for _, h := range []host{ha, hb} {
		h.run("ip", "link", "set", "wire", "mtu", "9100")
	}
	private, public := enginetest.NewKey(t)
	foreignPrivate, foreignPublic := enginetest.NewKey(t)
	psk := make([]byte, engine.KeySize)
	psk[0] = 7
	// The control socket of wireguard-go is the same for all namespaces.
	f := &foreign{host: hb, key: foreignPublic, dev: strings.Replace(hb.name, "eng", "wg", 1)}
	if _, err := exec.LookPath("wg"); err != nil {
		t.Fatal("wg is missing: apt-get install -y --no-install-recommends wireguard-tools")
	}
	if far == kernel {
		f.run("ip", "link", "add", f.dev, "type", "wireguard")
	} else {
		startStock(t, hb, f.dev)
	}

	ours := ha.start(kind)
	f.port = ours.engine("[::]:0")
	f.ours = &end{process: ours, dev: "tnl0", private: private, mtu: mtu, session: Session{
		ID: session.NewID(), PeerKey: foreignPublic, PSK: psk, AllowedIPs: enginetest.Prefixes("10.1.0.2/32", "fd01::2/128"),
		Endpoint: netip.AddrPortFrom(netip.MustParseAddr("2001:db8::2"), farPort), Gate: engine.Open,
	}}
	for _, o := range options {
		o(&f.ours.session)
	}
	f.ours.open()
	f.ours.address("tnl0", "10.1.0.1/24", "fd01::1/64")

	f.peer = []string{public.String(), "preshared-key", keyFile(t, psk), "allowed-ips", "10.1.0.1/32,fd01::1/128"}
	f.run("wg", "set", f.dev, "private-key", keyFile(t, foreignPrivate), "listen-port", fmt.Sprint(farPort))
	f.knowsUs()
	f.run("ip", "link", "set", f.dev, "mtu", fmt.Sprint(mtu))
	f.address(f.dev, "10.1.0.2/24", "fd01::2/64")
	return f
}

// knowsUs tells the far end of ours, and more if asked to.
func (f *foreign) knowsUs(more ...string) {
	f.t.Helper()
	f.run(append(append([]string{"wg", "set", f.dev, "peer"}, f.peer...), more...)...)
}

// startStock starts wireguard-go's program in a host.
func startStock(t *testing.T, h host, dev string) {
	t.Helper()
	bin := built.get(t, "wireguard-go", "build", "-o", "%s", "golang.zx2c4.com/wireguard")
	socket := "/var/run/wireguard/" + dev + ".sock"
	cmd := h.command(bin, "-f", dev)
	log := new(syncBuffer)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.Remove(socket) // it had no chance to
		if t.Failed() {
			t.Logf("log of wireguard-go:\n%s", log)
		}
	})
	// wg itself must not ask: it removes a socket that nobody listens to yet.
	enginetest.Eventually(t, "wireguard-go listens to wg", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// keyFile writes a key as wg reads it.
func keyFile(t *testing.T, key []byte) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "key")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(base64.StdEncoding.EncodeToString(key)); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}
