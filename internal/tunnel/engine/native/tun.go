package native

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine"
)

const (
	tunPath = "/dev/net/tun"
	// maxQueues bounds the threads that read from one interface.
	maxQueues = 4

	tcpOffloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	udpOffloads = unix.TUN_F_USO4 | unix.TUN_F_USO6 // Linux 6.2
)

// A tunnel is the descriptors of one TUN interface, one for each queue. Each
// packet has a vnetHeader in front.
type tunnel struct {
	name string
	fds  []int
	tcp  atomic.Bool // large TCP packets may be written
	udp  atomic.Bool // large UDP packets may be written

	// mu is held for reading by the threads of sockets while they write. The
	// queues' own threads have ended when close is called.
	mu sync.RWMutex
}

// openTUN makes the interface, or takes over a persistent one of a single queue
// that nobody holds. It vanishes with the descriptors unless it is persistent.
func openTUN(c engine.DeviceConfig, queues int, offload bool) (*tunnel, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if queues <= 0 {
		queues = min(runtime.NumCPU(), maxQueues)
	}
	t := &tunnel{name: c.Interface}
	if err := t.attach(queues); err != nil {
		t.close()
		return nil, engine.InterfaceError(c.Interface, err)
	}
	t.setOffloads(offload)
	if err := t.setMTU(c.MTU); err != nil {
		t.close()
		return nil, fmt.Errorf("interface %s: %w", c.Interface, engine.Permission(err))
	}
	return t, nil
}

// adoptTUN goes on with the queues of an interface that another process had.
// It owns them; nil without an error if there are none.
func adoptTUN(c engine.DeviceConfig, fds []int, offload bool) (*tunnel, error) {
	if len(fds) == 0 {
		return nil, nil
	}
	t := &tunnel{name: c.Interface, fds: fds}
	for _, fd := range fds {
		ifr, err := unix.NewIfreq("")
		if err == nil {
			err = unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr)
		}
		if err == nil && ifr.Name() != c.Interface {
			err = fmt.Errorf("it is %s now", ifr.Name())
		}
		if err == nil {
			err = unix.SetNonblock(fd, true)
		}
		if err != nil {
			t.close()
			return nil, err
		}
	}
	t.setOffloads(offload)
	if err := t.setMTU(c.MTU); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// keptQueueLen is the length, in packets, of the queues of a device that is to
// outlive the process: 200 ms of 10,000 packets a second, while nobody reads.
// The kernel gives 500. A longer queue is a slower one under a flood, and the
// length cannot be changed when it is needed: for as long as that takes the
// kernel, which may be 100 ms, it drops what comes.
const keptQueueLen = 2048

// lengthen gives a new device longer queues. Where it cannot be done a restart
// loses more.
func (t *tunnel) lengthen() {
	_ = t.control(func(fd int, ifr *unix.Ifreq) error {
		ifr.SetUint32(keptQueueLen)
		return unix.IoctlIfreq(fd, unix.SIOCSIFTXQLEN, ifr)
	})
}

// attach makes a new interface with that many queues. One that is there already
// is asked for with a single queue: then the kernel refuses it if somebody
// holds it, whereas more queues could be had beside those of another process.
func (t *tunnel) attach(queues int) error {
	err := t.addQueue(unix.IFF_MULTI_QUEUE | unix.IFF_TUN_EXCL)
	if errors.Is(err, unix.EBUSY) {
		return t.addQueue(0)
	}
	for err == nil && len(t.fds) < queues {
		err = t.addQueue(unix.IFF_MULTI_QUEUE)
	}
	return err
}

// addQueue opens a descriptor. It is never waited on in read(2), see waiter.
func (t *tunnel) addQueue(flags uint16) error {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	ifr, err := unix.NewIfreq(t.name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err == nil { // of a persistent interface it may be another
		err = unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetLen)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	t.fds = append(t.fds, fd)
	return nil
}

// setOffloads lets the kernel give and take packets larger than the MTU, and
// leave checksums to us, or ends that: a process before may have had it on. What
// a kernel refuses costs speed.
func (t *tunnel) setOffloads(on bool) {
	tcp, udp := on, on
	for _, fd := range t.fds {
		if !on {
			_ = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0) // what cannot be set is not on
			continue
		}
		tcp = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcpOffloads) == nil && tcp
		udp = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcpOffloads|udpOffloads) == nil && udp
	}
	t.tcp.Store(tcp)
	t.udp.Store(udp)
}

func (t *tunnel) setMTU(mtu int) error {
	return t.control(func(fd int, ifr *unix.Ifreq) error {
		ifr.SetUint32(uint32(mtu))
		return unix.IoctlIfreq(fd, unix.SIOCSIFMTU, ifr)
	})
}

// control calls f with a descriptor for requests about the interface.
func (t *tunnel) control(f func(fd int, ifr *unix.Ifreq) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(t.name)
	if err != nil {
		return err
	}
	return f(fd, ifr)
}

// close removes the interface, unless it is persistent.
func (t *tunnel) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, fd := range t.fds {
		unix.Close(fd)
	}
	t.fds = nil
}

// read takes a packet from a queue, without waiting.
func (t *tunnel) read(queue int, b []byte) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_READ, uintptr(t.fds[queue]), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// write gives the host a packet: header and packet in the first vector, and
// what belongs to it in the others. The caller holds mu.
func (t *tunnel) write(queue int, vectors []unix.Iovec) error {
	trap, base, n := uintptr(unix.SYS_WRITEV), uintptr(unsafe.Pointer(&vectors[0])), uintptr(len(vectors))
	if n == 1 {
		trap, base, n = unix.SYS_WRITE, uintptr(unsafe.Pointer(vectors[0].Base)), uintptr(vectors[0].Len)
	}
	for {
		if _, _, errno := unix.Syscall(trap, uintptr(t.fds[queue]), base, n); errno == 0 {
			return nil
		} else if errno != unix.EINTR {
			return errno
		}
	}
}
