package tunnel

import (
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/life"
)

// bootNow is the present instant.
func bootNow() life.Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every kernel since 2.6.39 has it
	}
	return life.Instant(ts.Nano())
}

// hostBoot names this start of the host; empty if nobody can tell.
var hostBoot = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})
