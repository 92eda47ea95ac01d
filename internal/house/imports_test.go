package house

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// arrows says which rooms of ours a room may import (tests aside), as drawn in
// docs/architecture.md. A package below a room counts as that room, unless it
// has an entry of its own. What is not drawn is forbidden, for the reason
// beside it.
var arrows = map[string]struct {
	may    []string
	reason string
}{
	"cmd/tunnelctl": {[]string{"internal/api"},
		"tunnelctl speaks to the daemon's socket and to nothing else"},
	"cmd/tunneld": {[]string{"internal/api", "internal/auth", "internal/config", "internal/control", "internal/control/carrier",
		"internal/event", "internal/fdstore", "internal/secret", "internal/session", "internal/store", "internal/tunnel", "internal/tunnel/engine",
		"internal/tunnel/engine/native", "internal/tunnel/engine/reference", "internal/tunnel/host", "internal/tunnel/pool"},
		"tunneld builds the parts, it does not look inside them"},
	"internal/tunnel": {[]string{"internal/api", "internal/auth", "internal/config", "internal/control", "internal/control/carrier",
		"internal/control/wire", "internal/event", "internal/secret", "internal/session", "internal/store", "internal/tunnel/engine",
		"internal/tunnel/engine/reference", "internal/tunnel/host", "internal/tunnel/life", "internal/tunnel/pool", "internal/tunnel/redirect"},
		"the manager is where all rooms meet, but nothing that runs it may be known to it"},
	"internal/control": {[]string{"internal/control/wire", "internal/event", "internal/secret", "internal/session"},
		"the machines know messages and nothing of sockets, disks or who is allowed"},
	"internal/control/wire": {[]string{"internal/secret", "internal/session"},
		"wire spells messages and decides nothing"},
	"internal/control/carrier": {[]string{"internal/event", "internal/secret", "internal/session"},
		"the carrier hands out connections and does not know what is said on them"},
	"internal/auth": {[]string{"internal/store", "internal/event", "internal/secret", "internal/session"},
		"who may do what is decided without the machines, and remembered in the store alone"},
	"internal/store": {[]string{"internal/event", "internal/secret", "internal/session"},
		"the store keeps bytes and does not know what they mean"},
	"internal/tunnel/engine": {[]string{"internal/event", "internal/secret", "internal/session"},
		"packets are moved without the control plane"},
	"internal/tunnel/engine/meter": {[]string{"internal/tunnel/engine", "internal/session"},
		"what a data path asks and counts for a session is the same whoever moves its packets"},
	"internal/tunnel/engine/udp": {[]string{"internal/tunnel/engine"},
		"sockets know no session and nothing of what is in a datagram"},
	"internal/tunnel/engine/reference": {[]string{"internal/tunnel/engine", "internal/tunnel/engine/meter", "internal/tunnel/engine/udp", "internal/event", "internal/secret", "internal/session"},
		"packets are moved without the control plane"},
	"internal/tunnel/engine/noise": {[]string{"internal/secret"},
		"the protocol of the data plane is pure: no socket, no clock, no session"},
	"internal/tunnel/engine/memfile": {[]string{"internal/tunnel/engine/noise", "internal/session"},
		"the memory file keeps keypairs and does not know who uses them"},
	"internal/tunnel/engine/native": {[]string{"internal/tunnel/engine", "internal/tunnel/engine/memfile", "internal/tunnel/engine/meter", "internal/tunnel/engine/noise", "internal/tunnel/engine/udp", "internal/event", "internal/secret", "internal/session"},
		"packets are moved without the control plane"},
	"internal/tunnel/host": {[]string{"internal/event", "internal/secret", "internal/session"},
		"the host knows interfaces by name and nothing of sessions"},
	"internal/tunnel/life": {[]string{"internal/control/wire"},
		"when a session ends is decided from clocks and terms alone"},
	"internal/tunnel/pool": {[]string{"internal/session"},
		"the address pool is pure"},
	"internal/tunnel/redirect": {[]string{"internal/control/wire"},
		"where a node goes is decided from what gateways say and its configuration alone"},
	"internal/config": {[]string{"internal/event", "internal/secret", "internal/session"},
		"the configuration is read before anything else exists"},
	"internal/api": {[]string{"internal/event", "internal/secret", "internal/session"},
		"whoever imports the api (tunnelctl) must not get the daemon with it"},
	"internal/event": {[]string{"internal/secret", "internal/session"},
		"every room may speak of events, so they know none"},
	"internal/fdstore": {nil, "the service manager's store knows nothing of what is in it"},
	"internal/session": {nil, "a leaf that all may import"},
	"internal/secret":  {nil, "a leaf that all may import"},
	"internal/netlab": {[]string{"internal/api", "internal/netlab/crowd"},
		"the test hosts run the daemons as anybody would, from outside"},
	"internal/netlab/crowd": {[]string{"internal/api", "internal/auth", "internal/control", "internal/control/carrier", "internal/control/wire", "internal/secret", "internal/session"},
		"many nodes in one process are made of the parts a node is made of, less host, journal and data plane"},
	"internal/house": {nil, "house has tests only"},
}

