package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

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
			s.send(burst)
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
	tries      = 2    // at a rate: half a second in which the machine did something else tells nothing of it
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

// passes reports whether enough arrives at a rate.
func (s *stream) passes(ctx context.Context, rate float64, length time.Duration) bool {
	for range tries {
		if s.try(ctx, rate, length) {
			return true
		}
	}
	return false
}

// try sends at a rate and reports whether enough arrived.
func (s *stream) try(ctx context.Context, rate float64, length time.Duration) bool {
	before := s.received.Load()
	start, sent := time.Now(), 0
	pause := unix.NsecToTimespec(int64(pacePause))
	for time.Since(start) < length && ctx.Err() == nil {
		for due := int(time.Since(start).Seconds() * rate); sent < due; {
			n := min(due-sent, burst)
			s.send(n)
			sent += n
		}
		unix.Nanosleep(&pause, nil)
	}
	took := time.Since(start)
	time.Sleep(drainPause)
	arrived := float64(s.received.Load() - before)
	return ctx.Err() == nil && float64(sent) >= keptUp*rate*took.Seconds() && arrived >= (1-lossLimit)*float64(sent)
}
