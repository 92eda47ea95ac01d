package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tunneld/internal/netlab/kernelbox"
)

// boxVariable tells this test binary that it runs in a machine with another
// kernel.
const boxVariable = "TUNNELD_ENGINE_BOX"

func inBox() bool { return os.Getenv(boxVariable) != "" }

// TestKernel has the kernel's WireGuard as the far end. This host's kernel need
// not have any, so the test runs itself in a machine whose kernel does: there
// it is on its own with our engine, on another kernel than this, and time does
// not wait, so that timers of minutes cost seconds. One machine is for all of it.
// With $TUNNELD_LONG the timers of wireguard-go are looked at, too.
func TestKernel(t *testing.T) {
	if !inBox() {
		t.Parallel()
		enterBox(t, "^TestKernel$")
		return
	}
	for _, kind := range []string{"native", "reference"} {
		t.Run(kind, func(t *testing.T) { testForeign(t, kernel, kind) })
	}
	t.Run("MTU", func(t *testing.T) { testForeignMTU(t, kernel, 1<<18) })
	t.Run("flood", func(t *testing.T) { testForeignBesideAFlood(t, kernel) })
	t.Run("roaming", func(t *testing.T) { testForeignRoaming(t, kernel) })
	t.Run("preshared key", func(t *testing.T) { testForeignPSK(t, kernel) })
	t.Run("marks", func(t *testing.T) { testForeignMarks(t, kernel) })
	t.Run("both dial", func(t *testing.T) { testForeignBothDial(t, kernel) })
	fars := []far{kernel}
	if os.Getenv("TUNNELD_LONG") != "" {
		fars = append(fars, wireguardGo)
	}
	for _, f := range fars {
		for _, weDial := range []bool{true, false} {
			t.Run(fmt.Sprintf("timers of %s, we dial: %v", f, weDial), func(t *testing.T) { testForeignTimers(t, f, weDial) })
		}
	}
}

// enterBox runs tests of this package in the machine.
func enterBox(t *testing.T, pattern string) {
	t.Helper()
	tests := built.get(t, "interop.test", "test", "-c", "-o", "%s", "tunneld/internal/tunnel/engine/interop")
	stock := built.get(t, "wireguard-go", "build", "-o", "%s", "golang.zx2c4.com/wireguard")
	out := kernelbox.Run(t, kernelbox.Box{
		Leaps: true, Memory: 768, Timeout: 12 * time.Minute,
		Modules:  []string{"wireguard", "tun", "veth", "nf_tables"},
		Programs: []string{tests, stock, "nft"},
		Script: fmt.Sprintf(`
			export %s=1 TUNNELD_LONG=%s
			mkdir -p /run/netns /run/wireguard /var
			ln -s /run /var/run
			cd /tmp
			interop.test -test.run '%s' -test.v -test.timeout 0 2>&1
		`, boxVariable, os.Getenv("TUNNELD_LONG"), pattern),
	})
	if !strings.Contains(out, "\nPASS\n") {
		t.Errorf("the tests in the machine said:\n%s", out)
	}
}

// built are the programs that tests have built, each once.
var built programs

type programs struct {
	mu  sync.Mutex // held while one is built
	dir string
}

// get builds a program with go and these arguments, in which %s is its file.
func (p *programs) get(t *testing.T, name string, args ...string) string {
	t.Helper()
	if inBox() {
		return "/bin/" + name
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dir == "" {
		dir, err := os.MkdirTemp("", "interop")
		if err != nil {
			t.Fatal(err)
		}
		p.dir = dir
	}
	file := filepath.Join(p.dir, name)
	if _, err := os.Stat(file); err == nil {
		return file
	}
	for i := range args {
		args[i] = strings.Replace(args[i], "%s", file, 1)
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return file
}

// remove removes them all.
func (p *programs) remove() {
	if p.dir != "" {
		os.RemoveAll(p.dir)
	}
}
