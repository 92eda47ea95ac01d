package main

import (
	"context"
	"fmt"
	"math"
	"net/rpc"
	"os"
	"path/filepath"
	"time"

	"tunneld/internal/netlab"
	"tunneld/internal/netlab/crowd"
)

// The gateway and the nodes of the control plane's figures are on one host, on
// loopback: nothing but the two processes is measured.
const (
	crowdGateway = "127.0.0.1:443"
	crowdWorkers = 32 // nodes that act at once
)

// A stage is a gateway and a crowd of nodes.
type stage struct {
	host    *netlab.Host
	gateway *netlab.Daemon
	crowd   *netlab.Process
	client  *rpc.Client
}

// newStage makes a gateway and a crowd of so many nodes, which have their
// certificates and are not connected.
func newStage(ctx context.Context, lab *netlab.Lab, bin netlab.Binaries, nodes int) (*stage, error) {
	host, err := lab.Host("crowd")
	if err != nil {
		return nil, err
	}
	s := &stage{host: host, gateway: host.Daemon(bin, "gateway")}
	start, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	if err := s.gateway.Init(start, "--name", "gateway", "--public", crowdGateway, "--network", ourTunnel+"=10.64.0.0/14"); err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(lab.Dir(), "crowd.sock")
	if s.crowd, err = host.Start("nodes", program, "crowd", socket, crowdGateway); err != nil {
		return nil, err
	}
	err = netlab.Poll(start, 10*time.Millisecond, func() (bool, error) {
		s.client, err = rpc.Dial("unix", socket)
		return err == nil, nil
	})
	if err != nil {
		return nil, err
	}
	var total int
	return s, s.client.Call("Crowd.Join", crowd.Recruits{Socket: filepath.Join(s.gateway.Dir(), "tunneld.sock"), Nodes: nodes}, &total)
}

// start starts the gateway.
func (s *stage) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	if err := s.gateway.Start(); err != nil {
		return err
	}
	return s.gateway.WaitReady(ctx)
}

// close lets the nodes go.
func (s *stage) close() {
	s.client.Close()
	<-s.crowd.Done()
}

// A cost is what one batch took.
type cost struct {
	crowd.Took
	rate float64 // nodes a second
	cpu  float64 // seconds of processor time a node, both ends together
}

// do has a batch of nodes do something.
func (s *stage) do(what string, b crowd.Batch) (c cost, err error) {
	before, err := s.cpu()
	if err != nil {
		return c, err
	}
	if err := s.client.Call("Crowd."+what, b, &c.Took); err != nil {
		return c, fmt.Errorf("%s of nodes %d to %d: %w", what, b.From, b.To, err)
	}
	after, err := s.cpu()
	n := float64(b.To - b.From)
	c.rate, c.cpu = n/c.Seconds, (after-before)/n
	return c, err
}

// cpu is what both ends have used, in seconds.
func (s *stage) cpu() (float64, error) {
	return subject{processes: []*proc{s.gateway.Process(), s.crowd}}.cpu()
}

// control takes the figures of the control plane: set-ups and resumes beside
// bare TLS handshakes, memory, and the storm.
func (b *bench) control(ctx context.Context, lab *netlab.Lab, bin netlab.Binaries, r *report) error {
	b.say("control: %d nodes get their certificates", b.nodes+1)
	s, err := newStage(ctx, lab, bin, b.nodes+1)
	if err != nil {
		return err
	}
	defer s.close()
	for round := range b.rounds {
		if err := b.setUpRound(s, round, r); err != nil {
			return err
		}
	}
	return b.storm(ctx, s, r)
}

