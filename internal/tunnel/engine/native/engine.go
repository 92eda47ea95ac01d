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
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/udp"
)

// Config is what an Engine needs to know.
type Config struct {
	// Listen is where UDP is bound. The zero address and :: are every address
	// of both families; port 0 is any port that is free.
	Listen netip.AddrPort
	// Sockets, if any, are used instead of binding Listen: at most one of each
	// family, on one port. New owns them, also when it fails.
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
	agenda  *agenda
	greeter *greeter
	bell    *bell
	threads sync.WaitGroup
	counts  counts

	stagedOctets atomic.Int64 // of packets that wait for a handshake

	control struct { // for what leaves outside of a batch
		sync.Mutex
		sender *sender
	}

	mu      sync.Mutex                // guards changes of devices and everything below
	devices atomic.Pointer[[]*Device] // those open now
	closed  bool
}

// counts are the datagrams and packets that were dropped, by cause. Those that
// a gate stops are counted by their session.
type counts struct {
	noSocket     atomic.Uint64 // no socket of the peer's family
	unsent       atomic.Uint64 // the kernel did not take it
	noSession    atomic.Uint64 // no session has the inner destination
	badPacket    atomic.Uint64 // not an IP packet
	unstaged     atomic.Uint64 // waited for a handshake in vain, or too many did
	unknown      atomic.Uint64 // a datagram of no index or key of ours
	rejected     atomic.Uint64 // forged, replayed or too old
	badSource    atomic.Uint64 // an inner source that is not the peer's
	congested    atomic.Uint64 // marked on the way, but nobody inside understands marks
	unwritten    atomic.Uint64 // the interface did not take it
	handshakes   atomic.Uint64 // handshake messages that the queue had no room for
	unauthorized atomic.Uint64 // handshake messages that failed
	limited      atomic.Uint64 // handshake messages over their source's rate
}

var _ engine.Engine = (*Engine)(nil)

// New binds the UDP port. Errors: [engine.ErrPortTaken] and, where the
// mark may not be set or the port not be bound, [engine.ErrNotPermitted].
func New(c Config) (*Engine, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	conns := c.Sockets
	if len(conns) == 0 {
		var err error
		if conns, err = udp.Listen(c.Listen); err != nil {
			return nil, err
		}
	}
	e := &Engine{config: c, log: c.Log, limit: rate.NewLimiter(rate.Every(10*time.Second), 5), table: newTable()}
	e.devices.Store(new([]*Device))
	e.control.sender = newSender(e, controlArena)
	e.agenda, e.greeter = newAgenda(), newGreeter(e)
	var err error
	if e.bell, err = newBell(); err != nil {
		udp.CloseAll(conns)
		return nil, err
	}
	for i, conn := range conns {
		s, err := newSocket(conn, c.Mark, !c.NoOffload)
		if err != nil {
			udp.CloseAll(conns[i+1:])
			e.closeDescriptors()
			return nil, err
		}
		e.sockets = append(e.sockets, s)
	}
	e.start()
	return e, nil
}

// widen gives the runtime a processor more for each thread that will wait in a
// system call. A thread keeps its processor while it waits, so with none to
// spare the runtime takes it away, wakes another thread to use it, and the
// thread has to look for one again at each packet.
func widen(threads int) { runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + threads) }

// start starts what Close ends.
func (e *Engine) start() {
	widen(len(e.sockets))
	for _, s := range e.sockets {
		in := newInbound(e, s)
		e.threads.Go(in.run)
	}
	e.threads.Go(e.greeter.run)
	e.threads.Go(e.agenda.run)
}

func (e *Engine) closeDescriptors() {
	for _, s := range e.sockets {
		s.close()
	}
	e.bell.close()
}

// Port is the UDP port of every device.
func (e *Engine) Port() uint16 { return e.sockets[0].Local.Port() }

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

// Open makes the interface c.Interface and starts moving packets.
func (e *Engine) Open(c engine.DeviceConfig) (engine.Device, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, engine.ErrClosed
	}
	t, err := openTUN(c, e.config.Queues, !e.config.NoOffload)
	if err != nil {
		return nil, err
	}
	d, err := newDevice(e, t, c.MTU)
	if err != nil {
		t.close()
		return nil, err
	}
	devices := append(slices.Clone(*e.devices.Load()), d)
	e.devices.Store(&devices)
	return d, nil
}

// forget is told by a device that it closes.
func (e *Engine) forget(d *Device) {
	e.mu.Lock()
	defer e.mu.Unlock()
	devices := slices.DeleteFunc(slices.Clone(*e.devices.Load()), func(o *Device) bool { return o == d })
	e.devices.Store(&devices)
}

// Close ends every device, waits for what they started, and frees the port.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	e.mu.Unlock()
	var errs []error
	for _, d := range *e.devices.Load() {
		errs = append(errs, d.Close())
	}
	e.bell.ring()
	e.agenda.stop()
	e.greeter.stop()
	e.threads.Wait()
	widen(-len(e.sockets))
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
