package host

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Linux is the kernel of the network namespace it was made in. It is a [Host];
// its methods may be called from any goroutine.
type Linux struct {
	log *slog.Logger
	ns  netns.NsHandle  // where New was called; every method works there
	nl  *netlink.Handle // NETLINK_ROUTE

	// mu makes one change of the host at a time and guards everything below.
	mu     sync.Mutex
	routes map[int][]netip.Prefix // what SetRoutes was last told, by interface index
	vmark  bool                   // src_valid_mark was off and we switched it on

	// oursMu guards ours, which the watcher reads between two changes.
	oursMu sync.Mutex
	ours   map[int]bool // indices of the interfaces that SetLink was called for
}

var _ Host = (*Linux)(nil)

// New returns the host of the calling thread's network namespace. Without
// CAP_NET_ADMIN the error is [ErrNotPermitted].
func New(log *slog.Logger) (*Linux, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := checkCapability(); err != nil {
		return nil, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &Linux{
		log:    log,
		ns:     ns,
		nl:     nl,
		routes: make(map[int][]netip.Prefix),
		ours:   make(map[int]bool),
	}, nil
}

// Close gives the sockets back and changes nothing on the host. The Linux must
// not be used afterwards; a Watch ends with its own context.
func (l *Linux) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nl.Close()
	return l.ns.Close()
}

// Cleanup implements [Host].
func (l *Linux) Cleanup(ifname string) error {
	return l.do(func() error {
		var errs []error
		if ifname != "" {
			errs = append(errs, l.setRoutes(ifname, nil))
		} else {
			errs = append(errs, l.sweepRules())
		}
		errs = append(errs, l.sweepFilter(ifname))
		return errors.Join(errs...)
	})
}

// checkCapability says what is missing before anything is half done.
func checkCapability() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return fmt.Errorf("%w: run as root, or grant it to the service with AmbientCapabilities=CAP_NET_ADMIN", ErrNotPermitted)
	}
	return nil
}

// do runs op alone, on a thread that is in our namespace: sockets that op opens
// and sysctls that it reads belong to the thread's namespace.
func (l *Linux) do(op func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.inNamespace(op)
	if errors.Is(err, unix.EPERM) && !errors.Is(err, ErrNotPermitted) {
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	return err
}

// inNamespace runs op in our namespace. In the daemon every thread is there
// already and nothing is switched: that would need CAP_SYS_ADMIN.
func (l *Linux) inNamespace(op func() error) error {
	runtime.LockOSThread()
	now, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("network namespace: %w", err)
	}
	defer now.Close()
	if now.Equal(l.ns) {
		defer runtime.UnlockOSThread()
		return op()
	}
	if err := netns.Set(l.ns); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering the network namespace: %w", err)
	}
	defer func() {
		if netns.Set(now) == nil {
			runtime.UnlockOSThread()
		} // else the thread stays locked and dies with its goroutine
	}()
	return op()
}

// dumpAttempts bounds how often a listing is repeated that a change interrupted.
const dumpAttempts = 8

// dump repeats a listing until the kernel delivers it whole.
func dump[T any](list func() ([]T, error)) (all []T, err error) {
	for range dumpAttempts {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return nil, err
}

// link finds an interface by its name.
func (l *Linux) link(ifname string) (netlink.Link, error) {
	link, err := l.nl.LinkByName(ifname)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil, fmt.Errorf("%w: %q", ErrNoInterface, ifname)
	}
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", ifname, err)
	}
	return link, nil
}

// linkNames returns the names of all interfaces by index.
func (l *Linux) linkNames() (map[int]string, error) {
	links, err := dump(l.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, link := range links {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	return names, nil
}

// family returns the address family of p as netlink counts them.
func family(p netip.Prefix) int {
	if p.Addr().Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// ipNet converts p, whose host bits are kept.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{
		IP:   p.Addr().AsSlice(),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}
}

// prefix converts n; ok is false if n is nil or no prefix.
func prefix(n *net.IPNet) (p netip.Prefix, ok bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, bits := n.Mask.Size()
	if bits == 8*net.IPv4len {
		addr = addr.Unmap()
	}
	p = netip.PrefixFrom(addr, ones)
	return p, p.IsValid()
}
