package reference

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"tunneld/internal/event"
)

const (
	// queueLength is how many datagrams may wait for a device that another
	// one has read for.
	queueLength = 1024
	// parcelSize is what most datagrams fit in; larger ones are allocated.
	parcelSize = 2048
	// readPause is how long a reader waits after an error it cannot explain.
	readPause = 50 * time.Millisecond
)

// A hub lets any number of devices share the sockets of one UDP port.
//
// Each socket has one token. The device that holds it (the leader) reads a
// batch, keeps what is its own where it lies, copies what belongs to others
// into their queues, and passes the token on. A device alone is always the
// leader and never looks into what it reads.
//
// Whose a datagram is: an initiation names its receiver by mac1, everything
// else by an index that the receiver chose and that the hub saw leave.
type hub struct {
	sockets []*socket
	log     *slog.Logger
	limit   *rate.Limiter // of log lines that the network can cause

	taps    atomic.Pointer[[]*tap] // those open now
	indices indexTable
	path    atomic.Uint32 // generation: the host's addresses and routes changed that often
	epoch   atomic.Uint32 // generation of endpoints: as path, and dialled changed
	parcels sync.Pool     // of *[parcelSize]byte

	mu      sync.Mutex             // guards changes of taps and everything below
	dialled map[netip.AddrPort]int // addresses that we chose to speak to, and how many sessions did
	fast    atomic.Pointer[map[netip.AddrPort]int]
}

// A tap is what one device receives through, from Open to Close of its bind.
type tap struct {
	bind   *bind
	done   chan struct{}
	queues []chan parcel // one per socket
}

// A parcel is a datagram on its way to another device.
type parcel struct {
	data []byte
	from *endpoint
}

func newHub(sockets []*socket, log *slog.Logger) *hub {
	h := &hub{
		sockets: sockets,
		log:     log,
		limit:   rate.NewLimiter(rate.Every(10*time.Second), 5),
		dialled: make(map[netip.AddrPort]int),
	}
	h.taps.Store(new([]*tap))
	h.fast.Store(new(map[netip.AddrPort]int))
	h.parcels.New = func() any { return new([parcelSize]byte) }
	return h
}

// open lets b receive.
func (h *hub) open(b *bind) *tap {
	t := &tap{bind: b, done: make(chan struct{})}
	for range h.sockets {
		t.queues = append(t.queues, make(chan parcel, queueLength))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	taps := append(slices.Clone(*h.taps.Load()), t)
	h.taps.Store(&taps)
	return t
}

// close ends t: its readers return, and the token goes to another tap.
func (h *hub) close(t *tap) {
	h.mu.Lock()
	taps := slices.DeleteFunc(slices.Clone(*h.taps.Load()), func(o *tap) bool { return o == t })
	h.taps.Store(&taps)
	h.mu.Unlock()
	h.indices.forget(t.bind)
	close(t.done) // before the interrupts: a leader checks done after each
	for _, s := range h.sockets {
		s.interrupt()
	}
}

// shut closes the sockets; every device is closed already.
func (h *hub) shut() error {
	var errs []error
	for _, s := range h.sockets {
		errs = append(errs, s.conn.Close())
	}
	return errors.Join(errs...)
}

// socketFor is the socket that reaches dst, or nil.
func (h *hub) socketFor(dst netip.Addr) *socket {
	for _, s := range h.sockets {
		if s.Is4() == dst.Is4() {
			return s
		}
	}
	return nil
}

// dial says that n more (or, negative, fewer) sessions were told to speak to
// addr. Towards such an address the routing table chooses the source, for each
// packet anew; a peer that came to us is answered from where it reached us.
func (h *hub) dial(addr netip.AddrPort, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dialled[addr] += n
	if h.dialled[addr] <= 0 {
		delete(h.dialled, addr)
	}
	fast := make(map[netip.AddrPort]int, len(h.dialled))
	for a, n := range h.dialled {
		fast[a] = n
	}
	h.fast.Store(&fast)
	h.epoch.Add(1)
}

// pathChanged forgets the sources of all endpoints.
func (h *hub) pathChanged() {
	h.path.Add(1)
	h.epoch.Add(1)
}

func (h *hub) isDialled(addr netip.AddrPort) bool {
	_, ok := (*h.fast.Load())[addr]
	return ok
}

// receiver returns the function by which t reads socket number i.
func (h *hub) receiver(t *tap, i int) conn.ReceiveFunc {
	s, queue, r := h.sockets[i], t.queues[i], newReader(h.sockets[i])
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case p := <-queue:
			return h.unpack(p, queue, bufs, sizes, eps), nil
		default:
		}
		select {
		case <-t.done:
			return 0, net.ErrClosed
		case p := <-queue:
			return h.unpack(p, queue, bufs, sizes, eps), nil
		case <-s.token:
		}
		defer func() { s.token <- struct{}{} }()
		select {
		case p := <-queue: // the last leader's parting gift
			return h.unpack(p, queue, bufs, sizes, eps), nil
		default:
		}
		return h.lead(t, i, r, bufs, sizes, eps)
	}
}

