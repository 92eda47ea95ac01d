package netlab

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	tunDevice = "/dev/net/tun"
	maxFrame  = 65536 // more than any MTU and its Ethernet header
)

// openTAP makes a TAP device in the calling thread's namespace and returns its
// non-blocking descriptor. The device lives as long as that is open.
func openTAP(name string) (int, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", tunDevice, err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make TAP device %q: %w", name, err)
	}
	return fd, nil
}

// setCarrier raises or lowers what the host sees as the cable.
func setCarrier(fd int, up bool) error {
	value := 0
	if up {
		value = 1
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETCARRIER, value); err != nil {
		return fmt.Errorf("set carrier to %v: %w", up, err)
	}
	return nil
}

// readFrame reads one frame into buf; ok is false when there is none now.
func readFrame(fd int, buf []byte) (n int, ok bool, err error) {
	for {
		n, err = unix.Read(fd, buf)
		switch {
		case err == nil:
			return n, true, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return 0, false, nil
		}
		return 0, false, fmt.Errorf("read TAP: %w", err)
	}
}

// writeFrame puts a frame on the host's side. A device that is down, or whose
// host is out of memory for it, loses the frame as a cable would.
func writeFrame(fd int, frame []byte) {
	for {
		if _, err := unix.Write(fd, frame); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
