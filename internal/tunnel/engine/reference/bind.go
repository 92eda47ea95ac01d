package reference

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"tunneld/internal/tunnel/engine/udp"
)

// A bind is one device's share of the hub: what wireguard-go takes for a
// socket of its own.
type bind struct {
	hub  *hub
	mac1 atomic.Pointer[mac1Key] // of the device's public key; nil: it has none yet
	// mayShake decides whether a handshake message may leave.
	mayShake func(message []byte) bool

	mu  sync.Mutex // guards everything below
	tap *tap       // nil: not open
}

var _ conn.Bind = (*bind)(nil)

// Open starts receiving. The port is the engine's, whatever is asked for.
func (b *bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tap != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	b.tap = b.hub.open(b)
	var fns []conn.ReceiveFunc
	for i := range b.hub.sockets {
		fns = append(fns, b.hub.receiver(b.tap, i))
	}
	return fns, b.hub.sockets[0].Local.Port(), nil
}

// Close ends receiving for this device; the sockets stay.
func (b *bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tap != nil {
		b.hub.close(b.tap)
		b.tap = nil
	}
	return nil
}

// Send sends bufs, and drops what cannot be sent now: it never waits longer
// than sendPatience, and an address that cannot be reached is no error, since
// wireguard-go would only log it and the peer may be back at any moment.
func (b *bind) Send(bufs [][]byte, to conn.Endpoint) error {
	e, ok := to.(*endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	if len(bufs) == 1 && !b.mayLeave(bufs[0]) {
		return nil
	}
	s := b.hub.socketFor(e.Dst.Addr())
	if !e.Dst.IsValid() || s == nil {
		return nil
	}
	err := s.send(bufs, e, b.hub.path.Load())
	switch {
	case errors.Is(err, net.ErrClosed):
		return net.ErrClosed
	case err != nil && !udp.IsPathError(err) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS):
		b.hub.complain("send", e.Dst, err)
	}
	return nil
}

// mayLeave learns the index in an outgoing handshake message, and holds back
// those to a closed session and an initiation to a peer that starts every
// handshake itself. wireguard-go
// makes one when it has data for a peer but no keypair, and at its own timers;
// both ends starting at once costs 5 s (their answers cross, and each refuses
// the other's). To wireguard-go one held back is one lost: it tries again every
// 5 s, up to 90 s, and meanwhile answers the peer's as ever. Handshake messages
// are always sent alone.
func (b *bind) mayLeave(message []byte) bool {
	if !isInitiation(message) && !isResponse(message) {
		return true
	}
	if !b.mayShake(message) {
		return false
	}
	b.hub.indices.learn(senderIndex(message), b)
	return true
}

// ParseEndpoint reads ADDR:PORT. The empty string is nowhere: what is sent
// there is dropped, until a packet of the peer says where it is.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	if s == "" {
		return newEndpoint(netip.AddrPort{}), nil
	}
	dst, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return newEndpoint(udp.Canonical(dst)), nil
}

// SetMark does nothing: the mark is the engine's, set before the first packet.
func (b *bind) SetMark(uint32) error { return nil }

// BatchSize is how many datagrams are handed over at once.
func (b *bind) BatchSize() int { return batchSize }
