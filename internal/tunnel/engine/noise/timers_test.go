package noise

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
	"unsafe"
)

// clock drives one Timers as a wheel would, and notes what it asks for.
type clock struct {
	Timers
	now  Instant
	wake Instant // the place in the wheel
	said []said
}

type said struct {
	after time.Duration // since the clock began
	do    Actions
}

func newClock(persistent time.Duration, passive bool) *clock {
	c := &clock{now: testStart}
	c.at(c.Start(c.now, 7, persistent, passive))
	return c
}

// at puts the session into the wheel.
func (c *clock) at(wake Instant) { c.wake = earlier(c.wake, wake) }

// pass lets time pass, and does what a session would with the actions.
func (c *clock) pass(d time.Duration) {
	end := c.now.Add(d)
	for c.wake != 0 && c.wake <= end {
		c.now, c.wake = max(c.now, c.wake), 0
		do, wake := c.Expire(c.now)
		c.at(wake)
		if do != 0 {
			c.said = append(c.said, said{c.now.Sub(testStart), do})
		}
		if do&SendKeepalive != 0 {
			c.at(c.KeepaliveSent(c.now))
		}
	}
	c.now = end
}

// expect compares what was asked for since the last call. Each instant may be
// late by the jitter.
func (c *clock) expect(t *testing.T, want ...said) {
	t.Helper()
	ok := len(want) == len(c.said)
	for i := range min(len(want), len(c.said)) {
		late := c.said[i].after - want[i].after
		ok = ok && c.said[i].do == want[i].do && late >= 0 && late <= MaxJitter
	}
	if !ok {
		t.Errorf("asked for %v, want %v", c.said, want)
	}
	c.said = nil
}

func (c *clock) want(urgent bool) bool {
	send, wake := c.Want(c.now, urgent)
	c.at(wake)
	return send
}

func TestTimersIdle(t *testing.T) {
	c := newClock(0, false)
	c.pass(time.Hour)
	c.expect(t)
	if c.wake != 0 {
		t.Error("an idle session stands in the wheel")
	}
	if size := unsafe.Sizeof(c.Timers); size > 80 {
		t.Errorf("Timers have %d octets, want at most 80", size)
	}
	if size := unsafe.Sizeof(Peer{}) + unsafe.Sizeof(c.Timers) + unsafe.Sizeof(Keypairs{}); size > 400 {
		t.Errorf("a session has %d octets here, want at most 400", size)
	}
}

// Attempts come 5 s and jitter apart, end after 90 s, and begin again when
// there is a reason.
func TestTimersRetryAndGiveUp(t *testing.T) {
	c := newClock(0, false)
	if !c.want(false) {
		t.Fatal("Want of a fresh session does not send")
	}
	if c.want(false) || c.want(true) {
		t.Error("Want sends again at once")
	}
	c.Stop()
	c = newClock(0, false)
	c.want(false)
	c.pass(200 * time.Second)
	sent := 1
	for i, s := range c.said[:len(c.said)-1] {
		gap := s.after
		if i > 0 {
			gap -= c.said[i-1].after
		}
		if s.do != SendInitiation || gap < RekeyTimeout || gap > RekeyTimeout+MaxJitter {
			t.Errorf("attempt %d: %v after %v", i+2, s.do, gap)
		}
		sent++
	}
	last := c.said[len(c.said)-1]
	if sent != int(RekeyAttemptTime/RekeyTimeout) || last.do != NoAnswer || last.after < RekeyAttemptTime || last.after > RekeyAttemptTime+18*MaxJitter {
		t.Errorf("%d attempts, then %v after %v", sent, last.do, last.after)
	}
	c.said = nil
	if c.InFlight() || !c.want(false) {
		t.Error("Want does not send after attempts have ended")
	}
}

