package meter

import (
	"math/bits"
	"sync/atomic"
	"time"

	"tunneld/internal/tunnel/engine"
)

// Where a rate names no burst it is what comes in defaultBurst, and at least
// leastBurst: the largest packet, as a host hands it over.
const (
	defaultBurst = 100 * time.Millisecond
	leastBurst   = 1 << 16
)

// A limit is a token bucket, kept as the moment at which it will be full again:
// one word, so that no thread waits for another.
type limit struct {
	rate  engine.Rate
	burst int64 // nanoseconds that a full bucket takes to fill
	full  atomic.Int64
}

func newLimit(r engine.Rate) *limit {
	l := &limit{rate: r}
	burst := r.Burst
	if burst == 0 {
		burst = max(leastBurst, r.BytesPerSecond/uint64(time.Second/defaultBurst))
	}
	l.burst = l.time(burst)
	return l
}

// time is how long n octets take at the rate.
func (l *limit) time(n uint64) int64 {
	hi, lo := bits.Mul64(n, uint64(time.Second))
	if hi >= l.rate.BytesPerSecond {
		return int64(1 << 62)
	}
	t, _ := bits.Div64(hi, lo, l.rate.BytesPerSecond)
	return int64(min(t, 1<<62))
}

// take takes n octets at once, if they are there.
func (l *limit) take(n int, now int64) bool {
	cost := l.time(uint64(n))
	for {
		full := l.full.Load()
		next := max(full, now) + cost
		if next-now > l.burst {
			return false
		}
		if l.full.CompareAndSwap(full, next) {
			return true
		}
	}
}
