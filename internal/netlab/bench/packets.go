package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

// A stream is UDP packets from the left host to the right one.
type stream struct {
	in, out  *net.UDPConn
	to       netip.AddrPort
	payload  []byte
	received atomic.Int64
	counted  chan struct{} // closed when nobody counts any more
}

// stream opens the sockets of packets with so many octets of payload, and counts
// what arrives.
func (p *pair) stream(address string, size int) (*stream, error) {
	to, err := netip.ParseAddr(address)
	if err != nil {
		return nil, err
	}
	in, err := p.listen(floodPort)
	if err != nil {
		return nil, err
	}
	in.SetReadBuffer(4 << 20) // as much as the kernel gives
	out, err := p.sender()
	if err != nil {
		in.Close()
		return nil, err
	}
	s := &stream{in: in, out: out, to: netip.AddrPortFrom(to, floodPort), payload: make([]byte, size), counted: make(chan struct{})}
	go func() {
		defer close(s.counted)
		buf := make([]byte, 2*size)
		for {
			if _, _, err := in.ReadFromUDPAddrPort(buf); err != nil {
				return
			}
			s.received.Add(1)
		}
	}()
	return s, nil
}

func (s *stream) close() {
	s.out.Close()
	s.in.Close()
	<-s.counted
}

func (s *stream) send() { s.out.WriteToUDPAddrPort(s.payload, s.to) } // a full queue drops, as it may

// floodOf sends packets as fast as one thread can; the figure is how many a second
// arrive.
func floodOf(size int) func(context.Context, *pair, subject, time.Duration) ([]float64, error) {
	return func(ctx context.Context, p *pair, subject subject, length time.Duration) ([]float64, error) {
		s, err := p.stream(subject.address, size)
		if err != nil {
			return nil, err
		}
		defer s.close()
		start := time.Now()
		for time.Since(start) < length && ctx.Err() == nil {
			for range 64 { // between two looks at the clock
				s.send()
			}
		}
		n, took := s.received.Load(), time.Since(start)
		if n == 0 {
			return nil, fmt.Errorf("no packet arrived at %s in %v", subject.address, took)
		}
		return []float64{float64(n) / took.Seconds()}, ctx.Err()
	}
}

// What a paced stream is tried with.
const (
	firstRate  = 2000 // packets a second
	lossLimit  = 0.01
	keptUp     = 0.97 // of the rate: below that it was the sender's limit
	rateSteps  = 4    // of a bisection: a sixteenth of what was doubled last
	pacePause  = 100 * time.Microsecond
	drainPause = 50 * time.Millisecond // for what is under way
)

// pacedOf is the highest rate at which at most one packet of a hundred is lost:
// it is doubled until more are, and then bisected.
func pacedOf(size int) func(context.Context, *pair, subject, time.Duration) ([]float64, error) {
	return func(ctx context.Context, p *pair, subject subject, length time.Duration) ([]float64, error) {
		s, err := p.stream(subject.address, size)
		if err != nil {
			return nil, err
		}
		defer s.close()
		good, bad := 0.0, firstRate*1.0
		for ; s.passes(ctx, bad, length/4); bad *= 2 {
			good = bad
		}
		for range rateSteps {
			if middle := (good + bad) / 2; s.passes(ctx, middle, length/4) {
				good = middle
			} else {
				bad = middle
			}
		}
		if good == 0 {
			return nil, fmt.Errorf("not even %.0f packets a second arrive at %s", bad, subject.address)
		}
		return []float64{good}, ctx.Err()
	}
}

// passes sends at a rate and reports whether enough arrived.
func (s *stream) passes(ctx context.Context, rate float64, length time.Duration) bool {
	before := s.received.Load()
	start, sent := time.Now(), 0
	for time.Since(start) < length && ctx.Err() == nil {
		for due := int(time.Since(start).Seconds() * rate); sent < due; sent++ {
			s.send()
		}
		time.Sleep(pacePause)
	}
	took := time.Since(start)
	time.Sleep(drainPause)
	arrived := float64(s.received.Load() - before)
	return ctx.Err() == nil && float64(sent) >= keptUp*rate*took.Seconds() && arrived >= (1-lossLimit)*float64(sent)
}

// idlePing is the median round trip of small packets, one at a time, in ms.
func idlePing(ctx context.Context, p *pair, s subject, _ time.Duration) ([]float64, error) {
	const probes = 300
	trips, err := p.ping(ctx, s.address, func(n int) bool { return n < probes })
	if err != nil {
		return nil, err
	}
	return []float64{trips[len(trips)/2]}, nil
}

// loadedPing is the median and the 99th percentile of round trips beside a TCP
// stream the same way.
func loadedPing(ctx context.Context, p *pair, s subject, length time.Duration) ([]float64, error) {
	const rampUp = 500 * time.Millisecond
	load := make(chan error, 1)
	go func() {
		_, err := p.tcp(ctx, s.address, 1, length+2*rampUp)
		load <- err
	}()
	time.Sleep(rampUp)
	start := time.Now()
	trips, err := p.ping(ctx, s.address, func(int) bool { return time.Since(start) < length })
	if err := errors.Join(err, <-load); err != nil {
		return nil, err
	}
	return []float64{trips[len(trips)/2], trips[len(trips)*99/100]}, nil
}

// ping sends small packets, one at a time, while more says so, and returns the
// round trips in ms, shortest first.
func (p *pair) ping(ctx context.Context, address string, more func(sent int) bool) (trips []float64, err error) {
	const pause, patience = 2 * time.Millisecond, time.Second
	to, err := netip.ParseAddr(address)
	if err != nil {
		return nil, err
	}
	conn, err := p.sender()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	buf := make([]byte, 2*probeSize)
	sent := 0
	for ; more(sent); sent++ {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		start := time.Now()
		if _, err := conn.WriteToUDPAddrPort(make([]byte, probeSize), netip.AddrPortFrom(to, echoPort)); err != nil {
			return nil, err
		}
		conn.SetReadDeadline(start.Add(patience))
		if _, _, err := conn.ReadFromUDPAddrPort(buf); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue // lost: not this figure's subject
			}
			return nil, err
		}
		trips = append(trips, float64(time.Since(start))/1e6)
		time.Sleep(pause)
	}
	if len(trips) < sent/2 || len(trips) == 0 {
		return nil, fmt.Errorf("%d of %d pings to %s were answered", len(trips), sent, address)
	}
	slices.Sort(trips)
	return trips, nil
}
