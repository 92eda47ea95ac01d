package native

import (
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine"
)

// inNamespace runs f on a thread of its own in a network namespace of its own,
// which ends with the thread.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces and TUN devices")
	}
	failed := make(chan error)
	go func() {
		defer close(failed)
		runtime.LockOSThread() // for good: nothing else may run here
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			failed <- err
			return
		}
		f()
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}

// TestKernelTakesJoined gives the kernel the largest groups that the coalescer
// makes.
func TestKernelTakesJoined(t *testing.T) {
	inNamespace(t, func() {
		tun, err := openTUN(engine.DeviceConfig{Interface: "tnl0", MTU: 1420}, 2, true)
		if err != nil {
			t.Error(err)
			return
		}
		defer tun.close()
		if err := setUp("tnl0"); err != nil {
			t.Error(err)
			return
		}
		for _, f := range forms(rand.New(rand.NewPCG(9, 10))) {
			for _, size := range []int{16, 100, 1300} {
				in := &inbound{e: &Engine{}}
				in.coalescer = coalescer{join: tun.tcp.Load(), udp: tun.udp.Load()}
				in.coalescer.reset()
				var c cutter
				if err := c.load(f.large(size)); err != nil {
					t.Error(err)
					return
				}
				for p, ok := c.next(); ok; p, ok = c.next() {
					in.coalescer.add(append(make([]byte, vnetLen), p...)[vnetLen:])
				}
				groups := in.coalescer.n
				for i := range in.coalescer.groups[:groups] {
					if len(in.coalescer.groups[0].pieces) == 0 {
						t.Errorf("v6 %v, tcp %v, size %d: group %d was not joined", f.v6, f.tcp, size, i)
					}
				}
				in.writeTo(tun)
				if n := in.e.counts.unwritten.Load(); n != 0 || !tun.tcp.Load() || !tun.udp.Load() {
					t.Errorf("v6 %v, tcp %v, size %d: the kernel refused %d packets in %d groups", f.v6, f.tcp, size, n, groups)
				}
			}
		}
	})
}

// setUp sets an interface up.
func setUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// TestTakeOver takes over a persistent interface, but not from who holds it.
func TestTakeOver(t *testing.T) {
	inNamespace(t, func() {
		c := engine.DeviceConfig{Interface: "tnl0", MTU: 1300}
		first, err := openTUN(c, 1, false)
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := openTUN(c, 2, false); !errors.Is(err, engine.ErrInterfaceTaken) {
			t.Errorf("a second open = %v, want %v", err, engine.ErrInterfaceTaken)
		}
		first.close()
		made := &tunnel{name: "tnl0"}
		if err := made.addQueue(0); err != nil {
			t.Error(err)
			return
		}
		if err := unix.IoctlSetInt(made.fds[0], unix.TUNSETPERSIST, 1); err != nil {
			t.Error(err)
		}
		if _, err := openTUN(c, 2, false); !errors.Is(err, engine.ErrInterfaceTaken) {
			t.Errorf("open of a persistent one that is held = %v, want %v", err, engine.ErrInterfaceTaken)
		}
		made.close()
		taken, err := openTUN(c, 2, false)
		if err != nil {
			t.Errorf("open of a persistent one that nobody holds = %v", err)
			return
		}
		unix.IoctlSetInt(taken.fds[0], unix.TUNSETPERSIST, 0)
		taken.close()
	})
}

// TestOffloadsEnd adopts an interface whose offloads the process before had on,
// with and without wanting them.
func TestOffloadsEnd(t *testing.T) {
	inNamespace(t, func() {
		c := engine.DeviceConfig{Interface: "tnl0", MTU: 1300}
		tun, err := openTUN(c, 2, true)
		if err != nil {
			t.Error(err)
			return
		}
		defer tun.close()
		for _, want := range []bool{true, false, true} {
			next, err := adoptTUN(c, tun.fds, want)
			if err != nil {
				t.Error(err)
				return
			}
			tun = next
			if on, err := segmentation(c.Interface); err != nil || on != want || tun.tcp.Load() != want {
				t.Errorf("adopted with offloads %v: the kernel gives large packets: %v, %v, and we do: %v", want, on, err, tun.tcp.Load())
			}
		}
	})
}

// segmentation reports whether an interface takes large TCP packets from the
// kernel (ETHTOOL_GTSO of linux/ethtool.h).
func segmentation(name string) (bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{cmd: 0x1e}
	ifr := struct {
		name  [unix.IFNAMSIZ]byte
		value *struct{ cmd, data uint32 }
		_     [16]byte
	}{value: &value}
	copy(ifr.name[:], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr))); errno != 0 {
		return false, errno
	}
	return value.data != 0, nil
}
