package carrier

import (
	"cmp"
	"net"
	"net/netip"
	"sync"
	"time"
)

func (l Limits) withDefaults() Limits {
	l.HalfOpen = cmp.Or(l.HalfOpen, 256)
	l.PerPrefix = cmp.Or(l.PerPrefix, 32)
	l.Enrolments = cmp.Or(l.Enrolments, 16)
	l.SetupTime = cmp.Or(l.SetupTime, 10*time.Second)
	l.SetupBytes = cmp.Or(l.SetupBytes, 16<<10)
	if l.Known == nil {
		l.Known = func(netip.Addr) bool { return false }
	}
	return l
}

// slots counts what is open at once: in all, of strangers, and of one prefix.
type slots struct {
	max, strangers, perPrefix int

	mu       sync.Mutex
	total    int // all below: mu
	unknown  int
	byPrefix map[netip.Prefix]int
}

func newSlots(max, strangers, perPrefix int) *slots {
	return &slots{max: max, strangers: strangers, perPrefix: perPrefix, byPrefix: make(map[netip.Prefix]int)}
}

// take reserves a slot for a peer at addr until release, which may be called
// more than once. An eighth is for strangers alone, so that somebody new comes in
// while all others come back.
func (s *slots) take(addr netip.Addr, known bool) (release func(), ok bool) {
	prefix := sourcePrefix(addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	full := known && s.total-s.unknown >= s.max-s.max/8 || !known && s.unknown >= s.strangers
	if s.total >= s.max || full || s.byPrefix[prefix] >= s.perPrefix {
		return nil, false
	}
	s.add(prefix, known, 1)
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.add(prefix, known, -1)
	}), true
}

// add needs mu held.
func (s *slots) add(prefix netip.Prefix, known bool, n int) {
	s.total += n
	if !known {
		s.unknown += n
	}
	if s.byPrefix[prefix] += n; s.byPrefix[prefix] == 0 {
		delete(s.byPrefix, prefix)
	}
}

// sourcePrefix is what one customer of a provider has for himself: an IPv4
// address, or an IPv6 /64.
func sourcePrefix(addr netip.Addr) netip.Prefix {
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.WithZone("").Prefix(bits) // the zero address has the zero prefix
	return p
}

func remoteAddr(nc net.Conn) netip.Addr {
	ap, _ := netip.ParseAddrPort(nc.RemoteAddr().String())
	return ap.Addr().Unmap()
}
