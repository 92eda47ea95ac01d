package config

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the expected problems in testdata")

// Each testdata/NAME.toml has its problems in NAME.want, one a line; an empty
// one is a file that is in order.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatalf("testdata/*.toml = %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if _, err := Parse(filepath.Base(file), b); err != nil {
				got = err.Error() + "\n"
			}
			golden := strings.TrimSuffix(file, ".toml") + ".want"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("problems:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func mustParse(t *testing.T, text string) Config {
	t.Helper()
	c, err := Parse("test.toml", []byte(text))
	if err != nil {
		t.Fatalf("Parse(%q) = %v, want nil", text, err)
	}
	return c
}

func TestDefaults(t *testing.T) {
	got := mustParse(t, `
[node]
name = "gw"
[gateway]
public = "vpn.example.com:443"
[[network]]
name = "office"
pools = ["10.77.0.0/16"]
[[tunnel]]
name = "home"
gateways = ["192.0.2.1:443"]
`)
	want := Config{
		Node:    Node{Name: "gw", StateDir: "/var/lib/tunneld", Socket: "/run/tunneld/tunneld.sock"},
		Gateway: &Gateway{Listen: ":443", Public: "vpn.example.com:443", TicketDir: "/var/lib/tunneld-tickets"},
		Networks: []Network{{
			Name:  "office",
			Pools: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}, Direction: "duplex",
			Timers: Timers{Hello: 20 * time.Second, Misses: 3, Grace: 24 * time.Hour, Cooloff: 15 * time.Minute, Refresher: RefresherNode},
		}},
		Tunnels: []Tunnel{{Name: "home", Gateways: []string{"192.0.2.1:443"}, Network: "home", Auto: true}},
		Data:    Data{Engine: "native", MTU: 1420, Rekey: time.Hour, Redial: time.Hour, Offload: true},
		file:    "test.toml",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Parse = %+v, want %+v", got, want)
	}
}

func TestEveryKey(t *testing.T) {
	b, err := os.ReadFile("testdata/full.toml")
	if err != nil {
		t.Fatal(err)
	}
	got := mustParse(t, string(b))
	prefixes := func(texts ...string) (out []netip.Prefix) {
		for _, text := range texts {
			out = append(out, netip.MustParsePrefix(text))
		}
		return out
	}
	want := Config{
		Node:    Node{Name: "gw-1.example", StateDir: "/srv/tunneld/state", Socket: "/srv/tunneld/sock"},
		Gateway: &Gateway{Listen: "192.0.2.1:8443", Public: "[2001:db8::1]:8443", TicketDir: "/srv/elsewhere/tickets", DrainOnStop: 90 * time.Second},
		Networks: []Network{
			{
				Name: "office", Pools: prefixes("10.77.0.0/16", "fd77::/64"), Routes: prefixes("10.20.0.0/16", "0.0.0.0/0"),
				Interface: "tun-office", Masquerade: true, RateUp: 2_000_000, RateDown: 1_500_000, Direction: "up",
				Timers: Timers{Hello: 500 * time.Millisecond, Misses: 4, Grace: time.Hour, Cooloff: time.Minute, Idle: 30 * time.Minute, Absolute: 12 * time.Hour, Reauth: 15 * time.Minute,
					Lifetime: time.Hour, MinLifetime: 90 * time.Second, Refresher: RefresherGateway},
			},
			{Name: "lab", Pools: prefixes("10.78.0.0/24"), Direction: "duplex", Timers: DefaultTimers()},
		},
		Tunnels: []Tunnel{
			{
				Name: "home", Gateways: []string{"a.example:443", "192.0.2.9:8443"}, Network: "main", Interface: "tnl7",
				Advertise: prefixes("10.30.0.0/16"), AcceptRoutes: prefixes("0.0.0.0/0", "::/0"),
				Lifetime: 10 * time.Minute, Refresher: RefresherNode,
			},
			{Name: "none", Gateways: []string{"[2001:db8::2]:443"}, Network: "none", Auto: true, AcceptRoutes: []netip.Prefix{}},
		},
		Data: Data{Engine: "reference", MTU: 1380, Rekey: 30 * time.Minute, Redial: 2 * time.Hour, AllowSwap: true},
		file: "test.toml",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Parse = %+v, want %+v", got, want)
	}
}

func TestLoad(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.toml")); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "tunneld init") {
		t.Errorf("Load(missing) = %v, want ErrNotExist and the way out", err)
	}
	c, err := Load("testdata/full.toml")
	if err != nil || c.Node.Name != "gw-1.example" {
		t.Errorf("Load = %+v, %v, want gw-1.example", c.Node, err)
	}
}

