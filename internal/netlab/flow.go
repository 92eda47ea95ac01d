package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	flowTick = time.Millisecond      // how often a flow sends what is due
	flowPoll = 10 * time.Millisecond // how often what came is looked at
)

// A Flow is numbered datagrams from one host to another, so many a second.
// Methods may be called from any goroutine.
type Flow struct {
	in, out *net.UDPConn
	wg      sync.WaitGroup
	stop    chan struct{}
	once    sync.Once

	// mu guards everything below.
	mu   sync.Mutex
	seen []bool // by number
}

// Flow starts a flow from the host to an address of another, which has room for
// all that comes at once after a pause.
func (h *Host) Flow(to *Host, addr netip.AddrPort, perSecond int) (*Flow, error) {
	in, err := to.ListenUDP(addr.String())
	if err != nil {
		return nil, err
	}
	out, err := h.dial(addr)
	if err == nil {
		err = roomy(in)
	}
	if err != nil {
		in.Close()
		return nil, err
	}
	f := &Flow{in: in, out: out, stop: make(chan struct{})}
	f.wg.Go(func() { f.send(perSecond) })
	f.wg.Go(f.receive)
	h.lab.add(f)
	return f, nil
}

func (h *Host) dial(to netip.AddrPort) (c *net.UDPConn, err error) {
	err = h.Do(func() error {
		c, err = net.DialUDP(family("udp", to.Addr()), nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	return c, err
}

// roomy gives a socket a queue that outlasts a restart.
func roomy(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20) })
	return errors.Join(err, set)
}

// Close ends the flow.
func (f *Flow) Close() error {
	f.once.Do(func() {
		close(f.stop)
		f.in.Close()
		f.out.Close()
		f.wg.Wait()
	})
	return nil
}

func (f *Flow) send(perSecond int) {
	tick := time.NewTicker(flowTick)
	defer tick.Stop()
	b := make([]byte, probeSize)
	for start := time.Now(); ; {
		select {
		case <-tick.C:
		case <-f.stop:
			return
		}
		due := int(time.Since(start).Seconds() * float64(perSecond))
		f.mu.Lock()
		first := len(f.seen)
		f.seen = append(f.seen, make([]bool, max(0, due-first))...)
		f.mu.Unlock()
		for n := first; n < due; n++ {
			binary.BigEndian.PutUint64(b, uint64(n))
			f.out.Write(b) // what cannot be sent is lost
		}
	}
}

func (f *Flow) receive() {
	b := make([]byte, maxFrame)
	for {
		n, err := f.in.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n != probeSize {
			continue
		}
		number := binary.BigEndian.Uint64(b)
		f.mu.Lock()
		if number < uint64(len(f.seen)) {
			f.seen[number] = true
		}
		f.mu.Unlock()
	}
}

// Sent is how many datagrams have been sent.
func (f *Flow) Sent() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.seen)
}

// Await waits until a datagram that is sent from now on has come.
func (f *Flow) Await(ctx context.Context) error {
	next := f.Sent()
	err := Poll(ctx, flowPoll, func() (bool, error) {
		end := f.Sent()
		return f.missing(next, end) < end-next, nil
	})
	if err != nil {
		return fmt.Errorf("nothing comes of what was sent after %d datagrams: %w", next, err)
	}
	return nil
}

// Since is how many datagrams were sent from number first on until now, and how
// many of them have not come when within has passed.
func (f *Flow) Since(ctx context.Context, first int, within time.Duration) (sent, lost int) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	end := f.Sent()
	Poll(ctx, flowPoll, func() (bool, error) { // until then what is missing may be under way
		lost = f.missing(first, end)
		return lost == 0, nil
	})
	return end - first, lost
}

// missing is how many from number first to before number end have not come.
func (f *Flow) missing(first, end int) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, came := range f.seen[first:end] {
		if !came {
			n++
		}
	}
	return n
}
