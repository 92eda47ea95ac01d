package config

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var office = Tunnel{
	Name: "office", Gateways: []string{"vpn.example.com:443"}, Network: "main", Interface: "tnl3", Auto: true,
	Advertise:    []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")},
	AcceptRoutes: []netip.Prefix{netip.MustParsePrefix("::/0")},
	Lifetime:     90 * time.Second, Refresher: RefresherGateway,
}

func TestTunnelFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if got, err := ReadTunnels(dir); got != nil || err != nil {
		t.Errorf("ReadTunnels(missing) = %v, %v, want none", got, err)
	}
	home := Tunnel{Name: "home", Gateways: []string{"192.0.2.1:443", "[2001:db8::1]:443"}, Network: "home", AcceptRoutes: []netip.Prefix{}}
	for _, tunnel := range []Tunnel{{Name: "office", Gateways: []string{"old:1"}}, office, home} {
		path, err := WriteTunnel(dir, tunnel)
		if want := filepath.Join(dir, "tunnels", tunnel.Name+".toml"); path != want || err != nil {
			t.Errorf("WriteTunnel(%q) = %q, %v, want %q", tunnel.Name, path, err, want)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v, want 0600", path, info.Mode(), err)
		}
	}
	os.WriteFile(filepath.Join(dir, "tunnels", ".left.toml.123"), []byte("half"), 0o600)
	os.WriteFile(filepath.Join(dir, "tunnels", "README"), []byte("not ours"), 0o600)
	got, err := ReadTunnels(dir)
	if want := []Tunnel{home, office}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ReadTunnels = %+v, %v, want %+v", got, err, want)
	}
	if err := RemoveTunnel(dir, "home"); err != nil {
		t.Errorf("RemoveTunnel = %v, want nil", err)
	}
	if err := RemoveTunnel(dir, "home"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("RemoveTunnel again = %v, want ErrNotExist", err)
	}
	if got, err := ReadTunnels(dir); err != nil || len(got) != 1 {
		t.Errorf("ReadTunnels = %v, %v, want office alone", got, err)
	}
}

func TestFormatTunnel(t *testing.T) {
	want := `name = "office"
gateways = ["vpn.example.com:443"]
network = "main"
interface = "tnl3"
auto = true
advertise = ["10.20.0.0/16"]
accept_routes = ["::/0"]
lifetime = "1m30s"
refresher = "gateway"
`
	if got := string(FormatTunnel(office)); got != want {
		t.Errorf("FormatTunnel = %s, want %s", got, want)
	}
}

func TestTunnelRefused(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"", "../x", "a/b", ".hidden"} {
		if _, err := WriteTunnel(dir, Tunnel{Name: name, Gateways: []string{"a:1"}}); err == nil {
			t.Errorf("WriteTunnel(%q) = nil, want an error", name)
		}
		if err := RemoveTunnel(dir, name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("RemoveTunnel(%q) = %v, want that the name is refused", name, err)
		}
	}
	if _, err := WriteTunnel(dir, Tunnel{Name: "x"}); err == nil {
		t.Errorf("WriteTunnel(without gateways) = nil, want an error")
	}
	if entries, _ := os.ReadDir(filepath.Join(dir, "tunnels")); len(entries) != 0 {
		t.Errorf("files = %v, want none", entries)
	}
}

func TestReadTunnelsReportsAll(t *testing.T) {
	dir := t.TempDir()
	os.Mkdir(filepath.Join(dir, "tunnels"), 0o700)
	for name, text := range map[string]string{
		"a.toml": "name = \"b\"\ngateways = [\"x:1\"]\n",
		"c.toml": "name = \"c\"\ngateway = [\"x:1\"]\n",
		"d.toml": "[[tunnel]]\nname = \"d\"\n",
		"e.toml": "name = ",
	} {
		if err := os.WriteFile(filepath.Join(dir, "tunnels", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := ReadTunnels(dir)
	if err == nil {
		t.Fatal("ReadTunnels = nil, want errors")
	}
	for _, want := range []string{
		`a.toml:1:1: name: "b" is not the name of the file: write "a", or rename the file`,
		`c.toml:2:1: gateway: unknown key: did you mean "gateways"?`,
		`c.toml: gateways: there is nobody to dial`,
		`d.toml:1:3: tunnel: unknown key: it belongs in the file's top`,
		`e.toml:1:`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("ReadTunnels = %v, which does not say %q", err, want)
		}
	}
}

func TestMerge(t *testing.T) {
	c := mustParse(t, `
[node]
name = "n"
state_dir = "/state"
[gateway]
public = "a:1"
[[network]]
name = "lab"
pools = ["10.0.0.0/24"]
interface = "tnl3"
[[tunnel]]
name = "home"
gateways = ["a:1"]
`)
	home := Tunnel{Name: "home", Gateways: []string{"b:1"}, Network: "home"}
	merged, err := Merge(c, []Tunnel{{Name: "other", Gateways: []string{"b:1"}}})
	if err != nil || len(merged.Tunnels) != 2 || merged.Tunnels[1].Name != "other" || len(c.Tunnels) != 1 {
		t.Errorf("Merge = %+v, %v, want home, other", merged.Tunnels, err)
	}
	_, err = Merge(c, []Tunnel{home, office})
	want := "config: tunnel \"home\" is both in test.toml and in /state/tunnels/home.toml: remove it from the first, or run `tunnelctl leave home`\n" +
		"config: interface \"tnl3\" of /state/tunnels/office.toml is that of network \"lab\" in test.toml too: choose another for one of them"
	if err == nil || err.Error() != want {
		t.Errorf("Merge = %v, want %v", err, want)
	}
}

func TestInitFile(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, c := range []struct {
		golden string
		init   Init
		want   Config
	}{
		{"init-node.golden", Init{Dir: "/etc/tunneld", Name: "laptop"}, Config{
			Node: Node{"laptop", "/var/lib/tunneld", "/run/tunneld/tunneld.sock"}, Data: Default().Data}},
		{"init-gateway.golden", Init{
			Dir: `/tmp/a "b" \c`, Name: "gw", Public: "vpn.example.com:8443", Listen: ":8443",
			Networks: []InitNetwork{
				{"office", []netip.Prefix{prefix("10.77.0.0/16"), prefix("fd77::/64")}, []netip.Prefix{prefix("10.20.0.0/16")}},
				{"lab", []netip.Prefix{prefix("10.78.0.0/16")}, nil},
			},
		}, Config{
			Node:    Node{"gw", `/tmp/a "b" \c/state`, `/tmp/a "b" \c/tunneld.sock`},
			Gateway: &Gateway{Listen: ":8443", Public: "vpn.example.com:8443", TicketDir: `/tmp/a "b" \c/state-tickets`},
			Networks: []Network{
				{Name: "office", Pools: []netip.Prefix{prefix("10.77.0.0/16"), prefix("fd77::/64")}, Routes: []netip.Prefix{prefix("10.20.0.0/16")}, Direction: "duplex", Timers: DefaultTimers()},
				{Name: "lab", Pools: []netip.Prefix{prefix("10.78.0.0/16")}, Direction: "duplex", Timers: DefaultTimers()},
			},
			Data: Default().Data,
		}},
	} {
		b := InitFile(c.init)
		got, err := Parse("", b)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: Parse(InitFile) = %+v, %v, want %+v", c.golden, got, err, c.want)
		}
		path := filepath.Join("testdata", c.golden)
		if *update {
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || string(b) != string(want) {
			t.Errorf("%s: InitFile = %s, want %s (%v)", c.golden, b, want, err)
		}
	}
}
