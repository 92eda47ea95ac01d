package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// probeSize is the UDP payload of a probe: a number and padding.
const probeSize = 64

// echo answers each datagram with itself.
type echo struct {
	conn *net.UDPConn
	wg   sync.WaitGroup
}

// Echo answers UDP datagrams to addr on the host until the laboratory closes.
// With port 0 it chooses one. It returns the address it listens at.
func (h *Host) Echo(addr string) (netip.AddrPort, error) {
	conn, err := h.ListenUDP(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	e := &echo{conn: conn}
	e.wg.Go(e.serve)
	h.lab.add(e)
	return conn.LocalAddr().(*net.UDPAddr).AddrPort(), nil
}

func (e *echo) serve() {
	buf := make([]byte, maxFrame)
	for {
		n, from, err := e.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			e.conn.WriteToUDPAddrPort(buf[:n], from) // an answer that cannot leave is a lost one
		}
	}
}

func (e *echo) Close() error {
	err := e.conn.Close()
	e.wg.Wait()
	return err
}

// ListenUDP opens a UDP socket on the host, at ADDR:PORT. It is the caller's.
func (h *Host) ListenUDP(addr string) (conn *net.UDPConn, err error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("host %s: listen: %w", h.name, err)
	}
	err = h.Do(func() error {
		conn, err = net.ListenUDP(family("udp", ap.Addr()), net.UDPAddrFromAddrPort(ap))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.name, err)
	}
	return conn, nil
}

// family returns the Go network for an address, so that no socket takes both.
func family(network string, a netip.Addr) string {
	if a.Is4() {
		return network + "4"
	}
	return network + "6"
}

// Probe sends a numbered datagram at a fixed interval to an echo and notes
// when each comes back. Methods may be called from any goroutine.
type Probe struct {
	conn  *net.UDPConn
	to    netip.AddrPort
	every time.Duration
	start time.Time
	wg    sync.WaitGroup
	stop  chan struct{}
	once  sync.Once

	// mu guards everything below. Instants are since start.
	mu       sync.Mutex
	answered []time.Duration // by number; negative: not yet
	answers  []time.Duration // of all that came, in order
	changed  chan struct{}   // closed and replaced at each answer
}

// Probe starts probing an echo from the host. The socket is not bound to an
// address: each datagram takes the route and the source of its moment.
func (h *Host) Probe(to netip.AddrPort, every time.Duration) (*Probe, error) {
	any := "0.0.0.0:0"
	if to.Addr().Is6() {
		any = "[::]:0"
	}
	conn, err := h.ListenUDP(any)
	if err != nil {
		return nil, err
	}
	p := &Probe{conn: conn, to: to, every: every, start: time.Now(), stop: make(chan struct{}), changed: make(chan struct{})}
	p.wg.Go(p.send)
	p.wg.Go(p.receive)
	h.lab.add(p)
	return p, nil
}

// Close ends the probe. What was measured can still be asked for.
func (p *Probe) Close() error {
	p.once.Do(func() {
		close(p.stop)
		p.conn.Close()
		p.wg.Wait()
	})
	return nil
}

func (p *Probe) send() {
	msg := make([]byte, probeSize)
	for n := 0; ; n++ {
		select {
		case <-time.After(time.Until(p.start.Add(time.Duration(n) * p.every))):
		case <-p.stop:
			return
		}
		p.mu.Lock()
		p.answered = append(p.answered, -1)
		p.mu.Unlock()
		binary.BigEndian.PutUint64(msg, uint64(n))
		p.conn.WriteToUDPAddrPort(msg, p.to) // what cannot be sent is not answered: lost
	}
}

func (p *Probe) receive() {
	buf := make([]byte, maxFrame)
	for {
		n, _, err := p.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && n == probeSize {
			p.note(binary.BigEndian.Uint64(buf), time.Since(p.start))
		}
	}
}

func (p *Probe) note(n uint64, at time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n >= uint64(len(p.answered)) || p.answered[n] >= 0 { // not ours, or a duplicate
		return
	}
	p.answered[n] = at
	p.answers = append(p.answers, at)
	close(p.changed)
	p.changed = make(chan struct{})
}

// Mark is an instant of a probe.
type Mark struct {
	sent int
	at   time.Duration
}

// Mark returns the present instant.
func (p *Probe) Mark() Mark {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Mark{sent: len(p.answered), at: time.Since(p.start)}
}

// Stats of a probe between two marks.
type Stats struct {
	Sent, Lost int
	// LongestGap is the longest time between two answers, one after the other,
	// that touches the span; without loss or delay it is the interval.
	LongestGap time.Duration
}

// Between returns what happened to the datagrams sent between two marks. Those
// that may still be answered count as lost: see [Probe.Settle].
func (p *Probe) Between(from, to Mark) Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Stats{Sent: to.sent - from.sent}
	for _, at := range p.answered[from.sent:to.sent] {
		if at < 0 {
			s.Lost++
		}
	}
	s.LongestGap = longestGap(p.answers, from.at, to.at)
	return s
}

// longestGap looks at the ordered answers that border on or lie in a span. A
// span that ends in silence counts as if an answer had come at its end.
func longestGap(answers []time.Duration, from, to time.Duration) (longest time.Duration) {
	i, _ := slices.BinarySearch(answers, from)
	last := from // none before: count from the beginning of the span
	if i > 0 {
		last = answers[i-1]
	}
	for ; i < len(answers) && last < to; i++ {
		longest = max(longest, answers[i]-last)
		last = answers[i]
	}
	if last < to {
		longest = max(longest, to-last)
	}
	return longest
}

// WaitAnswer waits for the answer to a datagram sent after the mark and
// returns how long after the mark it came.
func (p *Probe) WaitAnswer(ctx context.Context, after Mark) (time.Duration, error) {
	for {
		p.mu.Lock()
		changed := p.changed
		first := time.Duration(-1)
		for _, at := range p.answered[min(after.sent, len(p.answered)):] {
			if at >= 0 && (first < 0 || at < first) {
				first = at
			}
		}
		p.mu.Unlock()
		if first >= 0 {
			return first - after.at, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, fmt.Errorf("no answer from %v: %w", p.to, context.Cause(ctx))
		}
	}
}

// Settle waits until everything sent between two marks is answered, or within
// has passed since the later one.
func (p *Probe) Settle(ctx context.Context, from, to Mark, within time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, within-time.Since(p.start)+to.at)
	defer cancel()
	for {
		p.mu.Lock()
		changed := p.changed
		missing := slices.ContainsFunc(p.answered[from.sent:to.sent], func(at time.Duration) bool { return at < 0 })
		p.mu.Unlock()
		if !missing {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Since marks the present, waits as [Probe.Settle] does for what is under way
// and returns what happened since the earlier mark.
func (p *Probe) Since(ctx context.Context, from Mark, within time.Duration) Stats {
	to := p.Mark()
	p.Settle(ctx, from, to, within)
	return p.Between(from, to)
}
