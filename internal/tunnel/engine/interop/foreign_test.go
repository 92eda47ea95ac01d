package interop

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tunneld/internal/netlab/kernelbox"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
)

// TestStockWireGuardGo has wireguard-go's own program, configured by wg, as
// the far end; each side starts a handshake once.
func TestStockWireGuardGo(t *testing.T) { ofEach(t, testStockWireGuardGo) }

func testStockWireGuardGo(t *testing.T, kind string) {
	f := meetStock(t, kind, 1420)
	ours, stock := f.ours, f.host
	if got := ours.ping("10.1.0.2", 3) + ours.ping("fd01::2", 3); got != 6 {
		t.Errorf("ping stock wireguard-go: %d answers, want 6", got)
	}
	if out := stock.run("wg", "show", f.dev, "endpoints"); !strings.Contains(out, fmt.Sprintf("[2001:db8::1]:%d", f.port)) {
		t.Errorf("stock wireguard-go sees us at %q, want port %d", out, f.port)
	}

	// It forgets us, and then starts the handshake.
	stock.run("wg", "set", f.dev, "peer", f.peer[0], "remove")
	f.knowsUs("endpoint", fmt.Sprintf("192.0.2.1:%d", f.port))
	if got := stock.ping("10.1.0.1", 3); got != 3 {
		t.Errorf("ping from stock wireguard-go: %d answers, want 3", got)
	}
	if got := ours.now(); got.RxPackets != 9 || got.TxPackets != 9 {
		t.Errorf("stats = %+v, want 9 packets each way", got)
	}
}

// A foreign is an end of ours and stock wireguard-go as its far end, on a wire
// that takes packets of 9,100 octets.
type foreign struct {
	host // of the stock one
	dev  string
	peer []string // how wg names us
	ours *end
	port uint16 // ours
}

// meetStock makes them. Ours is told where the other is; options change that.
func meetStock(t *testing.T, kind string, mtu int, options ...func(*Session)) *foreign {
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
	f := &foreign{dev: fmt.Sprintf("wg%d", os.Getpid())} // its control socket is the same for all namespaces
	f.host = startStock(t, hb, f.dev)

	ours := ha.start(kind)
	f.port = ours.engine("[::]:0")
	f.ours = &end{process: ours, dev: "tnl0", private: private, mtu: mtu, session: Session{
		ID: session.NewID(), PeerKey: foreignPublic, PSK: psk, AllowedIPs: enginetest.Prefixes("10.1.0.2/32", "fd01::2/128"),
		Endpoint: netip.MustParseAddrPort("[2001:db8::2]:5000"), Gate: engine.Open,
	}}
	for _, o := range options {
		o(&f.ours.session)
	}
	f.ours.open()
	f.ours.address("tnl0", "10.1.0.1/24", "fd01::1/64")

	f.peer = []string{public.String(), "preshared-key", keyFile(t, psk), "allowed-ips", "10.1.0.1/32,fd01::1/128"}
	f.run("wg", "set", f.dev, "private-key", keyFile(t, foreignPrivate), "listen-port", "5000")
	f.knowsUs()
	f.run("ip", "link", "set", f.dev, "mtu", fmt.Sprint(mtu))
	f.address(f.dev, "10.1.0.2/24", "fd01::2/64")
	return f
}

// knowsUs tells the stock end of ours, and more if asked to.
func (f *foreign) knowsUs(more ...string) {
	f.t.Helper()
	f.run(append(append([]string{"wg", "set", f.dev, "peer"}, f.peer...), more...)...)
}

// startStock builds and starts wireguard-go's program in a host.
func startStock(t *testing.T, h host, dev string) host {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "wireguard-go")
	if out, err := exec.Command("go", "build", "-o", bin, "golang.zx2c4.com/wireguard").CombinedOutput(); err != nil {
		t.Fatalf("go build golang.zx2c4.com/wireguard: %v\n%s", err, out)
	}
	if _, err := exec.LookPath("wg"); err != nil {
		t.Fatal("wg is missing: apt-get install -y --no-install-recommends wireguard-tools")
	}
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
	return h
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

// TestKernelWireGuard has the kernel's WireGuard as the far end, as gateway and
// as dialler, over both families.
func TestKernelWireGuard(t *testing.T) { ofEach(t, testKernelWireGuard) }

func testKernelWireGuard(t *testing.T, kind string) {
	h := newHost(t)
	h.run("ip", "tuntap", "add", "dev", "kb0", "mode", "tap")
	h.address("kb0", "192.0.2.1/24", "2001:db8::1/64")
	private, public := enginetest.NewKey(t)
	kernelPrivate, kernelPublic := enginetest.NewKey(t)
	psk := make([]byte, engine.KeySize)
	psk[31] = 9
	ours := h.start(kind)
	port := ours.engine("[::]:0")
	base64Of := base64.StdEncoding.EncodeToString
	box := kernelbox.Start(t, kernelbox.Box{Netns: h.name, Tap: "kb0", Modules: []string{"wireguard"}, Script: fmt.Sprintf(`
		set -e
		ip addr add 192.0.2.2/24 dev eth0
		ip addr add 2001:db8::2/64 dev eth0 nodad
		ip link set eth0 up
		ip link add wg0 type wireguard
		echo %s >/run/private; echo %s >/run/psk
		wg set wg0 private-key /run/private listen-port 5000 peer %s preshared-key /run/psk allowed-ips 10.1.0.1/32,fd01::1/128
		ip addr add 10.1.0.2/24 dev wg0
		ip addr add fd01::2/64 dev wg0 nodad
		ip link set wg0 up mtu 1420
		echo ready
		until ping -c 1 -W 1 fd01::1 >/dev/null 2>&1; do sleep 0.2; done # the other side dials
		ping -c 5 -i 0.2 -s 1300 10.1.0.1
		wg set wg0 peer %[3]s remove
		wg set wg0 peer %[3]s preshared-key /run/psk allowed-ips 10.1.0.1/32,fd01::1/128 endpoint '[2001:db8::1]:%[4]d'
		ping -c 5 -i 0.2 -w 20 fd01::1
		[ "$(wg show wg0 latest-handshakes | cut -f 2)" -gt 0 ]
		echo done
	`, base64Of(kernelPrivate), base64Of(psk), public, port)})
	box.Await("ready")
	e := &end{process: ours, dev: "tnl0", private: private, session: Session{ID: session.NewID(), PeerKey: kernelPublic, PSK: psk, AllowedIPs: enginetest.Prefixes("10.1.0.2/32", "fd01::2/128"), Endpoint: netip.MustParseAddrPort("192.0.2.2:5000"), Gate: engine.Open}}
	e.open()
	e.address("tnl0", "10.1.0.1/24", "fd01::1/64")
	if got := ours.ping("10.1.0.2", 5, "-s", "1300"); got != 5 {
		t.Errorf("ping the kernel: %d answers, want 5", got)
	}
	if out := box.Wait(); strings.Count(out, " 0% packet loss") != 2 {
		t.Errorf("pings from the kernel:\n%s\nwant no loss", out)
	}
	if got := e.now().Endpoint.Addr(); got != netip.MustParseAddr("2001:db8::2") {
		t.Errorf("the kernel was last seen at %v, want 2001:db8::2: it dialled over IPv6", got)
	}
}
