package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// sysctlRoot is where the kernel shows the settings of the network namespace
// that the calling thread is in.
const sysctlRoot = "/proc/sys/net/"

// sysctl reads a number by its path under net, such as "ipv4/ip_forward". One
// that the kernel does not have is ok false.
func sysctl(path string) (value int, ok bool, err error) {
	text, err := os.ReadFile(sysctlRoot + path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("sysctl %s: %w", sysctlName(path), err)
	}
	value, err = strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, false, fmt.Errorf("sysctl %s: %q is no number", sysctlName(path), text)
	}
	return value, true, nil
}

// setSysctl writes a number. It fails where /proc/sys is read-only, as under
// systemd's ProtectKernelTunables.
func setSysctl(path string, value int) error {
	if err := os.WriteFile(sysctlRoot+path, []byte(strconv.Itoa(value)), 0); err != nil {
		return fmt.Errorf("sysctl %s: %w", sysctlName(path), err)
	}
	return nil
}

// sysctlName spells a path as sysctl(8) takes it: with dots, or with slashes
// where an interface's name has a dot of its own.
func sysctlName(path string) string {
	if strings.Contains(path, ".") {
		return "net/" + path
	}
	return "net." + strings.ReplaceAll(path, "/", ".")
}

// haveIPv6 reports whether the kernel was started with IPv6.
func haveIPv6() bool {
	_, err := os.Stat(sysctlRoot + "ipv6")
	return err == nil
}
