package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// A figure is one measurement of a subject, from the left host to the right one,
// and the values it gives.
type figure struct {
	gives []quantity
	take  func(ctx context.Context, p *pair, s subject, length time.Duration) ([]float64, error)
}

type quantity struct{ name, unit string }

// figures are what both subjects are measured by.
var figures = []figure{
	{[]quantity{{"TCP, one stream", "Mbit/s"}, {"CPU of both daemons for a GB of TCP", "s"}}, tcpOf(1)},
	{[]quantity{{"TCP, four streams", "Mbit/s"}, {"CPU for a GB, four streams", "s"}}, tcpOf(4)},
	{[]quantity{{"UDP 64 octets, flood, received", "packets/s"}}, floodOf(64)},
	{[]quantity{{"UDP 1200 octets, flood, received", "packets/s"}}, floodOf(1200)},
	{[]quantity{{"UDP 64 octets, at most 1 % lost", "packets/s"}}, pacedOf(64)},
	{[]quantity{{"UDP 1200 octets, at most 1 % lost", "packets/s"}}, pacedOf(1200)},
	{[]quantity{{"ping p50, idle", "ms"}}, idlePing},
	{[]quantity{{"ping p50 under one TCP stream", "ms"}, {"ping p99 under one TCP stream", "ms"}}, loadedPing},
}

// Ports on the right host.
const (
	iperfPort = "5201"
	floodPort = 9009
)

// serve starts what answers TCP on the right host. It ends with the laboratory.
func (p *pair) serve() error {
	_, err := p.right.Start("iperf3", "iperf3", "-s", "-p", iperfPort)
	return err
}

// tcpOf is what so many streams carry together, as their receiver counts, and what
// the daemons need for it.
func tcpOf(streams int) func(context.Context, *pair, subject, time.Duration) ([]float64, error) {
	return func(ctx context.Context, p *pair, s subject, length time.Duration) ([]float64, error) {
		before, err := s.cpu()
		if err != nil {
			return nil, err
		}
		rate, err := p.tcp(ctx, s.address, streams, length)
		if err != nil {
			return nil, err
		}
		after, err := s.cpu()
		gigabytes := rate * tcpLength(length).Seconds() / 8 / 1000
		return []float64{rate, (after - before) / gigabytes}, err
	}
}

// tcpLength is length in the whole seconds that iperf3 knows.
func tcpLength(length time.Duration) time.Duration {
	return max(time.Second, length.Round(time.Second))
}

// tcp runs iperf3 and returns the rate in Mbit/s. Its server does not listen for
// a moment after each run.
func (p *pair) tcp(ctx context.Context, address string, streams int, length time.Duration) (rate float64, err error) {
	const tries, pause = 5, 200 * time.Millisecond
	for range tries {
		if rate, err = p.tryTCP(ctx, address, streams, length); err == nil || ctx.Err() != nil {
			return rate, err
		}
		time.Sleep(pause)
	}
	return 0, err
}

func (p *pair) tryTCP(ctx context.Context, address string, streams int, length time.Duration) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, length+settle)
	defer cancel()
	out, err := p.left.Run(ctx, "", "iperf3", "-J", "-c", address, "-p", iperfPort, "-P", strconv.Itoa(streams), "-t", fmt.Sprint(tcpLength(length).Seconds()))
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