// setUpRound takes the rates of one round, each of the same number of nodes.
func (b *bench) setUpRound(s *stage, round int, r *report) error {
	batch := crowd.Batch{From: 0, To: min(b.nodes, 1000), Workers: crowdWorkers}
	bare, err := s.do("Handshakes", batch)
	if err != nil {
		return err
	}
	connect, err := s.do("Connect", batch)
	if err != nil {
		return err
	}
	if _, err := s.do("Cut", batch); err != nil {
		return err
	}
	resume, err := s.do("Resume", batch)
	if err != nil {
		return err
	}
	if _, err := s.do("Stop", batch); err != nil {
		return err
	}
	r.own("bare TLS handshakes", "a second", bare.rate)
	r.own("bare TLS handshake, CPU", "ms", bare.cpu*1e3)
	for _, of := range []struct {
		name string
		cost
	}{{"set-up", connect}, {"resume", resume}} {
		r.own(of.name+"s", "a second", of.rate)
		r.own(of.name+", CPU", "ms", of.cpu*1e3)
		r.own(of.name+" / bare handshake, CPU", "ratio", of.cpu/bare.cpu)
		b.say("round %d/%d  %ss %.0f a second, %.2f ms of CPU; bare handshakes %.0f, %.2f ms", round+1, b.rounds, of.name, of.rate, of.cpu*1e3, bare.rate, bare.cpu*1e3)
	}
	return nil
}

// storm measures what the gateway holds, alone, with all nodes suspended and
// with all connected, and then kills it under them.
func (b *bench) storm(ctx context.Context, s *stage, r *report) error {
	all := crowd.Batch{From: 0, To: b.nodes, Workers: crowdWorkers}
	empty, err := s.restarted(ctx)
	if err != nil {
		return err
	}
	if _, err := s.do("Connect", all); err != nil {
		return err
	}
	steady, err := s.settled(ctx, b.quiet)
	if err != nil {
		return err
	}
	r.own("memory, each connected node", "KiB", b.perNode(steady, empty))
	if err := s.client.Call("Crowd.Keep", all, &struct{}{}); err != nil {
		return err
	}
	if err := s.gateway.Process().Kill9(); err != nil {
		return err
	}
	killed := time.Now()
	if err := s.start(ctx); err != nil {
		return err
	}
	restored := time.Since(killed)
	var newcomer crowd.Took
	in := s.client.Go("Crowd.LogIn", b.nodes, &newcomer, nil)
	back, err := s.do("Back", all)
	if err != nil {
		return err
	}
	took := time.Since(killed)
	if call := <-in.Done; call.Error != nil {
		return call.Error
	}
	peak, err := peakMiB(s.gateway.Process())
	if err != nil {
		return err
	}
	r.own("storm: nodes", "", float64(b.nodes))
	r.own("storm: gateway ready after", "s", restored.Seconds())
	r.own("storm: all back after", "s", took.Seconds())
	r.own("storm: sessions lost", "", float64(back.Lost))
	r.own("storm: dials refused, each node", "", float64(back.Retries)/float64(b.nodes))
	r.own("storm: a new log-in meanwhile", "s", newcomer.Seconds)
	r.own("storm: peak memory / steady", "ratio", peak/steady)
	b.say("storm of %d nodes: gateway ready after %.1f s, all back after %.1f s, %d sessions lost, %d dials refused, a new log-in took %.1f s, memory %.0f MiB, peak %.0f MiB",
		b.nodes, restored.Seconds(), took.Seconds(), back.Lost, back.Retries, newcomer.Seconds, steady, peak)
	s.close()
	return b.restored(ctx, s, empty, r)
}

// settled is what the gateway holds when so many looks, a second apart, have found
// the same: a daemon gives back what many handshakes have left behind some time after the last.
func (s *stage) settled(ctx context.Context, looks int) (held float64, err error) {
	const look = time.Second
	for same := 0; same < looks; same++ {
		before := held
		if held, err = heldMiB(s.gateway.Process()); err != nil {
			return 0, err
		}
		if math.Abs(held-before) > before/50 {
			same = 0
		}
		if err := wait(ctx, look); err != nil {
			return 0, err
		}
	}
	return held, nil
}

// restarted starts the gateway anew and says what it holds then.
func (s *stage) restarted(ctx context.Context) (float64, error) {
	if err := s.gateway.Process().Stop(); err != nil {
		return 0, err
	}
	if err := s.start(ctx); err != nil {
		return 0, err
	}
	return heldMiB(s.gateway.Process())
}
