package native

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine/noise"
)

// now reads CLOCK_BOOTTIME, which goes on while the machine sleeps: keys that
// grew old meanwhile are old. The call is raw, since it takes less time than
// the runtime's preparations for one that may block.
func now() noise.Instant {
	var t unix.Timespec
	if _, _, errno := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&t)), 0); errno != 0 {
		panic(errno) // Linux has had the clock since 2.6.39
	}
	return noise.Instant(t.Nano())
}
