// Package native is our own data plane. On the wire it is WireGuard; the
// protocol itself is engine/noise, what stands here is how packets move.
//
// Whole batches run to completion where they were read. A thread for each
// queue of a TUN device (outbound) takes what is there, cuts large packets to
// the MTU, seals each straight into the memory it is sent from, and hands runs
// of equal size to the kernel as one message. A thread for each socket
// (inbound) opens datagrams where they were received, and gives the host the
// packets of a flow as one. Between reading and writing there is no queue, no
// hand-over and no copy but that of the cipher.
//
// Handshakes leave the batch for one bounded queue with a goroutine of its own
// (greeter); what is due at a time is done by one more (agenda). A session
// that is idle owns neither goroutine nor channel nor timer.
//
// The threads find sessions without locks: by receiver index in an array
// (table), by inner address in a persistent trie that is replaced as a whole
// (bart). Keys are held while a batch uses them, and wiped when nobody does.
//
// With a Keeper an engine outlives its process: sockets and TUN devices are kept
// for the next one, and the live keypairs lie in a memory file, where counters
// and windows are moved by the threads themselves. legacy.go says how another
// process goes on with them.
package native

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/udp"
)

// Config is what an Engine needs to know.
type Config struct {
	// Listen is where UDP is bound. The zero address and :: are every address
	// of both families; port 0 is any port that is free.
	Listen netip.AddrPort
	// Sockets, if any, are used instead of binding Listen, all on one port. New
	// owns them, also when it fails.
	Sockets []*net.UDPConn
	// Mark is set on what the engine sends, so that routing rules can keep it
	// out of the tunnels. Zero: none.
	Mark uint32
	// NoOffload makes the kernel give and take every packet alone, for kernels
	// whose offloads are broken. What a kernel refuses is not used anyway.
	NoOffload bool
	// Queues is how many threads read from each TUN device. Zero: one for each
	// processor, up to four.
	Queues int
	// Receivers is how many threads receive of each family, each from a socket of
	// its own. Zero: one for two processors, up to four. Sockets that are taken
	// over stay as many as they are.
	Receivers int
	// Keeper, if there is one, keeps what a process after this one can go on
	// with: sockets, TUN devices, and a memory file with the live keypairs.
	Keeper Keeper
	// Inherited is what the process before this one had kept. New owns the
	// descriptors, also when it fails.
	Inherited []Descriptor
	// Journal names the journal that the sessions are in: keypairs left by a
	// process with another one are of no use.
	Journal session.ID
	// AllowSwap lets keys lie in memory that may reach a swap.
	AllowSwap bool
	// Log may be nil: nothing is logged.
	Log *slog.Logger
}

// Engine implements [engine.Engine].
type Engine struct {
	config  Config
	log     *slog.Logger
	limit   *rate.Limiter // of log lines that the network can cause
	sockets []*socket
	path    atomic.Uint32 // generation: the host's addresses and routes changed that often
	table   *table
	legacy  *legacy
	agenda  *agenda
	greeter *greeter
	bell    *bell
	threads sync.WaitGroup
	counts  counts
	events  engine.Events

	stagedOctets atomic.Int64 // of packets that wait for a handshake

	control struct { // for what leaves outside of a batch
		sync.Mutex
		sender *sender
	}

	mu      sync.Mutex                // guards changes of devices and everything below
	devices atomic.Pointer[[]*Device] // those open now
	closed  bool
	moving  bool          // packets move
	moved   chan struct{} // closed when they do
}

// counts are the datagrams and packets that were dropped, by cause, where no
// session has to do with it. Each session counts its own.
type counts struct {
	unsent       atomic.Uint64 // neither the kernel nor the carrier took it
	noSession    atomic.Uint64 // no session has the inner destination
	badPacket    atomic.Uint64 // not an IP packet
	unknown      atomic.Uint64 // a datagram of no index or key of ours
	rejected     atomic.Uint64 // forged, replayed or too old
	unwritten    atomic.Uint64 // the interface did not take it
	handshakes   atomic.Uint64 // handshake messages that the queue had no room for
	unauthorized atomic.Uint64 // handshake messages that failed
	limited      atomic.Uint64 // handshake messages over their source's rate
}

var _ engine.Engine = (*Engine)(nil)

// New binds the UDP port, or goes on with the sockets of the process before.
// Errors: [engine.ErrPortTaken]; where the mark may not be set or the port not
// be bound, [engine.ErrNotPermitted]; [memfile.ErrInUse] where another process
// moves packets with what was inherited, [memfile.ErrSwap] where the memory
// file could reach a disk.
func New(c Config) (*Engine, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	l, err := newLegacy(c, now())
	if err != nil {
		udp.CloseAll(c.Sockets)
		return nil, err
	}
	e := &Engine{
		config: c, log: c.Log, limit: rate.NewLimiter(rate.Every(10*time.Second), 5),
		legacy: l, table: newTable(l.mixing(), l.indices()), moved: make(chan struct{}),
	}
	e.devices.Store(new([]*Device))
	e.control.sender = newSender(e, controlArena)
	e.agenda, e.greeter = newAgenda(), newGreeter(e)
	if err := e.openSockets(); err != nil {
		e.closeDescriptors()
		return nil, err
	}
	e.start()
	return e, nil
}

