package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

// figures are what both subjects are measured by, from the left host to an
// address of the right one.
var figures = []struct {
	name, unit string
	take       func(ctx context.Context, p *pair, address string, length time.Duration) (float64, error)
}{
	{"TCP, one stream", "Mbit/s", tcp},
	{"UDP 64 octets, received", "packets/s", flood},
	{"ping p50, idle", "ms", ping},
}

// Ports on the right host.
const (
	iperfPort = "5201"
	echoPort  = 7007
	floodPort = 9009
)

// probeSize is the payload of small packets, in octets.
const probeSize = 64

// serve starts what answers on the right host: iperf3, which ends with the
// laboratory, and an echo of UDP, which close ends.
func (p *pair) serve() error {
	if _, err := p.right.Start("iperf3", "iperf3", "-s", "-p", iperfPort); err != nil {
		return err
	}
	echo, err := p.listen(echoPort)
	if err != nil {
		return err
	}
	p.echo, p.echoed = echo, make(chan struct{})
	go func() {
		defer close(p.echoed)
		buf := make([]byte, 2*probeSize)
		for {
			n, from, err := echo.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			echo.WriteToUDPAddrPort(buf[:n], from) // lost like any other packet
		}
	}()
	return nil
}

// close ends the echo and waits for it.
func (p *pair) close() {
	if p.echo != nil {
		p.echo.Close()
		<-p.echoed
	}
}

// listen opens a UDP socket on the right host.
func (p *pair) listen(port int) (conn *net.UDPConn, err error) {
	err = p.right.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		return err
	})
	return conn, err
}

// sender opens a UDP socket on the left host.
func (p *pair) sender() (conn *net.UDPConn, err error) {
	err = p.left.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{})
		return err
	})
	return conn, err
}

// tcp is what one stream carries, in Mbit/s, as its receiver counts.
func tcp(ctx context.Context, p *pair, address string, length time.Duration) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, length+settle)
	defer cancel()
	out, err := p.left.Run(ctx, "", "iperf3", "-J", "-c", address, "-p", iperfPort, "-t", fmt.Sprintf("%g", max(1, length.Round(time.Second).Seconds())))
	if err != nil {
		return 0, errors.Join(err, iperfError(out))
	}
	return iperfReceived(out)
}

type iperfAnswer struct {
	Error string `json:"error"`
	End   struct {
		Received struct {
			BitsPerSecond float64 `json:"bits_per_second"`
		} `json:"sum_received"`
	} `json:"end"`
}

// iperfReceived reads the receiver's rate, in Mbit/s, from what iperf3 -J says.
func iperfReceived(out string) (float64, error) {
	var a iperfAnswer
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		return 0, fmt.Errorf("iperf3's answer: %w", err)
	}
	if a.End.Received.BitsPerSecond <= 0 {
		return 0, fmt.Errorf("iperf3's answer tells of nothing received: %q", a.Error)
	}
	return a.End.Received.BitsPerSecond / 1e6, nil
}

func iperfError(out string) error {
	var a iperfAnswer
	if json.Unmarshal([]byte(out), &a) != nil || a.Error == "" {
		return nil
	}
	return errors.New(a.Error)
}

// flood sends small packets as fast as one thread can and returns how many a
// second arrive.
func flood(ctx context.Context, p *pair, address string, length time.Duration) (float64, error) {
	to, err := netip.ParseAddr(address)
	if err != nil {
		return 0, err
	}
	in, err := p.listen(floodPort)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	in.SetReadBuffer(4 << 20) // as much as the kernel gives
	out, err := p.sender()
	if err != nil {
		return 0, err
	}
	defer out.Close()

	var received atomic.Int64
	counted := make(chan struct{})
	go func() {
		defer close(counted)
		buf := make([]byte, 2*probeSize)
		for {
			if _, _, err := in.ReadFromUDPAddrPort(buf); err != nil {
				return
			}
			received.Add(1)
		}
	}()
	payload := make([]byte, probeSize)
	start := time.Now()
	for time.Since(start) < length && ctx.Err() == nil {
		for range 64 { // between two looks at the clock
			out.WriteToUDPAddrPort(payload, netip.AddrPortFrom(to, floodPort)) // a full queue drops, as it may
		}
	}
	n, took := received.Load(), time.Since(start)
	in.Close()
	<-counted
	if n == 0 {
		return 0, fmt.Errorf("no packet arrived at %v in %v", address, took)
	}
	return float64(n) / took.Seconds(), ctx.Err()
}

// ping is the median round trip of small packets, one at a time, in ms.
func ping(ctx context.Context, p *pair, address string, _ time.Duration) (float64, error) {
	const probes, pause, patience = 300, 2 * time.Millisecond, time.Second
	to, err := netip.ParseAddr(address)
	if err != nil {
		return 0, err
	}
	conn, err := p.sender()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	var trips []float64
	buf := make([]byte, 2*probeSize)
	for range probes {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		start := time.Now()
		if _, err := conn.WriteToUDPAddrPort(make([]byte, probeSize), netip.AddrPortFrom(to, echoPort)); err != nil {
			return 0, err
		}
		conn.SetReadDeadline(start.Add(patience))
		if _, _, err := conn.ReadFromUDPAddrPort(buf); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue // lost: not this figure's subject
			}
			return 0, err
		}
		trips = append(trips, float64(time.Since(start))/1e6)
		time.Sleep(pause)
	}
	if len(trips) < probes/2 {
		return 0, fmt.Errorf("%d of %d pings to %s were answered", len(trips), probes, address)
	}
	slices.Sort(trips)
	return trips[len(trips)/2], nil
}

// firstPing takes the tunnel down and up again and returns how long it was from
// the start of `tunnelctl up` to the first answer through the tunnel. It asks
// every millisecond; before there is a route the kernel refuses to send.
func (t *tunnel) firstPing(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	if _, err := t.node.Ctl(ctx, "down", ourTunnel); err != nil {
		return 0, err
	}
	to, err := netip.ParseAddr(t.address)
	if err != nil {
		return 0, err
	}
	conn, err := t.pair.sender()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetReadDeadline(deadline)

	answered, asked, up := make(chan time.Time, 1), make(chan struct{}), make(chan error, 1)
	start := time.Now()
	go func() {
		_, err := t.node.Ctl(ctx, "up", ourTunnel)
		up <- err
	}()
	go func() {
		defer close(answered)
		buf := make([]byte, 2*probeSize)
		if _, _, err := conn.ReadFromUDPAddrPort(buf); err == nil {
			answered <- time.Now()
		}
	}()
	stop := make(chan struct{})
	go func() {
		defer close(asked)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			conn.WriteToUDPAddrPort(make([]byte, probeSize), netip.AddrPortFrom(to, echoPort)) // no route yet
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
