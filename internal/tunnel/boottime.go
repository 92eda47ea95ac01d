package tunnel

import (
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// bootTime is an instant on CLOCK_BOOTTIME, as what has passed since the host
// started: it goes on while the host sleeps, and nobody can set it. One of
// before the start is negative.
type bootTime time.Duration

// never is after every instant.
const never bootTime = math.MaxInt64

// bootNow is the present instant.
func bootNow() bootTime {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every kernel since 2.6.39 has it
	}
	return bootTime(ts.Nano())
}

// plus is the instant d later; never stays never.
func (b bootTime) plus(d time.Duration) bootTime {
	if b == never {
		return never
	}
	return b + bootTime(d)
}

// since is what has passed from a to b.
func (b bootTime) since(a bootTime) time.Duration { return time.Duration(b - a) }

// hostBoot names this start of the host; empty if nobody can tell.
var hostBoot = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})
