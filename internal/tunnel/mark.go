package tunnel

import (
	"errors"
	"syscall"

	"tunneld/internal/tunnel/host"
)

// setMark marks a control connection's socket, so that a default route through
// a tunnel leaves it outside. Without the right to mark there is no such route
// either, so that is no error.
func setMark(fd uintptr) error {
	err := syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_MARK, host.Mark)
	if errors.Is(err, syscall.EPERM) {
		return nil
	}
	return err
}
