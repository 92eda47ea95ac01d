package main

import (
	"context"
	"time"

	"tunneld/internal/netlab"
	"tunneld/internal/netlab/crowd"
)

// parkDelay is how long a gateway keeps a suspended connection at work, and a
// little more.
const parkDelay = 35 * time.Second

// memory takes what a gateway holds for each node: while all are connected, when
// all have been suspended for a while, and when it was started with all of them
// suspended. What it maps of files does not count: its journal, and the memory
// file of the data plane, which is shared with the next process.
func (b *bench) memory(ctx context.Context, lab *netlab.Lab, bin netlab.Binaries, r *report) error {
	b.say("memory: %d nodes get their certificates", b.nodes)
	s, err := newStage(ctx, lab, bin, b.nodes)
	if err != nil {
		return err
	}
	defer s.close()
	all := crowd.Batch{From: 0, To: b.nodes, Workers: crowdWorkers}
	if _, err := s.restarted(ctx); err != nil {
		return err
	}
	empty, err := s.settled(ctx, b.quiet)
	if err != nil {
		return err
	}
	if _, err := s.do("Connect", all); err != nil {
		return err
	}
	connected, err := s.settled(ctx, b.quiet)
	if err != nil {
		return err
	}
	if _, err := s.do("Cut", all); err != nil {
		return err
	}
	if err := wait(ctx, parkDelay); err != nil {
		return err
	}
	parked, err := s.settled(ctx, b.quiet)
	if err != nil {
		return err
	}
	r.own("memory, each connected node", "KiB", b.perNode(connected, empty))
	r.own("memory, each suspended session", "KiB", b.perNode(parked, empty))
	b.say("memory: gateway alone %.1f MiB, with %d nodes connected %.1f MiB, suspended %.1f MiB", empty, b.nodes, connected, parked)
	return b.restored(ctx, s, empty, r)
}

// restored measures a gateway that was started with every session suspended.
func (b *bench) restored(ctx context.Context, s *stage, empty float64, r *report) error {
	if _, err := s.restarted(ctx); err != nil {
		return err
	}
	held, err := s.settled(ctx, b.quiet)
	if err != nil {
		return err
	}
	r.own("memory, each suspended session after a restart", "KiB", b.perNode(held, empty))
	b.say("memory: gateway alone %.1f MiB, restarted with %d suspended sessions %.1f MiB", empty, b.nodes, held)
	return nil
}

// perNode is in KiB what of so many MiB each node takes.
func (b *bench) perNode(held, empty float64) float64 {
	return (held - empty) * 1024 / float64(b.nodes)
}

// wait waits for d, or the end of ctx.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
