package reference

import (
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/meter"
)

const tunPath = "/dev/net/tun"

// openTUN makes the interface, or takes over a persistent one that nobody
// holds. It vanishes with the process unless it is persistent.
func openTUN(c engine.DeviceConfig) (tun.Device, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, engine.InterfaceError(c.Interface, err)
	}
	if err := attach(fd, c.Interface); err != nil {
		unix.Close(fd)
		return nil, engine.InterfaceError(c.Interface, err)
	}
	file := os.NewFile(uintptr(fd), tunPath)
	d, err := tun.CreateTUNFromFile(file, c.MTU)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("interface %s: %w", c.Interface, engine.Permission(err))
	}
	return d, nil
}

// attach makes fd the TUN interface of that name, with the offloads.
func attach(fd int, name string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return err
	}
	return unix.SetNonblock(fd, true) // or closing would not end a read
}

// A tunDevice stands between wireguard-go and the interface: it holds the
// gates and counts. It costs one look-up and two additions per session and
// batch, and leaves batches and offloads as they are.
type tunDevice struct {
	tun.Device
	routes atomic.Pointer[bart.Table[*peer]] // replaced, never changed
	events chan tun.Event
	done   chan struct{}
	once   sync.Once
	wg     sync.WaitGroup
}

func newTUNDevice(inner tun.Device) *tunDevice {
	t := &tunDevice{Device: inner, events: make(chan tun.Event), done: make(chan struct{})}
	t.routes.Store(new(bart.Table[*peer]))
	t.wg.Go(t.forwardEvents)
	return t
}

// forwardEvents passes the interface's events on, except that it went down:
// wireguard-go would stop all peers and wipe their keys.
func (t *tunDevice) forwardEvents() {
	defer close(t.events)
	for e := range t.Device.Events() {
		if e &^= tun.EventDown; e == 0 {
			continue
		}
		select {
		case t.events <- e:
		case <-t.done: // go on reading, or the interface's own goroutines would hang
		}
	}
}

// Events delivers what wireguard-go must know of.
func (t *tunDevice) Events() <-chan tun.Event { return t.events }

// Close removes the interface. It does not wait; see wait.
func (t *tunDevice) Close() error {
	t.once.Do(func() { close(t.done) })
	return t.Device.Close()
}

// wait waits, after Close, for what newTUNDevice started.
func (t *tunDevice) wait() { t.wg.Wait() }

// Read reads what the host sends into sessions.
func (t *tunDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := t.Device.Read(bufs, sizes, offset)
	c := tally{routes: t.routes.Load(), way: meter.Tx}
	for i := range n {
		if p := c.find(bufs[i][offset : offset+sizes[i]]); p != nil && !c.pass(p, sizes[i]) {
			sizes[i] = 0
		}
	}
	c.flush()
	return n, err
}

// Write hands what peers sent to the host. wireguard-go has checked that their
// sources are the peer's own. The packets are counted before they are written,
// because writing joins them.
func (t *tunDevice) Write(bufs [][]byte, offset int) (int, error) {
	c := tally{routes: t.routes.Load(), way: meter.Rx}
	kept, copied := bufs[:0:len(bufs)], false
	for i, b := range bufs {
		if p := c.find(b[offset:]); p == nil || !c.pass(p, len(b)-offset) {
			if !copied { // the slice is the caller's
				kept, copied = append([][]byte(nil), bufs[:i]...), true
			}
			continue
		}
		if copied {
			kept = append(kept, b)
		} else {
			kept = bufs[:i+1]
		}
	}
	c.flush()
	if len(kept) == 0 {
		return 0, nil
	}
	return t.Device.Write(kept, offset)
}

// A tally counts one batch. Neighbours in a batch mostly belong together, so
// it remembers the last address and touches the session's own counters only
// when the session changes. Its way also says which address of a packet names
// the session: the first (source) of those received, the second of those sent.
type tally struct {
	routes                  *bart.Table[*peer]
	way                     meter.Way
	addr                    netip.Addr   // looked up last
	found                   *peer        // and whose it is
	current                 *peer        // whom the counts below belong to
	open                    bool         // packets may pass; else
	why                     engine.Cause // they may not
	now                     int64        // 0: not looked at in this batch
	packets, bytes, dropped uint64       // dropped for why
}

// find is the session that the address in an IP packet belongs to, or nil.
func (c *tally) find(packet []byte) *peer {
	if len(packet) == 0 {
		return nil
	}
	var addr netip.Addr
	switch {
	case packet[0]>>4 == 4 && len(packet) >= 20:
		addr = netip.AddrFrom4([4]byte(packet[12+4*c.way:]))
	case packet[0]>>4 == 6 && len(packet) >= 40:
		addr = netip.AddrFrom16([16]byte(packet[8+16*c.way:]))
	default:
		return nil
	}
	if addr != c.addr {
		c.addr = addr
		c.found, _ = c.routes.Lookup(addr)
	}
	return c.found
}

// pass counts a packet of p, and reports whether p lets it through.
func (c *tally) pass(p *peer, size int) bool {
	if c.now == 0 {
		c.now = meter.Now()
	}
	if p != c.current {
		c.flush()
		c.current = p
		c.why, c.open = p.meter.Passes(c.way, c.now)
	}
	switch {
	case !c.open:
		c.dropped++
		return false
	case !p.meter.Take(c.way, size, c.now):
		return false
	}
	c.packets++
	c.bytes += uint64(size)
	return true
}

// flush adds the counts to their session.
func (c *tally) flush() {
	if c.current != nil {
		c.current.meter.Count(c.way, c.packets, c.bytes)
		c.current.meter.Drop(c.way, c.why, c.dropped)
	}
	c.packets, c.bytes, c.dropped = 0, 0, 0
}
