package netlab

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// Impairment is what a wire does to the packets on it, in each direction
// alike. The zero value does nothing. Probabilities go from 0 to 1.
//
// It applies to IP packets; ARP and neighbour discovery pass at once, since a
// wire stands for a path and a path has none to lose.
type Impairment struct {
	Delay  time.Duration // one way
	Jitter time.Duration // up to this much is added, evenly spread; order is kept
	Loss   float64       // a packet vanishes
	// Reorder is the probability that a packet is held back until one to three
	// later ones have passed it, or for reorderHold if none comes.
	Reorder   float64
	Duplicate float64 // a packet comes twice
	Rate      float64 // bits a second, 0: no limit; what would wait longer than rateBacklog is dropped
	// Seed fixes every decision: packet n of a direction meets the same fate
	// in each run.
	Seed uint64
}

const (
	reorderHold = 20 * time.Millisecond  // a held packet waits no longer than this
	rateBacklog = 200 * time.Millisecond // the buffer in front of a rate limit, in time
)

// String names what is not zero, for the picture.
func (im Impairment) String() string {
	var parts []string
	add := func(on bool, format string, args ...any) {
		if on {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	add(im.Delay > 0, "delay %v", im.Delay)
	add(im.Jitter > 0, "jitter %v", im.Jitter)
	add(im.Loss > 0, "loss %.3g %%", im.Loss*100)
	add(im.Reorder > 0, "reorder %.3g %%", im.Reorder*100)
	add(im.Duplicate > 0, "duplicate %.3g %%", im.Duplicate*100)
	add(im.Rate > 0, "rate %.3g Mbit/s", im.Rate/1e6)
	return strings.Join(parts, ", ")
}

// fate is what became of one packet that entered a delay line.
type fate struct {
	lost, overflow, reordered, duplicated bool
}

// delayLine holds the packets of one direction until they are due. It reads no
// clock: instants are durations since the wire was made, and must not go back.
// It is not safe for concurrent use.
type delayLine struct {
	rng       *rand.Rand
	queue     frameHeap
	held      []*queuedFrame // reordered, waiting to be overtaken; also in queue
	serial    uint64
	busyUntil time.Duration // when the rate limit has sent all it took
	lastDue   time.Duration // so that jitter keeps the order
}

// queuedFrame is a frame on its way. Frames due at one instant leave by serial.
type queuedFrame struct {
	due      time.Duration
	serial   uint64
	overtake int // packets that still have to pass this held one
	index    int // in the heap
	data     []byte
}

func newDelayLine(seed, direction uint64) *delayLine {
	return &delayLine{rng: rand.New(rand.NewPCG(seed, direction))}
}

// push takes a frame in at the instant now. The line keeps data.
func (l *delayLine) push(im Impairment, data []byte, now time.Duration) fate {
	// Each packet costs the same number of draws, whatever happens to it, so
	// that its fate depends on its number alone.
	loss, reorder, duplicate, jitter := l.rng.Float64(), l.rng.Float64(), l.rng.Float64(), l.rng.Float64()
	overtake := 1 + l.rng.IntN(3)

	if loss < im.Loss {
		return fate{lost: true}
	}
	leaves, ok := l.serialize(im.Rate, len(data), now)
	if !ok {
		return fate{overflow: true}
	}
	due := leaves + im.Delay + time.Duration(jitter*float64(im.Jitter))
	f := fate{reordered: reorder < im.Reorder, duplicated: duplicate < im.Duplicate}
	if f.reordered {
		q := l.add(data, due+reorderHold)
		q.overtake = overtake
		l.held = append(l.held, q)
	} else {
		due = max(due, l.lastDue)
		l.lastDue = due
		l.add(data, due)
		l.release(due)
	}
	if f.duplicated {
		l.add(data, max(due, l.lastDue))
	}
	return f
}

// serialize says when the last bit of n bytes has left a limiter of rate bits a
// second, or that its buffer is full.
func (l *delayLine) serialize(rate float64, n int, now time.Duration) (time.Duration, bool) {
	if rate <= 0 {
		return now, true
	}
	start := max(now, l.busyUntil)
	if start-now > rateBacklog {
		return 0, false
	}
	l.busyUntil = start + time.Duration(float64(n)*8/rate*float64(time.Second))
	return l.busyUntil, true
}

// release lets held frames go that one more packet, due at the given instant,
// has now passed.
func (l *delayLine) release(due time.Duration) {
	kept := l.held[:0]
	for _, q := range l.held {
		if q.index < 0 { // its hold time was over
			continue
		}
		if q.overtake--; q.overtake > 0 {
			kept = append(kept, q)
			continue
		}
		l.serial++
		q.due, q.serial = min(q.due, due), l.serial
		heap.Fix(&l.queue, q.index)
	}
	l.held = kept
}

func (l *delayLine) add(data []byte, due time.Duration) *queuedFrame {
	l.serial++
	q := &queuedFrame{due: due, serial: l.serial, data: data}
	heap.Push(&l.queue, q)
	return q
}

// pop returns the next frame that is due at the instant now.
func (l *delayLine) pop(now time.Duration) ([]byte, bool) {
	if len(l.queue) == 0 || l.queue[0].due > now {
		return nil, false
	}
	return heap.Pop(&l.queue).(*queuedFrame).data, true
}

// next says when the next frame is due.
func (l *delayLine) next() (time.Duration, bool) {
	if len(l.queue) == 0 {
		return 0, false
	}
	return l.queue[0].due, true
}

// clear drops what is on its way and returns how much that was.
func (l *delayLine) clear() int {
	n := len(l.queue)
	l.queue, l.held, l.busyUntil = nil, nil, 0
	return n
}

// frameHeap is a container/heap of frames, the earliest due first.
type frameHeap []*queuedFrame

func (h frameHeap) Len() int { return len(h) }

func (h frameHeap) Less(i, j int) bool {
	if h[i].due != h[j].due {
		return h[i].due < h[j].due
	}
	return h[i].serial < h[j].serial
}

func (h frameHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *frameHeap) Push(x any) {
	q := x.(*queuedFrame)
	q.index = len(*h)
	*h = append(*h, q)
}

func (h *frameHeap) Pop() any {
	old := *h
	q := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	q.index = -1
	return q
}
