package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// probeSize is the payload of a ping, in octets.
const probeSize = 64

// A pinger sends ICMP echo requests (RFC 792) from the left host. The kernel of
// the right one answers them: a round trip has no wake-up but the tunnel's and
// the pinger's own.
type pinger struct {
	fd       int
	to       unix.SockaddrInet4
	sequence uint16
}

const (
	echoReply   = 0
	echoRequest = 8
	icmpHeader  = 8
	pingerID    = 0x7e57
)

// pinger opens the socket to an address; an answer is waited for so long.
func (p *pair) pinger(address string, patience time.Duration) (*pinger, error) {
	to, err := netip.ParseAddr(address)
	if err != nil {
		return nil, err
	}
	fd, err := openSocket(p.left, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, err
	}
	if err := waitAtMost(fd, patience); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &pinger{fd: fd, to: unix.SockaddrInet4{Addr: to.As4()}}, nil
}

func (p *pinger) close() { unix.Close(p.fd) }

// send sends the next request.
func (p *pinger) send() error {
	p.sequence++
	var b [icmpHeader + probeSize]byte
	b[0] = echoRequest
	binary.BigEndian.PutUint16(b[4:], pingerID)
	binary.BigEndian.PutUint16(b[6:], p.sequence)
	binary.BigEndian.PutUint16(b[2:], ^onesSum(b[:]))
	return unix.Sendto(p.fd, b[:], 0, &p.to)
}

// onesSum is the sum that an Internet checksum is made of (RFC 1071).
func onesSum(b []byte) uint16 {
	var s uint32
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}

// receive waits for an answer: to the last request, or to any. It reports
// false if none came in time.
func (p *pinger) receive(any bool) (bool, error) {
	var b [256]byte
	for {
		n, _, err := unix.Recvfrom(p.fd, b[:], 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false, nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return false, err
		}
		ip := int(b[0]&0x0f) * 4
		if n < ip+icmpHeader || b[ip] != echoReply || binary.BigEndian.Uint16(b[ip+4:]) != pingerID {
			continue
		}
		if any || binary.BigEndian.Uint16(b[ip+6:]) == p.sequence {
			return true, nil
		}
	}
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
	probe, err := p.pinger(address, patience)
	if err != nil {
		return nil, err
	}
	defer probe.close()
	sent := 0
	for ; more(sent); sent++ {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		start := time.Now()
		if err := probe.send(); err != nil {
			return nil, err
		}
		switch answered, err := probe.receive(false); {
		case err != nil:
			return nil, err
		case answered: // else lost: not this figure's subject
			trips = append(trips, float64(time.Since(start))/1e6)
		}
		time.Sleep(pause)
	}
	if len(trips) < sent/2 || len(trips) == 0 {
		return nil, fmt.Errorf("%d of %d pings to %s were answered", len(trips), sent, address)
	}
	slices.Sort(trips)
	return trips, nil
}
