package memfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrLimit says that RLIMIT_MEMLOCK is too low.
var ErrLimit = errors.New("RLIMIT_MEMLOCK is too low")

// ErrSwap says that keys could reach a disk.
var ErrSwap = errors.New("memfile: keys could reach the swap")

// lockMemory keeps b out of the swap: pages are locked as they come into use.
// Where the limit does not let all of it, the front is locked as far as it
// goes, since slots are given out from there.
func lockMemory(b []byte) error {
	err := lockOnFault(b)
	if err == nil {
		return nil
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit) == nil && limit.Cur < uint64(len(b)) {
		_ = lockOnFault(b[:limit.Cur&^4095]) // as good as it gets
		return fmt.Errorf("keys cannot all be locked in memory: %w: it is %d octets, want %d or CAP_IPC_LOCK: %w", ErrLimit, limit.Cur, len(b), err)
	}
	return fmt.Errorf("keys cannot be locked in memory: %w", err)
}

// lockOnFault is mlock2(2), which x/sys does not wrap.
func lockOnFault(b []byte) error {
	const onFault = 1 // MLOCK_ONFAULT
	if _, _, errno := unix.Syscall(unix.SYS_MLOCK2, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), onFault); errno != 0 {
		return errno
	}
	return nil
}

// CheckSwap says whether f may be used on this machine: not if its memory could
// not be locked and there is a swap, unless that is allowed.
func (f *File) CheckSwap(allowed bool) error {
	if f.unlock == nil || allowed {
		return nil
	}
	b, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return fmt.Errorf("%w: %w; whether there is one cannot be found out: %w", ErrSwap, f.unlock, err)
	}
	return f.refuse(b)
}

// refuse says what is wrong with these swaps.
func (f *File) refuse(swaps []byte) error {
	if !swapIsOn(swaps) {
		return nil
	}
	return fmt.Errorf("%w: %w; turn the swap off, raise the limit (LimitMEMLOCK=infinity in the unit), or write allow_swap = true under [data] if it is encrypted", ErrSwap, f.unlock)
}

// swapIsOn reads /proc/swaps: a line of headings, then one for each swap.
func swapIsOn(swaps []byte) bool { return bytes.Count(bytes.TrimSpace(swaps), []byte("\n")) > 0 }
