package noise

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tunneld/internal/secret"
)

// The simulator: two ends of one session, a wire with delay and loss, and a
// clock that jumps from event to event. An end is what the package's own
// comments tell a user to write; a stock end keeps one handshake and rotates
// its keypairs as wireguard-go does.

type sim struct {
	now    Instant
	events eventQueue
	order  int
	rnd    *rand.Rand
	delay  time.Duration
	loss   float64
	nodes  [2]*simNode
}

type simEvent struct {
	at    Instant
	order int
	do    func()
}

type eventQueue []simEvent

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(simEvent)) }
func (q *eventQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

func newSim(t testing.TB, delay time.Duration, seed uint64) *sim {
	a, b := pair(t)
	s := &sim{now: testStart, delay: delay, rnd: rand.New(rand.NewPCG(seed, 1))}
	for i, e := range []*end{a, b} {
		n := &simNode{t: t, s: s, end: e, indices: map[uint32]*Keypair{}}
		n.nextIndex = uint32(i+1) << 16
		n.timers.Start(s.now, s.rnd.Uint32(), 0, false)
		s.nodes[i] = n
	}
	s.nodes[0].other, s.nodes[1].other = s.nodes[1], s.nodes[0]
	return s
}

func (s *sim) after(d time.Duration, do func()) {
	s.order++
	heap.Push(&s.events, simEvent{s.now.Add(d), s.order, do})
}

// run lets that much time pass.
func (s *sim) run(d time.Duration) {
	end := s.now.Add(d)
	for len(s.events) > 0 && s.events[0].at <= end {
		e := heap.Pop(&s.events).(simEvent)
		s.now = e.at
		e.do()
	}
	s.now = end
}

// agree reports whether both ends send with the same pair.
func (s *sim) agree() bool {
	a, b := s.nodes[0].ring.Current, s.nodes[1].ring.Current
	return a != nil && b != nil && a.MaySend(s.now) && b.MaySend(s.now) && a.Local == b.Remote && a.Remote == b.Local
}

type simNode struct {
	t testing.TB
	s *sim
	*end
	other     *simNode
	stock     bool
	timers    Timers
	ring      Keypairs
	inFlight  *Handshake
	indices   map[uint32]*Keypair
	nextIndex uint32

	every                       time.Duration // one data packet each; 0: no more
	initiations, completed      int
	sealed, lost, opened, unkey int // data packets
	wiped, noAnswer, keepalives int
}

func (n *simNode) wake(at Instant) {
	if at != 0 {
		n.s.after(at.Sub(n.s.now), n.fire)
	}
}

func (n *simNode) fire() {
	do, wake := n.timers.Expire(n.s.now)
	n.wake(wake)
	if do&WipeKeys != 0 {
		n.wiped++
		for _, k := range n.ring.Clear() {
			n.drop(k)
		}
		n.abandon()
	}
	if do&NoAnswer != 0 {
		n.noAnswer++
		n.abandon()
	}
	if do&SendInitiation != 0 {
		n.initiate()
	}
	if do&SendKeepalive != 0 {
		n.empty()
	}
}

func (n *simNode) want(urgent bool) {
	send, wake := n.timers.Want(n.s.now, urgent)
	n.wake(wake)
	if send {
		n.initiate()
	}
}

func (n *simNode) initiate() {
	n.abandon()
	n.initiations++
	n.nextIndex++
	msg, h, err := n.key.CreateInitiation(nil, n.peer, n.nextIndex, n.s.now, testWall.Add(n.s.now.Sub(testStart)))
	if err != nil {
		n.t.Fatal(err)
	}
	n.inFlight = h
	n.wake(n.timers.InitiationSent(n.s.now))
	n.send(msg)
}

func (n *simNode) abandon() {
	if n.inFlight != nil {
		n.inFlight.Wipe()
		n.inFlight = nil
	}
}

func (n *simNode) send(msg []byte) (lost bool) {
	if n.s.rnd.Float64() < n.s.loss {
		return true
	}
	n.s.after(n.s.delay, func() { n.other.receive(msg) })
	return false
}

func (n *simNode) receive(msg []byte) {
	switch Classify(msg) {
	case KindInitiation:
		n.receiveInitiation(msg)
	case KindResponse:
		n.receiveResponse(msg)
	case KindTransport:
		n.receiveData(msg)
	}
}

func (n *simNode) receiveInitiation(msg []byte) {
	var in Initiation
	if n.key.ConsumeInitiation(&in, msg) != nil || in.Accept(n.peer, n.s.now) != nil {
		return
	}
	if n.stock {
		n.abandon() // it has one place for a handshake
	}
	n.nextIndex++
	var keys Keys
	resp, err := in.CreateResponse(nil, n.peer, n.nextIndex, n.s.now, &keys, secret.Value{})
	if err != nil {
		n.t.Fatal(err)
	}
	if n.inFlight != nil {
		keys.Crossed = n.inFlight.Index()
	}
	n.dropAll(n.ring.Responded(n.add(&keys)))
	if n.stock {
		n.drop(n.ring.Previous[0])
		n.ring.Previous[0] = nil
	}
	n.wake(n.timers.ResponseSent(n.s.now))
	n.send(resp)
}

func (n *simNode) receiveResponse(msg []byte) {
	if n.inFlight == nil || n.inFlight.Index() != Receiver(msg) {
		return
	}
	var keys Keys
	if _, err := n.inFlight.ConsumeResponse(n.key, msg, n.s.now, &keys); err != nil {
		return
	}
	n.inFlight = nil
	next := n.ring.Next
	n.dropAll(n.ring.Initiated(n.add(&keys), n.s.now))
	if n.stock && next != nil { // current gives way to next, which was never used
		n.drop(n.ring.Previous[0])
		n.ring.Previous[0], n.ring.Next = next, nil
	}
	n.complete()
	n.empty()
}

func (n *simNode) complete() {
	n.completed++
	n.wake(n.timers.Complete(n.s.now))
}

func (n *simNode) receiveData(msg []byte) {
	k := n.indices[Receiver(msg)]
	if k == nil {
		return
	}
	got, err := k.Open(msg, n.s.now)
	if err != nil {
		return
	}
	dropped, promoted := n.ring.Confirmed(k, n.s.now, n.key.Wins(n.peer.Public()) && !n.stock)
	n.dropAll(dropped)
	if promoted {
		n.abandon()
		n.complete()
	}
	if len(got) == 0 {
		n.wake(n.timers.KeepaliveReceived(n.s.now))
		return
	}
	n.opened++
	n.wake(n.timers.DataReceived(n.s.now))
	if k.RekeyOnReceive(n.s.now) {
		n.want(false)
	}
}

// data sends one packet, and goes on doing so.
func (n *simNode) data() {
	if n.every == 0 {
		return
	}
	n.s.after(n.every, n.data)
	k := n.ring.Current
	if k == nil || !k.MaySend(n.s.now) {
		n.unkey++
		n.want(false)
		return
	}
	n.sealed++
	if n.send(n.seal(k, "data")) {
		n.lost++
	}
	n.wake(n.timers.DataSent(n.s.now))
	if k.RekeyOnSend(n.s.now) {
		n.want(false)
	}
}

func (n *simNode) empty() {
	k := n.ring.Current
	if k == nil || !k.MaySend(n.s.now) {
		n.want(false)
		return
	}
	n.keepalives++
	n.send(n.seal(k, ""))
	n.wake(n.timers.KeepaliveSent(n.s.now))
}

func (n *simNode) seal(k *Keypair, text string) []byte {
	counter, ok := k.NextCounters(1)
	if !ok {
		n.t.Fatal("no counter left")
	}
	return k.Seal(nil, counter, []byte(text), 0)
}

func (n *simNode) add(keys *Keys) *Keypair {
	k := NewKeypair(keys)
	n.indices[k.Local] = k
	return k
}

func (n *simNode) drop(k *Keypair) {
	if k != nil {
		delete(n.indices, k.Local)
		k.Retire()
	}
}

func (n *simNode) dropAll(d Dropped) {
	for _, k := range d {
		n.drop(k)
	}
}

// check fails when data was lost that the wire did not lose.
func (s *sim) check(t *testing.T, name string) {
	t.Helper()
	s.nodes[0].every, s.nodes[1].every = 0, 0
	s.run(2 * s.delay)
	for i, n := range s.nodes {
		if got, want := n.other.opened, n.sealed-n.lost; got != want {
			t.Errorf("%s: %d of %d data packets of end %d were opened", name, got, want, i)
		}
	}
}

// establish makes a first keypair, end 0 initiating.
func (s *sim) establish(t *testing.T) {
	t.Helper()
	s.nodes[0].want(false)
	s.run(4*s.delay + time.Second)
	if !s.agree() {
		t.Fatal("no first keypair")
	}
	s.run(RekeyTimeout)
}

const maxDelay = 600 * time.Millisecond

// delayStep is finer where the race detector does not make everything slow.
func delayStep() time.Duration {
	if raceEnabled {
		return 100 * time.Millisecond
	}
	return 10 * time.Millisecond
}

// Both ends start a handshake within one delay of each other. Two round trips
// later at most they send with the same keypair, with one initiation each, and
// no packet was lost; with a keypair in use before, none even waited.
func TestCrossingConverges(t *testing.T) {
	for delay := time.Duration(0); delay <= maxDelay; delay += delayStep() {
		for i, offset := range []time.Duration{0, delay / 2, delay} {
			for _, warm := range []bool{false, true} {
				name := fmt.Sprintf("delay %v, offset %v, keypair before: %v", delay, offset, warm)
				s := newSim(t, delay, uint64(i))
				if warm {
					s.establish(t)
				}
				before := s.nodes[0].initiations + s.nodes[1].initiations
				unkeyed := 0
				for i, n := range s.nodes {
					n.every = 20 * time.Millisecond
					s.after(time.Duration(i)*offset, n.data)
					if warm {
						s.after(time.Duration(i)*offset, func() { n.want(true) })
					}
				}
				s.run(offset + 4*delay + 30*time.Millisecond)
				if !s.agree() {
					t.Errorf("%s: the ends do not agree after two round trips", name)
				}
				unkeyed = s.nodes[0].unkey + s.nodes[1].unkey
				s.run(time.Second)
				if s.nodes[0].unkey+s.nodes[1].unkey > unkeyed || warm && unkeyed > 0 {
					t.Errorf("%s: an end could not send", name)
				}
				if n := s.nodes[0].initiations + s.nodes[1].initiations - before; n > 2 {
					t.Errorf("%s: %d initiations, want at most 2", name, n)
				}
				s.check(t, name)
			}
		}
	}
}

// The same against an end that keeps one handshake only.
func TestCrossingWithStockPeer(t *testing.T) {
	for delay := time.Duration(0); delay <= maxDelay; delay += delayStep() {
		for i, offset := range []time.Duration{0, delay / 2, delay} {
			for stock := range 2 {
				name := fmt.Sprintf("delay %v, offset %v, end %d is stock", delay, offset, stock)
				s := newSim(t, delay, uint64(i))
				s.nodes[stock].stock = true
				for i, n := range s.nodes {
					n.every = 20 * time.Millisecond
					s.after(time.Duration(i)*offset, n.data)
				}
				s.run(offset + 4*delay + 30*time.Millisecond)
				if !s.agree() {
					t.Errorf("%s: the ends do not agree after two round trips", name)
				}
				s.run(time.Second)
				s.check(t, name)
			}
		}
	}
}

// With messages lost at random the ends come together all the same, and lose no
// packet beyond those the wire lost.
func TestCrossingWithLoss(t *testing.T) {
	for seed := range uint64(60) {
		delay := time.Duration(seed%13) * 50 * time.Millisecond
		name := fmt.Sprintf("seed %d, delay %v", seed, delay)
		s := newSim(t, delay, seed)
		s.loss = 0.05 + 0.05*float64(seed%8)
		warm := seed%2 == 0
		if warm {
			loss := s.loss
			s.loss = 0
			s.establish(t)
			s.loss = loss
		}
		for _, n := range s.nodes {
			n.every = 50 * time.Millisecond
			n.data()
			if warm {
				n.want(true)
			}
		}
		s.run(60 * time.Second)
		s.loss = 0
		s.run(RekeyTimeout + MaxJitter + 4*delay + time.Second)
		if !s.agree() {
			t.Errorf("%s: the ends do not agree", name)
		}
		s.check(t, name)
	}
}

// After a crossing one end feels responsible for the next handshake, and one
// only; traffic in both directions notices neither.
func TestRekeyAfterCrossing(t *testing.T) {
	s := newSim(t, 100*time.Millisecond, 3)
	for _, n := range s.nodes {
		n.every = 500 * time.Millisecond
		n.data()
	}
	s.run(10 * time.Second)
	first := [2]int{s.nodes[0].initiations, s.nodes[1].initiations}
	unkeyed := s.nodes[0].unkey + s.nodes[1].unkey
	s.run(1000 * time.Second)
	for i, n := range s.nodes {
		got, want := n.initiations-first[i], 0
		if n.key.Wins(n.peer.Public()) {
			want = 8 // 1000 s at one each 120 s and a little
		}
		if got != want {
			t.Errorf("end %d made %d more initiations, want %d", i, got, want)
		}
	}
	if n := s.nodes[0].unkey + s.nodes[1].unkey; n > unkeyed {
		t.Errorf("%d packets had no keypair", n-unkeyed)
	}
	s.check(t, "rekey")
}

// A peer that lost all in the middle of a crossing is not sent to with the pair
// it lost for longer than crossingTime.
func TestCrossingWithRestartedPeer(t *testing.T) {
	s := newSim(t, 50*time.Millisecond, 9)
	winner, loser := s.nodes[0], s.nodes[1]
	if !winner.key.Wins(winner.peer.Public()) {
		winner, loser = loser, winner
	}
	winner.want(false)
	loser.want(false)
	s.run(75 * time.Millisecond) // both initiations have been answered
	own := winner.inFlight.Index()
	s.run(30 * time.Millisecond) // and the answers are here
	if winner.ring.Current == nil || winner.ring.Current.Local != own || winner.ring.Next == nil {
		t.Fatal("the winner does not hold both pairs")
	}
	// The loser comes back with the pair that it initiated, and without the other.
	loser.drop(loser.ring.Next)
	loser.ring.Next = nil
	loser.every = 100 * time.Millisecond
	loser.data()
	s.run(crossingTime - 200*time.Millisecond)
	if winner.ring.Current.Local != own {
		t.Error("the winner gave way at once")
	}
	s.run(500 * time.Millisecond)
	if !s.agree() {
		t.Error("the winner sends with a pair its peer has lost")
	}
}
