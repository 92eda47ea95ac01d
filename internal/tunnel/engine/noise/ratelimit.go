package noise

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// The rate of handshake messages that one source may have under load, as in
// the common implementations.
const (
	handshakesPerSecond = 20
	handshakeBurst      = 5
	handshakeCost       = Instant(time.Second / handshakesPerSecond)
)

// RateLimiter bounds handshake messages by source (SourceOf). Its memory is fixed when it is made, and no source can make it do more
// work than another: a source has four places where it may stand, and the one
// that was silent longest gives way. So a flood from many addresses costs a
// known source its history, never its next message. It is for one goroutine.
type RateLimiter struct {
	seed    maphash.Seed
	buckets [][limiterWays]bucket
}

const limiterWays = 4

// bucket is full again at the instant until; one message takes handshakeCost.
type bucket struct {
	source netip.Addr
	until  Instant
}

// NewRateLimiter remembers at least that many sources.
func NewRateLimiter(sources int) *RateLimiter {
	return &RateLimiter{maphash.MakeSeed(), make([][limiterWays]bucket, max(1, (sources+limiterWays-1)/limiterWays))}
}

// Allow takes one message of src and reports whether it may be looked at.
func (l *RateLimiter) Allow(src netip.Addr, now Instant) bool {
	source := SourceOf(src)
	set := &l.buckets[maphash.Comparable(l.seed, source)%uint64(len(l.buckets))]
	place := &set[0]
	for i := range set {
		if set[i].source == source {
			place = &set[i]
			break
		}
		if set[i].until < place.until {
			place = &set[i]
		}
	}
	if place.source != source {
		*place = bucket{source: source}
	}
	until := max(place.until, now) + handshakeCost
	if until > now+handshakeBurst*handshakeCost {
		return false
	}
	place.until = until
	return true
}

// SourceOf is whom a message from src is put down to: an IPv4 address, or an
// IPv6 /64.
func SourceOf(src netip.Addr) netip.Addr {
	src = src.Unmap().WithZone("")
	if src.Is6() {
		if p, err := src.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return src
}
