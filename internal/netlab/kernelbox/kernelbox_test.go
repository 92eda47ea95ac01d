package kernelbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestMissing(t *testing.T) {
	have := func(string) (string, error) { return "/bin/x", nil }
	if got := missing(have); got != "" {
		t.Errorf("missing with everything there = %q, want nothing", got)
	}
	lacks := func(p string) (string, error) {
		if p == "busybox" || p == "depmod" {
			return "", errors.New("not found")
		}
		return "/bin/x", nil
	}
	const want = "kernelbox: programs are missing: apt-get install -y --no-install-recommends busybox-static kmod"
	if got := missing(lacks); got != want {
		t.Errorf("missing = %q, want %q", got, want)
	}
}

// namespace makes a network namespace that ends with the test.
func namespace(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: a network namespace")
	}
	ns := fmt.Sprintf("kbox%d", os.Getpid())
	ip := func(args ...string) {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	ip("netns", "add", ns)
	t.Cleanup(func() { ip("netns", "del", ns) })
	ip("-n", ns, "tuntap", "add", "dev", "kb0", "mode", "tap")
	ip("-n", ns, "addr", "add", "192.0.2.1/24", "dev", "kb0")
	return ns
}

func TestRun(t *testing.T) {
	ns := namespace(t)
	out := Run(t, Box{Netns: ns, Tap: "kb0", Modules: []string{"wireguard"}, Script: `
		set -e
		ip addr add 192.0.2.2/24 dev eth0
		ip link set eth0 up
		ip link add wg0 type wireguard
		ping -c 1 -W 10 192.0.2.1 >/dev/null
		echo ready
	`})
	if !strings.Contains(out, "ready\n") {
		t.Errorf("output = %q, want ready", out)
	}
}

// TestEndsWithTheTest holds that a machine whose test is over does not live on.
func TestEndsWithTheTest(t *testing.T) {
	ns := namespace(t)
	var m *Machine
	t.Run("test", func(t *testing.T) {
		m = Start(t, Box{Netns: ns, Tap: "kb0", Script: "echo up; sleep 600"})
		m.Await("up")
	})
	if out, err := exec.Command("ip", "netns", "pids", ns).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("processes left in the namespace: %q, %v, want none", out, err)
	}
}
