package interop

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/noise"
)

// slack is how much later than its time something may come, and a tenth of it how
// much earlier, because what it is measured from came late: the machine's time
// goes on while it computes.
const slack = 500 * time.Millisecond

// A watch looks at the wire between two ends for what their timers do. The
// dialler starts the handshakes unless a timer makes the other one.
type watch struct {
	*foreign
	far      far
	t        *testing.T
	relay    *process
	dialler  player
	answerer player
	seen     int // datagrams of the relay's record
}

// A player is one of the ends.
type player struct {
	p    *process // on its host
	way  int      // of what it sends
	peer netip.Addr
}

// testForeignTimers has a foreign end and ours hold every timer of the
// protocol, ours as the one that dials or as the one that answers. It takes
// more than half an hour: in the machine of TestKernel, where time does not wait.
func testForeignTimers(t *testing.T, far far, weDial bool) {
	f, r := viaRelay(t, far, 10*time.Millisecond)
	w := &watch{foreign: f, far: far, t: t, relay: r}
	ours := player{f.ours.process, toFar, netip.MustParseAddr("10.1.0.2")}
	theirs := player{r, toUs, netip.MustParseAddr("10.1.0.1")}
	w.dialler, w.answerer = ours, theirs
	if !weDial {
		w.dialler, w.answerer = theirs, ours
	}
	for _, p := range []player{ours, theirs} {
		p.p.call("Collect", Args{})
	}
	for _, c := range []struct {
		name string
		test func(w *watch, t *testing.T)
	}{
		{"rekey after 120 s", (*watch).rekey},
		{"keepalive after 10 s", (*watch).passiveKeepalive},
		{"rekey for what comes after 165 s", (*watch).lateReceive},
		{"persistent keepalive", (*watch).persistentKeepalive},
		{"no key after 180 s", (*watch).reject},
		{"handshake after 15 s without an answer", (*watch).unanswered},
		{"padding", (*watch).padding},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			c.test(w, t)
		})
	}
}

// say has a player send one packet to the other.
func (w *watch) say(p player) {
	w.t.Helper()
	w.talk(1, p)
}

// talk has players send so many packets to each other, one each second.
func (w *watch) talk(n int, players ...player) {
	w.t.Helper()
	var all sync.WaitGroup
	for _, p := range players {
		all.Go(func() {
			if err := p.p.try("Say", Args{Addr: netip.AddrPortFrom(p.peer, pacedPort), Size: n, Delay: time.Second}); err != nil {
				w.t.Error(err)
			}
		})
	}
	all.Wait()
}

