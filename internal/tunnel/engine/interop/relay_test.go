package interop

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tunneld/internal/tunnel/engine/noise"
)

// A relay stands on the far end's host: what our end sends outside reaches the
// far end from inside, and the other way round, after a while, or not at all.
const (
	relayOutside = "192.0.2.2:5443"
	relayInside  = "127.0.0.1:5444"
	farPort      = 5000
)

// A relay keeps a record of what came by.
type relay struct {
	conns [2]*net.UDPConn // towards the far end the second is used, towards ours the first
	to    [2]netip.AddrPort
	delay time.Duration
	began time.Time

	mu     sync.Mutex // guards everything below
	drop   drops
	record []passed
}

// Ways of a datagram.
const (
	toFar = iota
	toUs
)

// drops says which datagrams of each way are lost.
type drops [2][noise.KindTransport + 1]bool

// A passed is a datagram that came by.
type passed struct {
	At   time.Duration // since the relay began
	Way  int
	Kind noise.Kind
	Size int
}

// Relay relays between the far end on its host and ours at a.Addr; each datagram
// takes a.Delay.
func (n *Node) Relay(a Args, _ *struct{}) error {
	r := &relay{to: [2]netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), farPort), a.Addr}, delay: a.Delay, began: time.Now()}
	for i, at := range []string{relayOutside, relayInside} {
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
		if err != nil {
			return err
		}
		r.conns[i] = c
	}
	n.relay = r
	for way := range r.conns {
		go r.run(way)
	}
	return nil
}

// run relays one way.
func (r *relay) run(way int) {
	for {
		b := make([]byte, 1<<16)
		n, from, err := r.conns[way].ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		b = b[:n]
		kind := noise.Classify(b)
		r.mu.Lock()
		if way == toFar {
			r.to[toUs] = from // it may have moved
		}
		to, lost := r.to[way], r.drop[way][kind]
		r.record = append(r.record, passed{time.Since(r.began), way, kind, n})
		r.mu.Unlock()
		switch out := r.conns[1-way]; {
		case lost:
		case r.delay == 0:
			out.WriteToUDPAddrPort(b, to)
		default:
			time.AfterFunc(r.delay, func() { out.WriteToUDPAddrPort(b, to) })
		}
	}
}

// Lose has the relay lose what a.Drop says.
func (n *Node) Lose(a Args, _ *struct{}) error {
	n.relay.mu.Lock()
	defer n.relay.mu.Unlock()
	n.relay.drop = a.Drop
	return nil
}

// Passed is the relay's record from number a.Size on.
func (n *Node) Passed(a Args, record *[]passed) error {
	n.relay.mu.Lock()
	defer n.relay.mu.Unlock()
	*record = append([]passed(nil), n.relay.record[a.Size:]...)
	return nil
}

// said numbers what Say sends.
var said atomic.Uint64

// Say sends a.Size datagrams to a.Addr, for Collect, one each a.Delay.
func (n *Node) Say(a Args, _ *struct{}) error {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(a.Addr))
	if err != nil {
		return err
	}
	defer c.Close()
	for i := range a.Size {
		if i > 0 {
			<-time.After(a.Delay)
		}
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, said.Add(1))); err != nil {
			return err
		}
	}
	return nil
}
