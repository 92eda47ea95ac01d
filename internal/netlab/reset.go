package netlab

import "net/netip"

// flowKey names one direction of a TCP connection.
type flowKey struct{ src, dst netip.AddrPort }

// flow is what a bystander knows of it: enough to forge a reset that the
// receiver believes, which must carry exactly the number it expects next
// (RFC 9293, section 3.10.7.4; RFC 5961, section 3.2).
type flow struct {
	direction Direction
	eth       []byte // header of the frames it comes in
	end       uint32 // the number after the last octet seen
	acked     uint32 // what it has acknowledged of the other direction
	over      bool   // it has sent a FIN
}

// noteLocked remembers where a TCP connection stands, from its first segment to
// its end. What the wire loses afterwards is noted too: then the reverse
// direction's acknowledgement is right.
func (w *Wire) noteLocked(d Direction, p packet) {
	s, ok := p.tcp()
	if !ok {
		return
	}
	key, back := flowKey{p.src, p.dst}, flowKey{p.dst, p.src}
	if s.flags&tcpRST != 0 {
		w.forgetLocked(key)
		return
	}
	if s.flags&tcpSYN != 0 {
		w.flows[key] = &flow{direction: d, eth: append([]byte(nil), p.eth...), end: s.end}
	}
	f := w.flows[key]
	if f == nil {
		return
	}
	if int32(s.end-f.end) > 0 {
		f.end = s.end
	}
	if s.flags&tcpACK != 0 {
		f.acked = s.ack
	}
	f.over = f.over || s.flags&tcpFIN != 0
	if reverse := w.flows[back]; f.over && reverse != nil && reverse.over {
		w.forgetLocked(key)
	}
}

// forgetLocked forgets both directions of a connection.
func (w *Wire) forgetLocked(key flowKey) {
	delete(w.flows, key)
	delete(w.flows, flowKey{key.dst, key.src})
}

// ResetTCP ends every TCP connection to a server's port that the wire has seen
// both directions of: each end gets a reset as if from the other. It returns
// how many connections that were. Impairments do not touch the resets.
func (w *Wire) ResetTCP(port uint16) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for key, there := range w.flows {
		back := w.flows[flowKey{key.dst, key.src}]
		if key.dst.Port() != port || back == nil {
			continue
		}
		n++
		w.resetLocked(key, there, back)
		w.resetLocked(flowKey{key.dst, key.src}, back, there)
		w.forgetLocked(key)
	}
	return n
}

// resetLocked sends the receiver of f a reset. The receiver expects what it
// acknowledged last, unless it has got more since: both are tried.
func (w *Wire) resetLocked(key flowKey, f, reverse *flow) {
	w.passLocked(f.direction, resetFrame(f.eth, key.src, key.dst, reverse.acked, f.acked))
	if f.end != reverse.acked {
		w.passLocked(f.direction, resetFrame(f.eth, key.src, key.dst, f.end, f.acked))
	}
}