// receivers is how many sockets of each family there are to be.
func (c *Config) receivers() int {
	if c.Receivers > 0 {
		return c.Receivers
	}
	return max(1, min(runtime.NumCPU()/2, maxReceivers))
}

// openSockets makes what Close closes.
func (e *Engine) openSockets() (err error) {
	conns, kept := e.config.Sockets, false
	if len(conns) == 0 {
		conns, kept = e.legacy.sockets(e.config.Listen)
	}
	if len(conns) == 0 {
		if conns, err = udp.Listen(e.config.Listen, e.config.receivers()); err != nil {
			return err
		}
	}
	if e.bell, err = newBell(); err != nil {
		udp.CloseAll(conns)
		return err
	}
	var fds []int
	for i, conn := range conns {
		s, err := newSocket(conn, e.config.Mark, !e.config.NoOffload)
		if err != nil {
			udp.CloseAll(conns[i+1:])
			return err
		}
		e.sockets = append(e.sockets, s)
		fds = append(fds, s.fd)
	}
	if !kept {
		e.legacy.keep(socketName, fds...)
	}
	return nil
}

// widen gives the runtime a processor more for each thread that will wait in a
// system call. A thread keeps its processor while it waits, so with none to
// spare the runtime takes it away, wakes another thread to use it, and the
// thread has to look for one again at each packet.
func widen(threads int) { runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + threads) }

// start starts what Close ends.
func (e *Engine) start() {
	e.threads.Go(e.greeter.run)
	e.threads.Go(e.agenda.run)
	if e.legacy.unclaimed() {
		e.threads.Go(e.awaitSettled)
	} else {
		e.move()
	}
}

func (e *Engine) closeDescriptors() {
	for _, s := range e.sockets {
		s.close()
	}
	if e.bell != nil {
		e.bell.close()
	}
	e.legacy.close()
}

// Port is the UDP port of every device.
func (e *Engine) Port() uint16 { return e.sockets[0].Local.Port() }

// Events are what happened to the sessions of all devices.
func (e *Engine) Events() *engine.Events { return &e.events }

// PathChanged makes the routing table choose the source towards every peer
// again, until that peer has been heard of.
func (e *Engine) PathChanged() { e.path.Add(1) }

// socketFor is the socket that reaches to; nil if the host has none.
func (e *Engine) socketFor(to *udp.Endpoint) *socket {
	for _, s := range e.sockets {
		if s.Is4() == to.Is4() {
			return s
		}
	}
	return nil
}

// Open makes the interface c.Interface, or goes on with what the process before
// this one had of it, and starts moving packets.
func (e *Engine) Open(c engine.DeviceConfig) (engine.Device, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, engine.ErrClosed
	}
	name := tunPrefix + c.Interface
	t, err := adoptTUN(c, e.legacy.take(name), !e.config.NoOffload)
	if err != nil {
		e.log.Warn("interface not taken over", event.KeyTunnel, c.Interface, event.KeyErr, err)
		e.legacy.forget(name)
	}
	if t == nil {
		if t, err = openTUN(c, e.config.Queues, !e.config.NoOffload); err != nil {
			return nil, err
		}
		if e.legacy.keeper != nil {
			t.lengthen()
			e.legacy.keep(name, t.fds...)
		}
	}
	d, err := e.attachLocked(t, c.MTU)
	if err != nil {
		t.close()
		return nil, err
	}
	return d, nil
}

// attachLocked makes a device on t. It owns t if it returns no error.
func (e *Engine) attachLocked(t *tunnel, mtu int) (*Device, error) {
	d, err := newDevice(e, t, mtu)
	if err != nil {
		return nil, err
	}
	devices := append(slices.Clone(*e.devices.Load()), d)
	e.devices.Store(&devices)
	if e.moving {
		d.move()
	}
	return d, nil
}

// forget is told by a device that it closes.
func (e *Engine) forget(d *Device) {
	e.mu.Lock()
	defer e.mu.Unlock()
	devices := slices.DeleteFunc(slices.Clone(*e.devices.Load()), func(o *Device) bool { return o == d })
	e.devices.Store(&devices)
}

// Close ends every device, waits for what they started, frees the port, and
// wipes all keys. A process after this one has nothing to go on with.
func (e *Engine) Close() error { return e.end(false) }

// end is Close or HandOver.
func (e *Engine) end(handOver bool) error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	e.mu.Unlock()
	e.bell.ring()
	e.agenda.stop()
	e.greeter.stop()
	e.threads.Wait() // first, because what they have in hand is for the devices
	if e.moving {
		widen(-len(e.sockets))
	}
	var errs []error
	for _, d := range *e.devices.Load() {
		errs = append(errs, d.end(handOver))
	}
	if !handOver {
		e.wipe(e.legacy.rest())
		e.legacy.forget(socketName)
		e.legacy.forget(memoryName)
	}
	e.closeDescriptors()
	return errors.Join(errs...)
}

// complain logs what the network or the host did to us, but not as often as it
// does it.
func (e *Engine) complain(what string, err error) {
	if e.limit.Allow() {
		e.log.Warn("data path refused", event.KeyEvent, what, event.KeyErr, err)
	}
}