func TestTimersFiveSeconds(t *testing.T) {
	c := newClock(0, false)
	c.want(false)
	c.pass(time.Second)
	c.at(c.Complete(c.now))
	c.pass(time.Second)
	if c.want(false) {
		t.Error("an initiation 2 s after the last")
	}
	c.pass(4 * time.Second)
	c.expect(t, said{5 * time.Second, SendInitiation})
	c.at(c.Complete(c.now))

	c.at(c.ResponseSent(c.now)) // at 6 s; arms the 5 s as well
	if c.want(false) {
		t.Error("an initiation right after a response")
	}
	c.pass(10 * time.Millisecond)
	if c.want(true) {
		t.Error("an urgent initiation within 25 ms of a response")
	}
	c.pass(20 * time.Millisecond)
	c.expect(t, said{6025 * time.Millisecond, SendInitiation})
	if c.want(true) {
		t.Error("an urgent initiation replaces one that is 5 ms old")
	}
	c.pass(300 * time.Millisecond)
	c.expect(t, said{6275 * time.Millisecond, SendInitiation})
	c.at(c.Complete(c.now))
	if c.want(true) {
		t.Error("an urgent initiation at the end of a handshake: the peer may have seen the last one a moment ago")
	}
	c.pass(time.Second)
	c.expect(t, said{6350 * time.Millisecond, SendInitiation})
	c.at(c.Complete(c.now))
	c.pass(30 * time.Millisecond)
	if !c.want(true) {
		t.Error("an urgent initiation has to wait after a handshake")
	}

	// A wish that the peer's handshake fulfils is forgotten.
	c = newClock(0, false)
	c.at(c.ResponseSent(c.now))
	c.want(false)
	c.pass(time.Second)
	c.at(c.Complete(c.now))
	c.pass(time.Minute)
	c.expect(t)
}

// A passive keepalive follows 10 s after data, unless something was sent.
func TestTimersKeepalive(t *testing.T) {
	c := newClock(0, false)
	c.at(c.DataReceived(c.now))
	c.pass(3 * time.Second)
	c.at(c.DataReceived(c.now))
	c.pass(30 * time.Second)
	c.expect(t, said{KeepaliveTimeout, SendKeepalive})
	c.at(c.DataReceived(c.now)) // 33 s
	c.pass(9 * time.Second)
	c.at(c.DataSent(c.now))
	c.at(c.KeepaliveReceived(c.now))
	c.pass(time.Minute)
	c.expect(t)
	c.at(c.KeepaliveReceived(c.now)) // answers nothing
	c.pass(time.Minute)
	c.expect(t)
}

// Data without any answer for 15 s starts a handshake.
func TestTimersUnheard(t *testing.T) {
	c := newClock(0, false)
	for range 100 { // however much is sent
		c.at(c.DataSent(c.now))
		c.pass(100 * time.Millisecond)
	}
	c.pass(5*time.Second + MaxJitter)
	c.expect(t, said{15 * time.Second, SendInitiation})
	c.at(c.Complete(c.now))
	c.at(c.DataSent(c.now))
	c.pass(14 * time.Second)
	c.at(c.KeepaliveReceived(c.now))
	c.pass(14 * time.Second)
	c.expect(t)
	c.at(c.KeepaliveSent(c.now)) // waits for no answer
	c.pass(time.Minute)
	c.expect(t)
	c.at(c.DataSent(c.now))
	c.at(c.ResponseSent(c.now)) // the peer's initiation was heard
	c.pass(time.Minute)
	c.expect(t)
}

func TestTimersPersistent(t *testing.T) {
	c := newClock(25*time.Second, false)
	c.pass(60 * time.Second)
	c.expect(t, said{0, SendKeepalive}, said{25 * time.Second, SendKeepalive}, said{50 * time.Second, SendKeepalive})
	c.at(c.KeepaliveReceived(c.now)) // 60 s; any packet puts it off
	c.pass(20 * time.Second)
	c.expect(t)
	c.pass(6 * time.Second)
	c.expect(t, said{85 * time.Second, SendKeepalive})
	c.at(c.SetPersistent(c.now, 0))
	c.pass(time.Hour)
	c.expect(t)
	c.at(c.SetPersistent(c.now, time.Second))
	c.pass(0)
	c.expect(t, said{c.now.Sub(testStart), SendKeepalive})
}