// libraries says who may import what is not ours, tests aside. A library stands
// behind one room, so that it can be replaced there; the reason is given to who
// breaks the rule. Each has a line in docs/architecture.md.
var libraries = map[string]struct {
	rooms  []string
	reason string
}{
	"crypto/tls": {[]string{"internal/control/carrier", "internal/auth", "internal/netlab/crowd"},
		"TLS of the control channel is the carrier's; auth makes certificates for it; the crowd compares with bare handshakes"},
	"github.com/coreos/go-systemd/v22": {[]string{"cmd/tunneld"},
		"only the daemon speaks to systemd"},
	"github.com/gaissmai/bart": {[]string{"internal/tunnel/engine/native", "internal/tunnel/engine/reference"},
		"prefix tables are the data plane's"},
	"github.com/google/nftables": {[]string{"internal/tunnel/host", "internal/netlab"},
		"only the host touches the kernel's packet filter"},
	"github.com/hashicorp/yamux": {[]string{"internal/control/carrier"},
		"everybody else sees a net.Conn"},
	"github.com/pelletier/go-toml/v2": {[]string{"internal/config"},
		"only config reads and writes TOML"},
	"github.com/spf13/cobra": {[]string{"cmd/tunneld", "cmd/tunnelctl"},
		"command lines belong to the commands"},
	"github.com/vishvananda/netlink": {[]string{"internal/tunnel/host", "internal/netlab"},
		"only the host touches the kernel"},
	"github.com/vishvananda/netns": {[]string{"internal/tunnel/host", "internal/netlab"},
		"only the host touches the kernel"},
	"go.etcd.io/bbolt": {[]string{"internal/store"},
		"everybody else sees the Store interface"},
	"golang.org/x/crypto": {[]string{"internal/store", "internal/tunnel/engine/noise", "internal/tunnel/engine/reference"},
		"cryptography that the standard library has is taken from there"},
	"golang.org/x/sys": {[]string{"cmd/tunneld", "internal/api", "internal/control/carrier", "internal/fdstore", "internal/netlab", "internal/netlab/crowd", "internal/store",
		"internal/tunnel", "internal/tunnel/engine/memfile", "internal/tunnel/engine/meter", "internal/tunnel/engine/native", "internal/tunnel/engine/reference", "internal/tunnel/engine/udp", "internal/tunnel/host"},
		"system calls are for the rooms that touch the system"},
	"golang.org/x/time": {[]string{"internal/api", "internal/control/carrier", "internal/tunnel", "internal/tunnel/engine/native", "internal/tunnel/engine/reference"},
		"rates are limited where peers come in, and for what peers make us log"},
	"golang.zx2c4.com/wireguard": {[]string{"internal/tunnel/engine/reference"},
		"everybody else sees the Engine interface"},
}

// pure rooms do no I/O and start nothing: these packages are not for them.
var pure = map[string][]string{
	"internal/control/wire":    {"net", "os", "os/exec", "log/slog", "sync"},
	"internal/tunnel/life":     {"net", "os", "os/exec", "log/slog", "sync"},
	"internal/tunnel/pool":     {"net", "os", "os/exec", "log/slog"},
	"internal/tunnel/redirect": {"net", "os", "os/exec", "log/slog", "sync"},
	"internal/session":         {"net", "os", "os/exec", "log/slog"},
}

// saysNothing are names of packages that say nothing about what is in them.
var saysNothing = []string{"util", "utils", "common", "helper", "helpers", "types", "misc", "shared", "base"}

// owner returns the room that path belongs to: the longest one with a rule.
func owner(path string) (string, bool) {
	for path != "." && path != "" {
		if _, ok := arrows[path]; ok {
			return path, true
		}
		i := strings.LastIndexByte(path, '/')
		if i < 0 {
			break
		}
		path = path[:i]
	}
	return "", false
}

// library returns the rule that covers an import path that is not ours.
func library(path string) (string, bool) {
	for lib := range libraries {
		if path == lib || strings.HasPrefix(path, lib+"/") {
			return lib, true
		}
	}
	return "", false
}