func TestProblemType(t *testing.T) {
	_, err := Parse("f", []byte("[node]\nname = 5\n"))
	p, ok := errors.AsType[*Problem](err)
	if want := (Problem{"f", 2, 1, "node.name", "5 is a number: write text in quotes"}); !ok || *p != want {
		t.Errorf("Parse = %+v, want %+v", p, want)
	}
}

func TestValidateWithoutFile(t *testing.T) {
	c := Default()
	c.Data.MTU = 1
	err := c.Validate()
	if want := "node.name: a name is missing: write name = \"…\"\ndata.mtu: 1 is out of range: write a number from 576 to 9000"; err == nil || err.Error() != want {
		t.Errorf("Validate() = %v, want %v", err, want)
	}
}

func TestCheckHostPort(t *testing.T) {
	for _, c := range []struct{ text, says string }{
		{"vpn.example.com:443", ""},
		{"vpn.example.com.:443", ""},
		{"localhost:65535", ""},
		{"192.0.2.1:1", ""},
		{"[2001:db8::1]:443", ""},
		{"[fe80::1%eth0]:443", ""},
		{"", "is no HOST:PORT"},
		{"vpn.example.com", `has no port: write "vpn.example.com:443"`},
		{"192.0.2.1", `has no port: write "192.0.2.1:443"`},
		{"2001:db8::1", `has no port: write "[2001:db8::1]:443"`},
		{"[2001:db8::1]", `has no port: write "[2001:db8::1]:443"`},
		{"2001:db8::1:443:", "is no HOST:PORT"},
		{"a:b:c", "is no HOST:PORT"},
		{":443", "neither a host name nor an address"},
		{"a..b:443", "neither a host name"},
		{"a b:443", "neither a host name"},
		{"https://a:443", "is no HOST:PORT"},
		{"a/b:443", "neither a host name"},
		{"0.0.0.0:443", "no address that can be dialled"},
		{"[::]:443", "no address that can be dialled"},
		{"a:0", `"0" is no port`},
		{"a:65536", `"65536" is no port`},
		{"a:https", `"https" is no port`},
		{"a:+1", `"+1" is no port`},
		{"a:", `"" is no port`},
		{strings.Repeat("a", 64) + ":1", "neither a host name"},
	} {
		err := CheckHostPort(c.text)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("CheckHostPort(%q) = %v, want %q", c.text, err, c.says)
		}
	}
}

func TestCheckListen(t *testing.T) {
	for text, ok := range map[string]bool{
		":443": true, "192.0.2.1:443": true, "[::]:443": true, "0.0.0.0:443": true, "[fe80::1%eth0]:443": true,
		"443": false, "": false, "localhost:443": false, "192.0.2.1": false, ":0": false, ":": false, "[192.0.2.300]:443": false,
	} {
		if err := CheckListen(text); (err == nil) != ok {
			t.Errorf("CheckListen(%q) = %v, want ok = %v", text, err, ok)
		}
	}
}

func TestCheckName(t *testing.T) {
	for text, ok := range map[string]bool{
		"a": true, "laptop-7": true, "A.b_c-d": true, "7": true, strings.Repeat("a", 63): true,
		"": false, strings.Repeat("a", 64): false, "a b": false, "a/b": false, "..": false, ".a": false, "-a": false, "é": false, "a\n": false, "a/../b": false,
	} {
		if err := CheckName(text); (err == nil) != ok {
			t.Errorf("CheckName(%q) = %v, want ok = %v", text, err, ok)
		}
	}
}

func TestCheckInterface(t *testing.T) {
	for text, ok := range map[string]bool{
		"tnl0": true, "a": true, "abcdefghijklmno": true, "br-1.2_x@y": true,
		"": false, "abcdefghijklmnop": false, "a/b": false, "a b": false, "a\tb": false, "a:1": false, "tun%d": false, ".": false, "..": false, "lo": false, "all": false, "é": false,
	} {
		if err := CheckInterface(text); (err == nil) != ok {
			t.Errorf("CheckInterface(%q) = %v, want ok = %v", text, err, ok)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"listen", "public", "state_dir"}
	for key, want := range map[string]string{
		"listn": "listen", "listens": "listen", "Public": "public", "statedir": "state_dir", "state-dir": "state_dir",
		"port": "", "x": "", "": "", strings.Repeat("listen", 1000): "",
	} {
		if got := nearest(key, known); got != want {
			t.Errorf("nearest(%.20q) = %q, want %q", key, got, want)
		}
	}
}

// FuzzParse: the file is the administrator's, so nobody attacks this parser;
// still a slip of the pen must give sentences, not a panic. What is accepted
// must be accepted by Validate too.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse("f", b)
		if err != nil {
			if strings.Contains(err.Error(), "map[string]") || strings.Contains(err.Error(), "interface {}") {
				t.Errorf("Parse = %v, which names types of Go", err)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Errorf("Parse accepts what Validate refuses: %v", err)
		}
	})
}
