package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// harden keeps keys out of core dumps, and other processes of our user out of
// our memory. It is done before the first key is read.
func harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("core dumps cannot be disabled: PR_SET_DUMPABLE: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("core dumps cannot be disabled: RLIMIT_CORE: %w", err)
	}
	return nil
}
