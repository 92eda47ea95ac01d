package sim

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"tunneld/internal/session"
)

// world is one schedule: hosts, what is between them, and what is to happen.
// One goroutine runs it; all chance comes from rng.
type world struct {
	seed uint64
	rng  *rand.Rand
	now  time.Duration // since the beginning; the hosts' clocks are offset from it
	q    eventQueue
	seq  uint64

	gateways []*gateway
	nodes    []*node
	lines    []*line // transports with an end that is alive
	lastLine uint64
	healed   bool // no accident any more
	healedAt time.Duration

	ghost ghost
	stats stats
	trace *strings.Builder // nil: nobody wants to read it
}

// stats is what a schedule amounts to.
type stats struct {
	steps, cuts, crashes, resumes, sessions, ends, saves, full, clocks, thefts, losses, rebuilds int
	drains, moves, retargets, loops, refreshes, offers, readdressed, parks                       int
	pairs                                                                                        map[pair]int
}

// epoch is when every schedule begins.
var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func newWorld(seed uint64) *world {
	w := &world{seed: seed, rng: rand.New(rand.NewPCG(seed, 0x746e6c64))}
	w.ghost.w = w
	w.ghost.init()
	w.stats.pairs = map[pair]int{}
	return w
}

// event is a thing to happen at its time; those of one time in the order of
// their making.
type event struct {
	at  time.Duration
	seq uint64
	fn  func()
}

type eventQueue []event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *eventQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = event{}
	*q = old[:len(old)-1]
	return e
}

// after has fn happen d from now.
func (w *world) after(d time.Duration, fn func()) {
	w.seq++
	heap.Push(&w.q, event{w.now + max(0, d), w.seq, fn})
}

// run lets happen what is due until the time end.
func (w *world) run(end time.Duration) {
	for len(w.q) > 0 && w.q[0].at <= end {
		e := heap.Pop(&w.q).(event)
		w.now = e.at
		e.fn()
	}
	w.now = end
}

func (w *world) logf(format string, args ...any) {
	if w.trace != nil {
		fmt.Fprintf(w.trace, "%12v  ", w.now)
		fmt.Fprintf(w.trace, format, args...)
		w.trace.WriteByte('\n')
	}
}

// chance is true once in n times.
func (w *world) chance(n int) bool { return w.rng.IntN(n) == 0 }

// between is a duration in [lo, hi).
func (w *world) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)))
}

// Read makes the world the machines' source of randomness.
func (w *world) Read(b []byte) (int, error) {
	var word [8]byte
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(word[:], w.rng.Uint64())
		copy(b[i:], word[:])
	}
	return len(b), nil
}

func (w *world) newID() session.ID {
	id, err := session.ReadID(w)
	if err != nil {
		panic(err) // Read never fails
	}
	return id
}

// violation is a promise that was broken.
type violation struct {
	promise string // P1 … P7, or one of our own words
	text    string
}

func (v violation) Error() string { return v.promise + ": " + v.text }

// broken ends the schedule.
func broken(promise, format string, args ...any) {
	panic(violation{promise, fmt.Sprintf(format, args...)})
}

// host is a machine with one daemon, its clock and its disk.
type host struct {
	w       *world
	name    string
	id      session.ID
	key     [32]byte // hash of its certificate's key
	up      bool
	life    int // of the daemon; what an earlier one had planned does not happen
	boot    session.ID
	offset  time.Duration // of its wall clock
	stepped bool          // the wall clock was set
	frozen  time.Duration // stopped until then
	crashIn int           // actions until it is killed; 0: not soon
	disk    *disk
	conns   []*conn
	starts  func()
	stops   func()
	stolen  string // what a thief shows that must not be believed; empty: nothing
}

func (w *world) newHost(name string) *host {
	h := &host{w: w, name: name, id: w.newID(), disk: newDisk()}
	w.Read(h.key[:])
	h.disk.eager = w.seed%4 == 0
	return h
}

// runs reports whether the daemon can be spoken to.
func (h *host) runs() bool { return h.up && h.frozen <= h.w.now }

// wall is the host's own idea of the time.
func (h *host) wall() time.Time { return epoch.Add(h.w.now + h.offset) }

// after has fn happen in this life of the daemon, later if the host is frozen
// then.
func (h *host) after(d time.Duration, fn func()) {
	life := h.life
	var run func()
	run = func() {
		switch {
		case h.life != life || !h.up:
		case h.frozen > h.w.now:
			h.w.after(min(h.frozen-h.w.now, time.Second), run) // it may be woken earlier
		default:
			fn()
		}
	}
	h.w.after(d, run)
}

// boots starts the daemon.
func (h *host) boots() {
	h.life++
	h.up = true
	h.crashIn, h.frozen = 0, 0
	h.boot = h.w.newID()
	h.w.logf("%s starts", h.name)
	h.starts()
}

// dies ends the daemon without a word: what it had not written is lost. Loud:
// the kernel closes its sockets; else the machine itself is gone.
func (h *host) dies(loud bool) {
	if !h.up {
		return
	}
	h.w.stats.crashes++
	h.w.logf("%s is killed", h.name)
	h.up = false
	h.life++
	for _, c := range h.conns {
		c.dead = true
	}
	h.conns = nil
	for _, l := range h.w.lines {
		l.hostGone(h, loud)
	}
	h.stops()
	h.w.after(h.w.between(time.Millisecond, 3*time.Second), h.again)
}

// again starts the daemon if it is not running.
func (h *host) again() {
	if !h.up {
		h.boots()
	}
}

// killedNow counts an action and says whether it is the last.
func (h *host) killedNow() bool {
	if h.crashIn == 0 {
		return false
	}
	h.crashIn--
	if h.crashIn > 0 {
		return false
	}
	h.dies(h.w.chance(2))
	return true
}