// pass lets time pass.
func (w *watch) pass(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

// since is what came by since it was asked last.
func (w *watch) since() (record []passed) {
	w.t.Helper()
	if err := w.relay.client.Call("Node.Passed", Args{Size: w.seen}, &record); err != nil {
		w.t.Fatal(err)
	}
	w.seen += len(record)
	return record
}

// of picks datagrams of one kind that a player sent; of transport messages
// those that are empty.
func (p player) of(kind noise.Kind, record []passed) (picked []passed) {
	for _, d := range record {
		if d.Way == p.way && d.Kind == kind && (kind != noise.KindTransport || d.Size == noise.KeepaliveSize) {
			picked = append(picked, d)
		}
	}
	return picked
}

// lose has the relay lose what is named.
func (w *watch) lose(d drops) { w.relay.call("Lose", Args{Drop: d}) }

// fresh has both ends forget each other and make a first keypair, which the
// dialler starts, and returns when its initiation came by.
func (w *watch) fresh() time.Duration {
	w.t.Helper()
	w.lose(drops{})
	w.ours.do("Remove", Args{})
	w.run("wg", "set", w.dev, "peer", w.peer[0], "remove")
	w.knowsUs("endpoint", relayInside)
	w.ours.call("Add", Args{Device: w.ours.dev, Session: w.ours.session})
	w.pass(time.Second)
	w.since()
	w.say(w.dialler)
	w.pass(time.Second)
	record := w.since()
	starts := w.dialler.of(noise.KindInitiation, record)
	if len(starts) != 1 || len(w.answerer.of(noise.KindInitiation, record)) != 0 {
		w.t.Fatalf("the dialler's first packet made no handshake alone: %+v", record)
	}
	return starts[0].At
}

// rounds is how much later than its time the dialler's timers may come: in the
// kernel's wheel of timers those of more than some seconds lie in places that
// are an eighth of their length apart.
func (w *watch) rounds(d time.Duration) time.Duration {
	if w.dialler.way == toFar || w.far != kernel {
		return 0
	}
	return d / 8
}

// about fails unless what happened at some time did between two others.
func about(t *testing.T, what string, at, least, most time.Duration) {
	t.Helper()
	if at < least-slack/10 || at > most+slack {
		t.Errorf("%s after %v, want %v to %v", what, at, least, most)
	}
}

// rekey has packets go both ways each second: the dialler makes a new keypair
// when it sends with one of 120 s, and nobody else does; no packet is lost.
func (w *watch) rekey(t *testing.T) {
	began := w.fresh()
	before := [2]uint64{w.dialler.p.collected(), w.answerer.p.collected()}
	const seconds = 370
	w.talk(seconds, w.dialler, w.answerer)
	w.pass(time.Second)
	record := w.since()
	last := began
	starts := w.dialler.of(noise.KindInitiation, record)
	for _, s := range starts {
		about(t, "a handshake", s.At-last, noise.RekeyAfterTime, noise.RekeyAfterTime+2*time.Second)
		last = s.At
	}
	if len(starts) != 3 || len(w.answerer.of(noise.KindInitiation, record)) != 0 {
		t.Errorf("%d handshakes of the dialler and %d of the other in %d s, want 3 and none", len(starts), len(w.answerer.of(noise.KindInitiation, record)), seconds)
	}
	if a, b := w.dialler.p.collected()-before[0], w.answerer.p.collected()-before[1]; a != seconds || b != seconds {
		t.Errorf("%d and %d packets arrived, want %d each", a, b, seconds)
	}
}

// passiveKeepalive has each end answer a packet by an empty one after 10 s, if
// it has nothing else to say, and not answer that.
func (w *watch) passiveKeepalive(t *testing.T) {
	w.fresh()
	w.pass(30 * time.Second)
	w.since()
	for _, p := range [][2]player{{w.dialler, w.answerer}, {w.answerer, w.dialler}} {
		w.say(p[0])
		w.pass(40 * time.Second)
		record := w.since()
		answers := p[1].of(noise.KindTransport, record)
		if len(record) != 2 || len(answers) != 1 {
			t.Errorf("one packet made %+v, want itself and an empty one", record)
			continue
		}
		about(t, "the empty packet", answers[0].At-record[0].At, noise.KeepaliveTimeout, noise.KeepaliveTimeout)
	}
}

// lateReceive has a packet come to a dialler that has sent nothing for long:
// with a keypair that would not live to see the answer to its keepalive it
// starts a handshake at once, with a younger one after its keepalive.
func (w *watch) lateReceive(t *testing.T) {
	const late = noise.RejectAfterTime - noise.KeepaliveTimeout - noise.RekeyTimeout
	for _, c := range []struct{ age, after time.Duration }{{late + time.Second, 0}, {late - 25*time.Second, noise.KeepaliveTimeout}} {
		began := w.fresh()
		w.pass(c.age - time.Second) // fresh has waited one
		w.since()
		w.say(w.answerer)
		w.pass(c.after + 2*time.Second)
		record := w.since()
		starts := w.dialler.of(noise.KindInitiation, record)
		if len(starts) != 1 {
			t.Errorf("a packet under a keypair of %v made %+v, want one handshake of the dialler's", c.age, record)
			continue
		}
		about(t, "a handshake for what came", starts[0].At-began-c.age, c.after, c.after)
	}
}

// persistentKeepalive has the dialler show itself each 25 s; an idle session
// always has a keypair that way.
func (w *watch) persistentKeepalive(t *testing.T) {
	const every = 25 * time.Second
	w.fresh()
	set := func(d time.Duration) {
		if w.dialler.way == toFar {
			w.ours.session.Keepalive = d
			w.ours.call("Add", Args{Device: w.ours.dev, Session: w.ours.session})
		} else {
			w.knowsUs("persistent-keepalive", fmt.Sprint(int(d.Seconds())))
		}
	}
	set(every)
	w.pass(every)
	w.since()
	w.pass(16 * every)
	record := w.since()
	var last time.Duration
	for _, d := range record {
		if d.Way != w.dialler.way {
			continue
		}
		if last != 0 && d.Kind == noise.KindTransport && d.At-last > time.Second { // not the end of a handshake
			about(t, "an empty packet", d.At-last, every-slack, every+w.rounds(every))
		}
		last = d.At
	}
	starts := w.dialler.of(noise.KindInitiation, record)
	for i, s := range starts[min(1, len(starts)):] {
		about(t, "a handshake of an idle session", s.At-starts[i].At, noise.RekeyAfterTime, noise.RekeyAfterTime+every)
	}
	if len(starts) < 2 || len(w.answerer.of(noise.KindInitiation, record)) != 0 {
		t.Errorf("%d handshakes in %v, want one each 125 to 150 s, of the dialler alone", len(starts), 16*every)
	}
	set(0)
}

// reject lets no handshake through: data goes on to 180 s, and not beyond. The
// dialler tries again each 5 s.
func (w *watch) reject(t *testing.T) {
	began := w.fresh()
	var d drops
	for way := range d {
		d[way][noise.KindInitiation], d[way][noise.KindResponse] = true, true
	}
	w.lose(d)
	w.talk(200, w.dialler, w.answerer)
	record := w.since()
	for _, p := range []player{w.dialler, w.answerer} {
		var last time.Duration
		for _, d := range record {
			if d.Way == p.way && d.Kind == noise.KindTransport {
				last = d.At
			}
		}
		about(t, "the last packet", last-began, noise.RejectAfterTime-2*time.Second, noise.RejectAfterTime)
	}
	starts := w.dialler.of(noise.KindInitiation, record)
	if len(starts) < 10 {
		t.Fatalf("%d tries, want one each 5 s from 120 s on", len(starts))
	}
	about(t, "the first try", starts[0].At-began, noise.RekeyAfterTime, noise.RekeyAfterTime+2*time.Second)
	for i, s := range starts[1:10] {
		about(t, "another try", s.At-starts[i].At, noise.RekeyTimeout, noise.RekeyTimeout+noise.MaxJitter)
	}
}

// unanswered lets nothing through to the dialler: 15 s after it said something
// it starts a handshake, tries again each 5 s, gives up after 90 s, and begins
// again when it has something to say.
func (w *watch) unanswered(t *testing.T) {
	w.fresh()
	w.pass(20 * time.Second)
	w.since()
	var d drops
	for kind := range d[w.answerer.way] {
		d[w.answerer.way][kind] = true
	}
	w.lose(d)
	w.say(w.dialler)
	w.pass(150 * time.Second)
	record := w.since()
	said := record[0].At
	starts := w.dialler.of(noise.KindInitiation, record)
	if len(starts) < 2 {
		t.Fatalf("a packet without an answer made %+v, want handshakes", record)
	}
	about(t, "the first handshake", starts[0].At-said, 15*time.Second, 15*time.Second+noise.MaxJitter)
	for i, s := range starts[1:] {
		about(t, "another try", s.At-starts[i].At, noise.RekeyTimeout, noise.RekeyTimeout+noise.MaxJitter)
	}
	// Others try 18 times after the first and then once more.
	about(t, "the last try", starts[len(starts)-1].At-starts[0].At, noise.RekeyAttemptTime-noise.RekeyTimeout, noise.RekeyAttemptTime+noise.RekeyTimeout+19*noise.MaxJitter)
	w.lose(drops{})
	w.pass(noise.RejectAfterTime)
	w.since()
	w.say(w.dialler)
	w.pass(time.Second)
	if record := w.since(); len(w.dialler.of(noise.KindInitiation, record)) != 1 || len(w.answerer.of(noise.KindResponse, record)) != 1 {
		t.Errorf("after it gave up a packet made %+v, want a handshake", record)
	}
}

// padding looks at everything that came by.
func (w *watch) padding(t *testing.T) {
	w.seen = 0
	for _, d := range w.since() {
		if d.Kind == noise.KindInvalid || d.Kind == noise.KindTransport && (d.Size-noise.KeepaliveSize)%noise.PaddingMultiple != 0 {
			t.Errorf("a datagram of kind %d has %d octets", d.Kind, d.Size)
		}
	}
	if s := w.ours.now(); s.RxDropped != (engine.Drops{}) {
		t.Errorf("stats = %+v, want nothing of the far end's dropped", s)
	}
}
