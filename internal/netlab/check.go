package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

var errNoNft = errors.New("nft is missing: apt-get install nftables")

// Check says what this machine or this user lacks for a laboratory, all of it,
// each with the way out; nil if there is nothing.
func Check() error {
	var problems []error
	if os.Geteuid() != 0 {
		problems = append(problems, errors.New("network namespaces need root: run it with sudo, or as `unshare --user --map-root-user --net COMMAND` where the host allows that"))
	} else if err := tryNamespace(); err != nil {
		problems = append(problems, err)
	}
	if f, err := os.OpenFile(tunDevice, os.O_RDWR, 0); err != nil {
		problems = append(problems, fmt.Errorf("%w: load the module with `modprobe tun`, or give the container the device", err))
	} else {
		f.Close()
	}
	if _, err := exec.LookPath("nft"); err != nil {
		problems = append(problems, errNoNft)
	}
	return errors.Join(problems...)
}

// tryNamespace makes a namespace and lets it go.
func tryNamespace() error {
	result := make(chan error)
	onOwnThread(func() { result <- unix.Unshare(unix.CLONE_NEWNET) })
	if err := <-result; err != nil {
		return fmt.Errorf("new network namespace: %w: CAP_SYS_ADMIN is missing, as in a container without --privileged", err)
	}
	return nil
}

// realRoot reports whether root here is root of the machine, and not of a user
// namespace only.
func realRoot() bool {
	if os.Geteuid() != 0 {
		return false
	}
	m, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(m)), " ") == "0 0 4294967295"
}

// TB is the part of testing.TB that the laboratory uses; this way programs
// that are no tests do not carry the testing package.
type TB interface {
	Helper()
	Name() string
	Failed() bool
	Cleanup(func())
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Require skips the test where laboratories cannot be, with the reason. Root
// has no excuse: for root the test fails.
func Require(t TB) {
	t.Helper()
	err := Check()
	if err == nil {
		return
	}
	if realRoot() {
		t.Fatalf("root must be able to run this: %v", err)
	}
	t.Skipf("needs a network namespace of its own: %v", err)
}

// RequireMachine is Require for tests that boot a [Machine].
func RequireMachine(t TB) {
	t.Helper()
	Require(t)
	if !realRoot() {
		t.Skipf("needs root of this machine: systemd runs services as other users")
	}
	if _, err := exec.LookPath("systemctl"); err != nil {
		t.Fatalf("systemd is missing: apt-get install systemd")
	}
}

// ForTest returns a laboratory that ends with the test. If the test fails it
// prints the picture and the ends of the logs, and keeps the logs.
func ForTest(t TB) *Lab {
	t.Helper()
	Require(t)
	lab, err := New(Options{Name: t.Name()})
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			lab.KeepDir()
			t.Logf("%s\n%s\nall logs: %s", lab.Picture(), lab.LogTails(logTail), lab.Dir())
		}
		if err := lab.Close(); err != nil {
			t.Logf("close the laboratory: %v", err)
		}
	})
	return lab
}
