// Command bench compares our data plane with bare wireguard-go, side by side on
// this machine, and measures what is ours alone.
//
//	sudo make bench                       (BENCH_JSON=FILE for the figures)
//	bench [-rounds N] [-seconds S] [-nodes N] [data|restart|control|memory]
//
// Two hosts are joined by a veth pair. Between them run, at once, a gateway and
// a node of ours, and two processes of wireguard-go of the version that go.mod
// names, configured by wg. In each round every figure is taken of both, one
// right after the other, and the order changes from round to round: what else
// the machine does hits both. So the ratio of a round means something, its
// median over the rounds more, and an absolute figure nothing.
//
// What a restart loses is counted with both daemons as services of a real systemd
// and 10,000 packets a second flowing each way, from the top of the source tree.
//
// The control plane is measured by a crowd of nodes in one process (see package
// crowd) and a gateway on the same host, beside bare TLS handshakes. Its process
// is this program again, as `bench crowd SOCKET GATEWAY`.
//
// Exit status: 0 measured (whatever came out), 1 failed, 2 usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"tunneld/internal/netlab"
	"tunneld/internal/netlab/crowd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 3 && args[0] == "crowd" {
		return status(stderr, crowd.Serve(ctx, args[1], args[2]))
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	b := &bench{progress: stderr, quiet: 25}
	flags.IntVar(&b.rounds, "rounds", 7, "how often each figure is taken")
	seconds := flags.Float64("seconds", 2, "how long each throughput is measured")
	flags.IntVar(&b.nodes, "nodes", 5000, "how many nodes the gateway loses at once")
	if flags.Parse(args) != nil {
		return 2
	}
	parts := map[string][]part{
		"":        {(*bench).compare, (*bench).setUps, (*bench).restarts, (*bench).control},
		"data":    {(*bench).compare, (*bench).setUps},
		"restart": {(*bench).restarts},
		"control": {(*bench).control},
		"memory":  {(*bench).memory},
	}[flags.Arg(0)]
	if parts == nil || flags.NArg() > 1 || b.rounds < 1 || *seconds <= 0 || b.nodes < 1 {
		fmt.Fprintln(stderr, "bench: error: want data, restart, control, memory or nothing for the first three, at least one round and node, and more than 0 seconds")
		return 2
	}
	b.length = time.Duration(*seconds * float64(time.Second))
	r, err := b.measure(ctx, parts)
	if err == nil {
		err = r.print(stdout)
	}
	if file := os.Getenv("BENCH_JSON"); err == nil && file != "" {
		err = r.write(file)
	}
	return status(stderr, err)
}

// status is the exit status for err, which is shown.
func status(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "bench: error: %v\n", err)
	return 1
}

// A part takes some of the figures.
type part func(b *bench, ctx context.Context, lab *netlab.Lab, bin netlab.Binaries, r *report) error

type bench struct {
	rounds   int
	nodes    int           // of the crowd
	quiet    int           // seconds in which memory does not change before it counts
	length   time.Duration // of one measurement of throughput
	progress io.Writer
}

func (b *bench) say(format string, args ...any) { fmt.Fprintf(b.progress, format+"\n", args...) }

// measure builds the laboratory, takes the figures and takes it down again.
func (b *bench) measure(ctx context.Context, parts []part) (r *report, err error) {
	if err := netlab.Check(); err != nil {
		return nil, err
	}
	lab, err := netlab.New(netlab.Options{})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w\n%s", err, lab.LogTails(20))
		}
		err = errors.Join(err, lab.Close())
	}()
	bin, err := netlab.Build(ctx, lab.Dir())
	if err != nil {
		return nil, err
	}
	r = &report{Rounds: b.rounds}
	for _, take := range parts {
		if err := take(b, ctx, lab, bin, r); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// compare takes the figures that both have, on a wire without delay, and what
// memory each has taken when that is over.
func (b *bench) compare(ctx context.Context, lab *netlab.Lab, bin netlab.Binaries, r *report) error {
	p, err := newPair(lab, "near", func(left, right *netlab.Host) error { return lab.Veth(left, wireIf, right, wireIf) })
	if err != nil {
		return err
	}
	theirs, err := startWireGuard(ctx, lab, p)
	if err != nil {
		return err
	}
	defer theirs.stop()
	ours, err := startTunneld(ctx, p, bin)
	if err != nil {
		return err
	}
	if err := p.serve(); err != nil {
		return err
	}
	if err := b.ceiling(ctx, p, r); err != nil {
		return err
	}
	if err := b.rounded(ctx, p, ours.subject, theirs.subject, r); err != nil {
		return err
	}
	if err := r.memory(ours.subject, theirs.subject); err != nil {
		return err
	}
	return b.firstPings(ctx, ours, "first ping, no delay", r)
}

// ceiling takes each figure once without a tunnel.
func (b *bench) ceiling(ctx context.Context, p *pair, r *report) error {
	for _, f := range figures {
		values, err := f.take(ctx, p, bare, b.length)
		if err != nil {
			return fmt.Errorf("%s without a tunnel: %w", f.gives[0].name, err)
		}
		for i, q := range f.gives {
			if values[i] > 0 { // no daemon needs no processor
				r.own("no tunnel: "+q.name, q.unit, values[i])
				b.say("no tunnel  %-36s %.4g  %s", q.name, values[i], q.unit)
			}
		}
	}
	return nil
}

// rounded takes each figure of both subjects, round by round.
func (b *bench) rounded(ctx context.Context, p *pair, ours, theirs subject, r *report) error {
	for round := range b.rounds {
		for _, f := range figures {
			var values [2][]float64
			for i := range values {
				which := (i + round) % 2 // who is first changes with each round
				v, err := f.take(ctx, p, [2]subject{ours, theirs}[which], b.length)
				if err != nil {
					return fmt.Errorf("round %d, %s through %s: %w", round+1, f.gives[0].name, [2]string{"ours", "wireguard-go"}[which], err)
				}
				values[which] = v
			}
			for i, q := range f.gives {
				r.add(q.name, q.unit, values[0][i], values[1][i])
				b.say("round %d/%d  %-36s ours %.4g  wireguard-go %.4g  %s", round+1, b.rounds, q.name, values[0][i], values[1][i], q.unit)
			}
		}
	}
	return nil
}

// setUps takes the time from `tunnelctl up` to the first answered ping on a
// wire with a round trip of 50 ms.
func (b *bench) setUps(ctx context.Context, lab *netlab.Lab, bin netlab.Binaries, r *report) error {
	p, err := newPair(lab, "far", func(left, right *netlab.Host) error {
		_, err := lab.Wire(left, wireIf, right, wireIf, netlab.Impairment{Delay: 25 * time.Millisecond})
		return err
	})
	if err != nil {
		return err
	}
	ours, err := startTunneld(ctx, p, bin)
	if err != nil {
		return err
	}
	if err := p.serve(); err != nil {
		return err
	}
	return b.firstPings(ctx, ours, "first ping, 50 ms RTT", r)
}

func (b *bench) firstPings(ctx context.Context, ours *tunnel, name string, r *report) error {
	for range b.rounds {
		took, err := ours.firstPing(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		r.own(name, "ms", float64(took)/1e6)
		b.say("%-35s %.1f ms", name, float64(took)/1e6)
	}
	return nil
}
