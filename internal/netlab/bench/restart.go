package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"tunneld/internal/netlab"
)

const (
	keptRate = 10_000      // packets a second, each way
	keptWait = time.Second // for what is under way
	keptPort = 9010
)

// kept is our daemons as services of a systemd that keeps what they leave, with
// packets flowing both ways.
type kept struct {
	gateway, node *service
	hosts         [2]*netlab.Host
	flows         [2]*netlab.Flow
}

// A toll is what a restart cost. A queue of the kernel that was full while nobody
// read from it is the machine's doing; the rest is ours.
type toll struct {
	sent, lost       int
	full, handshakes int
}

type service struct {
	*netlab.Machine
	*netlab.Daemon
}

// restarts takes how many packets a restart of either daemon loses, and how many
// handshakes it costs, by the unit that is shipped.
func (b *bench) restarts(ctx context.Context, lab *netlab.Lab, bin netlab.Binaries, r *report) error {
	p, err := newPair(lab, "kept", func(left, right *netlab.Host) error { return lab.Veth(left, wireIf, right, wireIf) })
	if err != nil {
		return err
	}
	k, err := startKept(ctx, p, bin)
	if err != nil {
		return err
	}
	for range b.rounds {
		for _, c := range []struct {
			name string
			who  *service
			how  []string
		}{
			{"node restarted", k.node, []string{"restart"}},
			{"gateway restarted", k.gateway, []string{"restart"}},
			{"node killed", k.node, []string{"kill", "--signal=KILL"}},
			{"gateway killed", k.gateway, []string{"kill", "--signal=KILL"}},
		} {
			cost, err := k.restart(ctx, c.who, c.how)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			r.own(c.name+", lost", "packets", float64(cost.lost))
			r.own(c.name+", lost in full queues", "packets", float64(cost.full))
			r.own(c.name+", handshakes", "", float64(cost.handshakes))
			b.say("%-35s %d of %d packets lost, %d of them in full queues, %d handshakes", c.name, cost.lost, cost.sent, cost.full, cost.handshakes)
			if c.how[0] != "kill" {
				continue
			}
			in, err := c.who.inHand()
			if err != nil {
				return err
			}
			r.own(c.name+", in hand", "packets", float64(in))
			b.say("%-35s %d packets were in hand", c.name, in)
		}
	}
	return nil
}

func startKept(ctx context.Context, p *pair, bin netlab.Binaries) (*kept, error) {
	k := &kept{hosts: [2]*netlab.Host{p.left, p.right}}
	for _, s := range []struct {
		at   *netlab.Host
		whom **service
	}{{p.right, &k.gateway}, {p.left, &k.node}} {
		m, err := s.at.Boot(ctx, bin, "packaging")
		if err != nil {
			return nil, err
		}
		*s.whom = &service{m, m.Daemon(bin)}
	}
	if err := dialUp(ctx, k.gateway.Daemon, k.node.Daemon); err != nil {
		return nil, err
	}
	for i, f := range []struct {
		from, to *netlab.Host
		at       string
	}{{p.left, p.right, "10.77.0.1"}, {p.right, p.left, "10.77.0.2"}} {
		flow, err := f.from.Flow(f.to, netip.AddrPortFrom(netip.MustParseAddr(f.at), keptPort), keptRate)
		if err != nil {
			return nil, err
		}
		k.flows[i] = flow
	}
	return k, k.flow(ctx)
}

// flow waits until packets come through both ways.
func (k *kept) flow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	return errors.Join(k.flows[0].Await(ctx), k.flows[1].Await(ctx))
}

// restart ends a daemon in one way, and returns what that cost.
func (k *kept) restart(ctx context.Context, who *service, how []string) (c toll, err error) {
	shaken, dropped, err := k.now(ctx)
	if err != nil {
		return c, err
	}
	old, err := who.PID(ctx)
	if err != nil {
		return c, err
	}
	first := [2]int{k.flows[0].Sent(), k.flows[1].Sent()}
	if _, err := who.Systemctl(ctx, append(how, "tunneld.service")...); err != nil {
		return c, err
	}
	err = netlab.Poll(ctx, time.Millisecond, func() (bool, error) {
		now, err := who.PID(ctx)
		return now != 0 && now != old, err
	})
	if err := errors.Join(err, who.WaitReady(ctx), k.flow(ctx)); err != nil {
		return c, err
	}
	if _, err := k.node.WaitTunnel(ctx, ourTunnel, netlab.Established, func(t netlab.TunnelStatus) bool { return t.State == netlab.Established }); err != nil {
		return c, err
	}
	for i, f := range k.flows {
		sent, lost := f.Since(ctx, first[i], keptWait)
		c.sent, c.lost = c.sent+sent, c.lost+lost
	}
	after, full, err := k.now(ctx)
	c.full = int(full - dropped)
	if shaken[0] != after[0] && shaken[1] != after[1] { // a process that was restarted knows its last one by the keypair's age
		c.handshakes = 1
	}
	return c, err
}

// now is when the last handshake was, as the node and the gateway see it, and what
// full queues have dropped so far.
func (k *kept) now(ctx context.Context) (handshakes [2]string, full uint64, err error) {
	for _, h := range k.hosts {
		n, err := h.QueueDrops()
		if err != nil {
			return handshakes, 0, err
		}
		full += n
	}
	handshakes, err = k.handshakes(ctx)
	return handshakes, full, err
}

// handshakes says when the last one was, as the node and the gateway see it.
func (k *kept) handshakes(ctx context.Context) (at [2]string, err error) {
	s, err := k.node.Status(ctx)
	if err != nil {
		return at, err
	}
	all, err := k.gateway.Sessions(ctx)
	if err == nil && len(all) != 1 {
		err = fmt.Errorf("the gateway has %d sessions, want 1", len(all))
	}
	if err != nil {
		return at, err
	}
	return [2]string{s.Tunnel(ourTunnel).Handshake, all[0].Handshake}, nil
}

// inHand is how many packets the process before this one had taken from the kernel
// and not given back, as this one has logged.
func (s *service) inHand() (int, error) {
	log, err := os.ReadFile(s.Path("/var/log/tunneld.log"))
	if err != nil {
		return 0, err
	}
	const what = `msg="keypairs taken over"`
	at := bytes.LastIndex(log, []byte(what))
	line, _, _ := strings.Cut(string(log[max(at, 0):]), "\n")
	_, n, ok := strings.Cut(line, " packets=")
	if at < 0 || !ok {
		return 0, errors.New("nothing was taken over")
	}
	return strconv.Atoi(n)
}