// forbidden says why from may not import to; empty if it may.
func forbidden(from, to string) string {
	room, ok := owner(from)
	if !ok {
		return "a room that no rule speaks of: add it to the arrows and to docs/architecture.md"
	}
	if ours, ok := strings.CutPrefix(to, module+"/"); ok {
		target, known := owner(ours)
		switch {
		case !known:
			return "imports a room that no rule speaks of"
		case target == room || slices.Contains(arrows[room].may, target):
			return ""
		}
		return arrows[room].reason
	}
	if slices.Contains(pure[room], to) {
		return "this room does no I/O"
	}
	if lib, ok := library(to); ok {
		if slices.Contains(libraries[lib].rooms, room) {
			return ""
		}
		return libraries[lib].reason
	}
	if strings.Contains(strings.SplitN(to, "/", 2)[0], ".") {
		return "a library that no rule speaks of: say who may import it and why, here and in docs/architecture.md"
	}
	return ""
}

func TestArrows(t *testing.T) {
	for _, p := range tree(t) {
		for _, imp := range p.Imports {
			if why := forbidden(p.room(), imp); why != "" {
				t.Errorf("%s imports %s: %s", p.room(), imp, why)
			}
		}
	}
}

// TestArrowsPointOneWay checks the table itself: followed for ever, no arrow
// leads back to where it started.
func TestArrowsPointOneWay(t *testing.T) {
	for start := range arrows {
		seen := map[string]bool{}
		var walk func(string)
		walk = func(room string) {
			for _, next := range arrows[room].may {
				if next == start {
					t.Errorf("arrows lead from %s back to itself through %s", start, room)
				}
				if _, ok := arrows[next]; !ok {
					t.Errorf("%s may import %s, which no rule speaks of", room, next)
				}
				if !seen[next] {
					seen[next] = true
					walk(next)
				}
			}
		}
		walk(start)
	}
}

// TestForbidden shows that the rules bite.
func TestForbidden(t *testing.T) {
	tests := []struct {
		from, to string
		ok       bool
	}{
		{"cmd/tunnelctl", "tunneld/internal/api", true},
		{"cmd/tunnelctl", "tunneld/internal/session", false},
		{"cmd/tunneld", "tunneld/internal/tunnel", true},
		{"internal/tunnel", "tunneld/cmd/tunneld", false},
		{"internal/control", "tunneld/internal/auth", false},
		{"internal/control/wire", "tunneld/internal/control", false},
		{"internal/control/wire", "net", false},
		{"internal/control/wire", "net/netip", true},
		{"internal/control", "crypto/tls", false},
		{"internal/control/carrier", "github.com/hashicorp/yamux", true},
		{"internal/tunnel", "golang.zx2c4.com/wireguard/device", false},
		{"internal/tunnel/engine/reference", "golang.zx2c4.com/wireguard/device", true},
		{"internal/netlab/demo", "tunneld/internal/tunnel", false},
		{"internal/netlab/demo", "tunneld/internal/api", true},
		{"internal/store", "example.com/new", false},
		{"internal/new", "fmt", false},
	}
	for _, tt := range tests {
		if got := forbidden(tt.from, tt.to); (got == "") != tt.ok {
			t.Errorf("forbidden(%q, %q) = %q, want allowed = %v", tt.from, tt.to, got, tt.ok)
		}
	}
}

func TestPackageNames(t *testing.T) {
	for _, p := range tree(t) {
		if slices.Contains(saysNothing, p.Name) {
			t.Errorf("%s: a package named %q says nothing about what is in it", p.room(), p.Name)
		}
	}
}

// TestTestPackages keeps fakes out of the commands: a package named …test is
// imported by tests alone.
func TestTestPackages(t *testing.T) {
	for _, p := range tree(t) {
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, module+"/") && strings.HasSuffix(imp, "test") && !strings.HasSuffix(p.Name, "test") {
				t.Errorf("%s imports %s, which is for tests", p.room(), imp)
			}
		}
	}
}

// TestRulesAreNeeded finds rules that outlived their subject.
func TestRulesAreNeeded(t *testing.T) {
	rooms, imported := map[string]bool{}, map[string]bool{}
	for _, p := range tree(t) {
		if room, ok := owner(p.room()); ok {
			rooms[room] = true
		}
		for _, imp := range p.Imports {
			if lib, ok := library(imp); ok {
				imported[lib] = true
			}
		}
	}
	for _, room := range slices.Sorted(maps.Keys(arrows)) {
		if !rooms[room] {
			t.Errorf("arrows speak of %s, which is not in the tree", room)
		}
	}
	for _, lib := range slices.Sorted(maps.Keys(libraries)) {
		if !imported[lib] {
			t.Errorf("libraries speaks of %s, which nothing imports", lib)
		}
	}
}
