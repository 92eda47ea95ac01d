package native

import (
	"container/heap"
	"sync"
	"time"

	"tunneld/internal/tunnel/engine/noise"
)

// maxSleep bounds how late the agenda notices that the machine slept: the
// runtime's timers stand still meanwhile.
const maxSleep = time.Second

// An agenda does for all sessions what is due at a time. A session stands in it
// once, at the earliest moment it asked for; a later look at the session says
// what to do and when to look again. Entries that were overtaken by an earlier
// one are skipped.
type agenda struct {
	wake chan struct{} // capacity 1
	done chan struct{}

	mu    sync.Mutex // guards everything below
	asked []appointment
}

type appointment struct {
	at   noise.Instant
	peer *peer
}

// appointments are a heap by time.
type appointments []appointment

func (a appointments) Len() int           { return len(a) }
func (a appointments) Less(i, j int) bool { return a[i].at < a[j].at }
func (a appointments) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *appointments) Push(x any)        { *a = append(*a, x.(appointment)) }
func (a *appointments) Pop() any {
	last := len(*a) - 1
	x := (*a)[last]
	(*a)[last] = appointment{}
	*a = (*a)[:last]
	return x
}

func newAgenda() *agenda {
	return &agenda{wake: make(chan struct{}, 1), done: make(chan struct{})}
}

func (a *agenda) stop() { close(a.done) }

// at has p looked at no later than at; zero asks for nothing. Any thread; it
// does not wait.
func (a *agenda) at(p *peer, at noise.Instant) {
	if at == 0 {
		return
	}
	for {
		stands := p.standsAt.Load()
		if stands != 0 && stands <= int64(at) {
			return
		}
		if p.standsAt.CompareAndSwap(stands, int64(at)) {
			break
		}
	}
	a.mu.Lock()
	first := len(a.asked) == 0
	a.asked = append(a.asked, appointment{at, p})
	a.mu.Unlock()
	if first {
		a.nudge()
	}
}

func (a *agenda) nudge() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// run is the agenda's goroutine, until stop.
func (a *agenda) run() {
	var book appointments
	var asked []appointment
	timer := time.NewTimer(maxSleep)
	defer timer.Stop()
	for {
		a.mu.Lock()
		asked, a.asked = a.asked, asked[:0]
		a.mu.Unlock()
		for _, x := range asked {
			heap.Push(&book, x)
		}
		clear(asked)
		for t := now(); len(book) > 0 && book[0].at <= t; {
			x := heap.Pop(&book).(appointment)
			if x.peer.standsAt.CompareAndSwap(int64(x.at), 0) {
				x.peer.due(t)
			}
		}
		sleep := maxSleep
		if len(book) > 0 {
			sleep = min(sleep, max(0, book[0].at.Sub(now())))
		}
		timer.Reset(sleep)
		select {
		case <-a.done:
			return
		case <-a.wake:
		case <-timer.C:
		}
	}
}
