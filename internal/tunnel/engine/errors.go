package engine

import (
	"errors"
	"fmt"
	"syscall"
)

// Permission adds [ErrNotPermitted] to an error of the kernel that means it.
func Permission(err error) error {
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	return err
}

// InterfaceError says what an error of /dev/net/tun means for the interface of
// that name.
func InterfaceError(name string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return fmt.Errorf("%w: load the tun module (modprobe tun) or give the container the device: %w", ErrNoTUN, err)
	case errors.Is(err, syscall.EACCES): // of the file; without the capability it is EPERM
		return fmt.Errorf("%w for the daemon's user: let everybody open it (chmod 0666 /dev/net/tun), as udev does: %w", ErrNoTUN, err)
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w: interface %s: %w", ErrNotPermitted, name, err)
	case errors.Is(err, syscall.EBUSY), errors.Is(err, syscall.EEXIST), errors.Is(err, syscall.EINVAL): // EINVAL: it is no TUN
		return fmt.Errorf("%w: %s: choose another name, or remove it (ip link delete %s): %w", ErrInterfaceTaken, name, name, err)
	}
	return fmt.Errorf("interface %s: %w", name, err)
}
