package main

import (
	"context"
	"fmt"
	"time"
)

// firstPing takes the tunnel down and up again and returns how long it was from
// the start of `tunnelctl up` to the first answer through the tunnel. It asks
// every millisecond; before there is a route the kernel refuses to send.
func (t *tunnel) firstPing(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	if _, err := t.node.Ctl(ctx, "down", ourTunnel); err != nil {
		return 0, err
	}
	probe, err := t.pair.pinger(t.address, settle)
	if err != nil {
		return 0, err
	}
	defer probe.close()

	answered, asked, up := make(chan time.Time, 1), make(chan struct{}), make(chan error, 1)
	start := time.Now()
	go func() {
		_, err := t.node.Ctl(ctx, "up", ourTunnel)
		up <- err
	}()
	go func() {
		defer close(answered)
		if ok, err := probe.receive(true); ok && err == nil {
			answered <- time.Now()
		}
	}()
	stop := make(chan struct{})
	go func() {
		defer close(asked)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			_ = probe.send() // no route yet
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	at, ok := <-answered
	close(stop)
	<-asked
	if err := <-up; err != nil {
		return 0, err
	}
	if !ok {
		return 0, fmt.Errorf("no answer from %s within %v", t.address, settle)
	}
	return at.Sub(start), nil
}