func TestTimersZeroKeys(t *testing.T) {
	c := newClock(0, false)
	c.at(c.Complete(c.now))
	c.pass(500 * time.Second)
	c.at(c.ResponseSent(c.now)) // a new keypair
	c.pass(539 * time.Second)
	c.expect(t)
	c.pass(2 * time.Second)
	c.expect(t, said{1040 * time.Second, WipeKeys})
	c.pass(time.Hour)
	c.expect(t)

	c = newClock(0, false) // what attempts in vain left behind is wiped, too
	c.want(false)
	c.pass(100 * time.Second)
	c.said = nil
	c.pass(540 * time.Second)
	if len(c.said) != 1 || c.said[0].do != WipeKeys {
		t.Errorf("after giving up: %v, want one WipeKeys", c.said)
	}
}

// A passive end never initiates, whatever happens.
func TestTimersPassive(t *testing.T) {
	c := newClock(10*time.Second, true)
	for range 50 {
		if c.want(true) || c.want(false) {
			t.Fatal("a passive end initiates")
		}
		c.at(c.DataSent(c.now))
		c.pass(7 * time.Second)
	}
	c.SetPassive(false)
	c.want(false)
	c.SetPassive(true)
	c.pass(100 * time.Second)
	for _, s := range c.said {
		if s.do != SendKeepalive {
			t.Errorf("%v after %v at a passive end", s.do, s.after)
		}
	}
}

// A busy session seldom moves in the wheel.
func TestTimersBusy(t *testing.T) {
	c := newClock(25*time.Second, false)
	turns := 0
	for range 60_000 {
		for _, wake := range [...]Instant{c.DataSent(c.now), c.DataReceived(c.now)} {
			if wake != 0 {
				turns++
				c.at(wake)
			}
		}
		c.pass(time.Millisecond)
	}
	if turns > 10 {
		t.Errorf("a minute of traffic moved the session %d times in the wheel", turns)
	}
}

// No deadline is ever later than the place in the wheel, in whatever order
// things happen.
func TestTimersNeverSleepThrough(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	c := newClock(0, false)
	for range 200_000 {
		switch rnd.IntN(9) {
		case 0:
			c.at(c.DataSent(c.now))
		case 1:
			c.at(c.DataReceived(c.now))
		case 2:
			c.at(c.KeepaliveReceived(c.now))
		case 3:
			c.want(rnd.IntN(2) == 0)
		case 4:
			c.at(c.ResponseSent(c.now))
		case 5:
			c.at(c.Complete(c.now))
		case 6:
			c.at(c.SetPersistent(c.now, time.Duration(rnd.IntN(30))*time.Second))
		case 7:
			c.at(c.InitiationSent(c.now))
		default:
			c.pass(time.Duration(rnd.ExpFloat64() * float64(5*time.Second)))
		}
		for _, at := range [...]int64{c.retryAt.Load(), c.unheardAt.Load(), c.keepaliveAt.Load(), c.zeroAt.Load()} {
			if at != 0 && (c.wake == 0 || int64(c.wake) > at) {
				t.Fatalf("a deadline at %d, in the wheel at %d", at, c.wake)
			}
		}
	}
}

// Of several callers at once, one sends.
func TestTimersConcurrentWant(t *testing.T) {
	for range 200 {
		c := newClock(0, false)
		var wg sync.WaitGroup
		sent := make(chan bool, 4)
		for range 4 {
			wg.Go(func() {
				if send, _ := c.Want(testStart, false); send {
					sent <- true
				}
				c.DataSent(testStart)
				c.DataReceived(testStart)
				c.Expire(testStart)
			})
		}
		wg.Wait()
		if len(sent) != 1 {
			t.Fatalf("%d of 4 callers send, want 1", len(sent))
		}
	}
}
