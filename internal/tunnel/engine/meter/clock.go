package meter

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Now reads CLOCK_BOOTTIME in nanoseconds: it goes on while the machine sleeps,
// so that keys and deadlines that ran out meanwhile have done so, and nobody
// can set it. The call is raw, since it takes less time than the runtime's
// preparations for one that may block.
func Now() int64 {
	var t unix.Timespec
	if _, _, errno := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&t)), 0); errno != 0 {
		panic(errno) // Linux has had the clock since 2.6.39
	}
	return t.Nano()
}
