// Package crowd is many nodes in one process, to load a gateway's control plane:
// real carriers, real control machines and real certificates, but no journal, no
// host and no data plane. Each node has a loopback address of its own, since a
// gateway bounds what one address may do.
package crowd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Crowd is the nodes. Its exported methods are called with net/rpc, from a
// process in another namespace; see [Serve].
type Crowd struct {
	ctx     context.Context
	gateway string // HOST:PORT
	wg      sync.WaitGroup
	connIDs atomic.Uint32
	nodes   []*node // Join alone appends, while nothing else runs
}

// Batch is some of the nodes and how many of them act at once.
type Batch struct{ From, To, Workers int }

// Took is how long a batch took, and what went wrong on the way.
type Took struct {
	Seconds float64
	Retries int // dials that failed and were made again
	Lost    int // sessions that did not outlive it
}

// Serve answers calls on a Unix socket until the peer of its one connection
// hangs up or ctx ends; then every node is gone.
func Serve(ctx context.Context, socket, gateway string) error {
	ctx, cancel := context.WithCancel(ctx)
	c := &Crowd{ctx: ctx, gateway: gateway}
	defer c.wg.Wait()
	defer cancel()
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer os.Remove(socket)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	conn, err := l.Accept()
	l.Close()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	s := rpc.NewServer()
	if err := s.Register(c); err != nil {
		return err
	}
	s.ServeConn(conn)
	return nil
}

// each calls fn for every node of a batch, several at once, and returns when all
// are done, with the first error of each worker.
func (c *Crowd) each(b Batch, fn func(context.Context, *node) error) error {
	if b.From < 0 || b.To > len(c.nodes) || b.From > b.To {
		return fmt.Errorf("nodes %d to %d of %d", b.From, b.To, len(c.nodes))
	}
	var next atomic.Int64
	next.Store(int64(b.From))
	errs := make([]error, max(1, b.Workers))
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			for {
				at := int(next.Add(1)) - 1
				if at >= b.To || c.ctx.Err() != nil {
					return
				}
				if err := fn(c.ctx, c.nodes[at]); err != nil {
					errs[i] = fmt.Errorf("node %d: %w", at, err)
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, context.Cause(c.ctx))...)
}

// timed is each with its duration.
func (c *Crowd) timed(b Batch, took *Took, fn func(context.Context, *node) error) error {
	start := time.Now()
	err := c.each(b, fn)
	took.Seconds = time.Since(start).Seconds()
	return err
}

// Connect gives each node of the batch a new control connection with one
// session, established at both ends.
func (c *Crowd) Connect(b Batch, took *Took) error {
	return c.timed(b, took, func(ctx context.Context, n *node) error { return n.connect(ctx) })
}

// Cut ends the transports of the batch; the nodes are suspended then.
func (c *Crowd) Cut(b Batch, took *Took) error {
	return c.timed(b, took, func(ctx context.Context, n *node) error { return n.cut(ctx) })
}

// Resume gives each suspended node of the batch a new transport, on which it
// goes on with its session.
func (c *Crowd) Resume(b Batch, took *Took) error {
	return c.timed(b, took, func(ctx context.Context, n *node) error { return n.connect(ctx) })
}

// Stop ends the control connections of the batch for good.
func (c *Crowd) Stop(b Batch, took *Took) error {
	return c.timed(b, took, func(ctx context.Context, n *node) error { return n.stop(ctx) })
}

// Keep has each connected node of the batch, from now on, go on by itself after
// the loss of its transport, with the back-off that a daemon has. What Back says
// counts from here.
func (c *Crowd) Keep(b Batch, _ *struct{}) error {
	return c.each(b, func(ctx context.Context, n *node) error {
		n.change(func(s *state) { s.drops, s.retries, s.ended = 0, 0, 0 })
		c.wg.Go(func() { n.keep(ctx) })
		return nil
	})
}

// Back waits until every node of the batch has lost the transport it had when
// Keep was called, and is established again.
func (c *Crowd) Back(b Batch, took *Took) error {
	b.Workers = 1
	return c.timed(b, took, func(ctx context.Context, n *node) error {
		err := n.await(ctx, nil, func(s state) bool { return s.drops > 0 && hasSession(s) })
		s, _ := n.look()
		took.Retries += s.retries
		took.Lost += s.ended
		return err
	})
}

// LogIn is how long one new node takes to its session, with the back-off that a
// daemon has.
func (c *Crowd) LogIn(at int, took *Took) error {
	return c.timed(Batch{at, at + 1, 1}, took, func(ctx context.Context, n *node) error {
		err := n.persist(ctx)
		s, _ := n.look()
		took.Retries = s.retries
		return err
	})
}