// lead reads, with the token of socket number i, until there is something for
// t. The error is nil or net.ErrClosed: at any other one wireguard-go sleeps,
// and at the tenth it stops listening.
func (h *hub) lead(t *tap, i int, r *reader, bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	for {
		select {
		case <-t.done:
			return 0, net.ErrClosed
		default:
		}
		n, err := r.read(bufs, sizes, eps, h)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded): // somebody closed; perhaps t
			_ = h.sockets[i].conn.SetReadDeadline(time.Time{})
			continue
		case errors.Is(err, net.ErrClosed):
			return 0, net.ErrClosed
		case err != nil:
			h.complain("receive", h.sockets[i].Local, err)
			select {
			case <-t.done:
			case <-time.After(readPause):
			}
			continue
		}
		if taps := *h.taps.Load(); len(taps) == 1 && taps[0] == t || h.sort(t, i, taps, bufs[:n], sizes, eps) {
			return n, nil
		}
	}
}

// sort leaves to t what is its own, moves the rest into the queues of the
// others, and reports whether anything is left.
func (h *hub) sort(t *tap, i int, taps []*tap, bufs [][]byte, sizes []int, eps []conn.Endpoint) bool {
	mine := false
	var last uint32 // receiver index of the datagram before
	var owner *bind // and whose it was; nil: unknown
	for n, b := range bufs {
		b = b[:sizes[n]]
		var to *tap
		if isInitiation(b) {
			to = tapOfInitiation(taps, b)
		} else if index, ok := receiverIndex(b); ok {
			if owner == nil || index != last {
				owner, last = h.indices.owner(index), index
			}
			to = tapOf(taps, owner)
		}
		if to == t {
			mine = true
			continue
		}
		sizes[n] = 0
		if to != nil {
			h.pack(to.queues[i], b, eps[n].(*endpoint))
		}
	}
	return mine
}

// tapOf finds the open tap of b.
func tapOf(taps []*tap, b *bind) *tap {
	for _, t := range taps {
		if t.bind == b {
			return t
		}
	}
	return nil
}

// tapOfInitiation finds whose key made the mac1 of an initiation.
func tapOfInitiation(taps []*tap, initiation []byte) *tap {
	for _, t := range taps {
		if key := t.bind.mac1.Load(); key != nil && key.made(initiation) {
			return t
		}
	}
	return nil
}

// pack puts a copy of data into queue, if there is room.
func (h *hub) pack(queue chan parcel, data []byte, from *endpoint) {
	if len(queue) == cap(queue) {
		return // UDP: who cannot keep up loses
	}
	var b []byte
	if len(data) <= parcelSize {
		b = h.parcels.Get().(*[parcelSize]byte)[:len(data)]
	} else {
		b = make([]byte, len(data))
	}
	copy(b, data)
	queue <- parcel{b, from} // never blocks: only the leader puts in
}

// unpack lays p and what else is in queue into bufs.
func (h *hub) unpack(p parcel, queue chan parcel, bufs [][]byte, sizes []int, eps []conn.Endpoint) int {
	for n := 0; ; {
		sizes[n], eps[n] = copy(bufs[n], p.data), p.from
		if cap(p.data) == parcelSize {
			h.parcels.Put((*[parcelSize]byte)(p.data[:parcelSize]))
		}
		if n++; n == len(bufs) {
			return n
		}
		select {
		case p = <-queue:
		default:
			return n
		}
	}
}

// complain logs what the network did to us, but not as often as it does it.
func (h *hub) complain(what string, remote netip.AddrPort, err error) {
	if h.limit.Allow() {
		h.log.Warn("udp socket refuses", event.KeyEvent, what, event.KeyRemote, remote.String(), event.KeyErr, err)
	}
}

// The four messages of WireGuard begin with their type in 32 bits, little
// endian (WireGuard paper, section 5.4).

// isInitiation reports whether b has the form of a handshake initiation.
func isInitiation(b []byte) bool {
	return len(b) == device.MessageInitiationSize && binary.LittleEndian.Uint32(b) == device.MessageInitiationType
}

// isResponse reports whether b has the form of a handshake response.
func isResponse(b []byte) bool {
	return len(b) == device.MessageResponseSize && binary.LittleEndian.Uint32(b) == device.MessageResponseType
}

// senderIndex is the index that the sender of a handshake message wants to be
// spoken to by.
func senderIndex(handshake []byte) uint32 { return binary.LittleEndian.Uint32(handshake[4:]) }

// receiverIndex is the index by which a message names its receiver.
func receiverIndex(b []byte) (uint32, bool) {
	if len(b) < device.MinMessageSize {
		return 0, false
	}
	switch binary.LittleEndian.Uint32(b) {
	case device.MessageResponseType:
		return binary.LittleEndian.Uint32(b[8:]), len(b) == device.MessageResponseSize
	case device.MessageCookieReplyType:
		return binary.LittleEndian.Uint32(b[4:]), len(b) == device.MessageCookieReplySize
	case device.MessageTransportType:
		return binary.LittleEndian.Uint32(b[device.MessageTransportOffsetReceiver:]), true
	}
	return 0, false
}
