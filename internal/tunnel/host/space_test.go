package host

import (
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline is how long a test waits for an event that is sure to come.
const deadline = 20 * time.Second

// space is a network namespace of a test.
type space struct {
	t  *testing.T
	ns netns.NsHandle
}

// newSpace makes a namespace and puts the test's thread into it. The thread stays
// locked and goes back when the test ends.
func newSpace(t *testing.T) *space {
	t.Helper()
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.New()
	if err != nil {
		before.Close()
		runtime.UnlockOSThread()
		if os.Geteuid() != 0 {
			t.Skipf("a network namespace of its own: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Set(before); err != nil {
			t.Error(err)
			return // the thread stays locked and dies with the test's goroutine
		}
		before.Close()
		ns.Close()
		runtime.UnlockOSThread()
	})
	s := &space{t, ns}
	s.run("ip link set lo up")
	return s
}

// enter puts the test's thread into s.
func (s *space) enter() {
	s.t.Helper()
	if err := netns.Set(s.ns); err != nil {
		s.t.Fatal(err)
	}
}

// try runs a shell command in s and returns what it prints.
func (s *space) try(command string) (string, error) {
	s.t.Helper()
	s.enter()
	out, err := exec.Command("sh", "-c", command).CombinedOutput()
	return string(out), err
}

// run is try for commands that must not fail.
func (s *space) run(command string) string {
	s.t.Helper()
	out, err := s.try(command)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// dump is what the host's tools know of addresses, routes, rules and filters.
// The routes of IPv6 are left out that the kernel adds and takes away by itself,
// some time after a link has come up: those of multicast, and of its own
// addresses.
func (s *space) dump() string {
	s.t.Helper()
	var b strings.Builder
	for _, command := range []string{
		"ip -o addr", "ip -d route show table all", "ip -6 -d route show table all",
		"ip rule", "ip -6 rule", "nft list ruleset", "sysctl -a -r 'rp_filter|src_valid_mark' 2>/dev/null",
	} {
		b.WriteString("# " + command + "\n")
		for line := range strings.Lines(s.run(command)) {
			own := strings.HasPrefix(line, "local ") && strings.Contains(strings.Fields(line)[1], ":")
			if !own && !strings.HasPrefix(line, "multicast ff00::/8") {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// host returns the Linux of s.
func (s *space) host() *Linux {
	s.t.Helper()
	s.enter()
	l, err := New(slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := l.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return l
}

// tun makes a TUN device in s that lives until the returned function is called.
func (s *space) tun(name string) (remove func()) {
	s.t.Helper()
	s.enter()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		s.t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		s.t.Fatal(err)
	}
	open := true
	remove = func() {
		if open {
			unix.Close(fd)
			open = false
		}
	}
	s.t.Cleanup(remove)
	return remove
}

// cable gives s two ends of a cable, eth0 and eth1, without link-local addresses,
// which would come late.
func (s *space) cable() {
	s.t.Helper()
	s.run("ip link add eth0 type veth peer name eth1 && ip link set eth0 addrgenmode none up && ip link set eth1 addrgenmode none up")
	s.awaitUp("eth0", "eth1")
}

// awaitUp waits until the kernel has noticed that links have a carrier, which
// it does a moment later and tells routes of ("linkdown").
func (s *space) awaitUp(names ...string) {
	s.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for _, name := range names {
		for !strings.Contains(s.run("ip -o link show dev "+name), "state UP") {
			if time.Now().After(deadline) {
				s.t.Fatalf("%s has no carrier", name)
			}
		}
	}
}

// veth connects a in s with b in other.
func (s *space) veth(a string, other *space, b string) {
	s.t.Helper()
	s.run("ip link add " + a + " type veth peer name tmp0")
	s.enter()
	l := s.host()
	link, err := l.nl.LinkByName("tmp0")
	if err != nil {
		s.t.Fatal(err)
	}
	if err := l.nl.LinkSetNsFd(link, int(other.ns)); err != nil {
		s.t.Fatal(err)
	}
	other.run("ip link set tmp0 name " + b + " && ip link set " + b + " addrgenmode none up")
	s.run("ip link set " + a + " addrgenmode none up")
}

// prefixes parses a list.
func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// want fails unless err is nil.
func want(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantLines fails unless got has every line, with blanks collapsed, in order or
// not.
func wantLines(t *testing.T, got string, lines ...string) {
	t.Helper()
	var have []string
	for line := range strings.Lines(got) {
		have = append(have, strings.Join(strings.Fields(line), " "))
	}
	for _, line := range lines {
		if !slices.ContainsFunc(have, func(h string) bool { return strings.Contains(h, line) }) {
			t.Errorf("no line with %q in:\n%s", line, got)
		}
	}
}
