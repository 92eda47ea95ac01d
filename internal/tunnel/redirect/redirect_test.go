package redirect

import (
	"errors"
	"testing"
	"time"

	"tunneld/internal/control/wire"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// way has gateways a to d, of which c was not joined, and was at a.
func way() *Way {
	w := &Way{Gateways: []string{"a", "b", "c", "d"}, Joined: func(g string) bool { return g != "c" }}
	w.Dialled("a")
	return w
}

// order is what Next says until nothing is left.
func order(w *Way, home string, now time.Time) string {
	var tried []string
	text := ""
	for g := w.Next(nil, home, now); g != ""; g = w.Next(tried, home, now) {
		tried = append(tried, g)
		text += g
	}
	return text
}

func TestWhereANodeLetsItselfBeSent(t *testing.T) {
	for _, c := range []struct {
		named []string
		want  string
	}{
		{nil, "b"},                     // any other of its own
		{[]string{"d", "b"}, "d"},      // the first that will do
		{[]string{"x", "d"}, "d"},      // not in its configuration
		{[]string{"c", "d"}, "d"},      // not joined
		{[]string{"a"}, ""},            // where it is
		{[]string{"x", "c", "a"}, ""},  // none will do
		{[]string{"", "D", "b "}, ""},  // nearly
		{[]string{"a", "a", "d"}, "d"}, // named twice
	} {
		w := way()
		w.Drains(true, c.named, t0)
		if got := w.Leave().To; got != c.want {
			t.Errorf("a drain that names %q leads to %q, want %q", c.named, got, c.want)
		}
		w = way()
		w.SentOn(c.named)
		if got := w.Next(nil, "", t0); got != c.want && !(c.want == "" && got == "a") {
			t.Errorf("a refusal that names %q leads to %q, want %q, or its own order", c.named, got, c.want)
		}
	}
}

// TestHopLimit: up to the limit the node follows, beyond it the node takes its
// own order and says why, until it has arrived somewhere.
func TestHopLimit(t *testing.T) {
	w := way()
	for n := 1; n <= MaxHops+3; n++ {
		from, to := "b", "d"
		if n%2 == 0 {
			from, to = to, from
		}
		w.Dialled(from)
		w.SentOn([]string{to})
		want := to
		if n > MaxHops {
			want = "a"
		}
		if got := w.Next(nil, "", t0); got != want {
			t.Errorf("sent on %d times, the node goes to %q, want %q", n, got, want)
		}
		if err := w.Err(); errors.Is(err, ErrLoop) != (n > MaxHops) || (err == nil) != (n <= MaxHops) {
			t.Errorf("sent on %d times, err = %v", n, err)
		}
	}
	w.Dialled("a")
	w.Arrived()
	if w.Err() != nil {
		t.Errorf("having arrived: err = %v", w.Err())
	}
	w.SentOn([]string{"d"})
	if got := w.Next(nil, "", t0); got != "d" || w.Err() != nil {
		t.Errorf("sent on again the node goes to %q, %v, want d", got, w.Err())
	}
}

// TestOrder: home alone at first, then the others; where the node was sent before
// all.
func TestOrder(t *testing.T) {
	w := way()
	if got := order(w, "", t0); got != "abcd" {
		t.Errorf("without a connection: %q, want abcd", got)
	}
	w.SentOn([]string{"d"}) // by whoever: the connection lives
	if got := order(w, "b", t0); got != "b" {
		t.Errorf("beside a living transport: %q, want b", got)
	}
	w.Arrived()
	w.Lost(t0)
	for _, c := range []struct {
		after time.Duration
		want  string
	}{{0, "b"}, {Patience - 1, "b"}, {Patience, "bacd"}, {time.Hour, "bacd"}} {
		if got := order(w, "b", t0.Add(c.after)); got != c.want {
			t.Errorf("%v after the transport was lost: %q, want %q", c.after, got, c.want)
		}
	}
	w.Dialled("b")
	w.Drains(true, []string{"x"}, t0.Add(time.Hour))
	if got := order(w, "b", t0); got != "b" {
		t.Errorf("with nowhere to go from a gateway that goes: %q, want b", got)
	}
	w.Drains(true, []string{"d"}, t0.Add(time.Hour))
	if got := order(w, "b", t0); got != "bacd" {
		t.Errorf("lost while it should leave: %q, want bacd", got)
	}
	w.SentOn([]string{"d"})
	if got := order(w, "b", t0); got != "dbac" {
		t.Errorf("sent to d: %q, want dbac", got)
	}
	w.Ended()
	w.Arrived()
	if got := order(w, "", t0); got != "abcd" {
		t.Errorf("anew: %q, want abcd", got)
	}
}

func TestMove(t *testing.T) {
	w := way()
	if to, wait := w.Due(t0); to != "" || wait != 0 {
		t.Errorf("Due of a gateway that stays = %q, %v", to, wait)
	}
	w.Drains(true, []string{"d"}, t0.Add(time.Second))
	if to, wait := w.Due(t0); to != "" || wait != time.Second {
		t.Errorf("Due = %q, %v, want nothing for a second", to, wait)
	}
	now := t0.Add(time.Second)
	if to, _ := w.Due(now); to != "d" {
		t.Errorf("Due = %q, want d", to)
	}
	w.NotMoved(now, func(n int) time.Duration { return time.Duration(n) * time.Minute })
	if to, wait := w.Due(now); to != "" || wait != time.Minute {
		t.Errorf("Due after a failure = %q, %v, want nothing for a minute", to, wait)
	}
	w.Moves()
	if got := order(w, "", now); got != "dabc" || w.Leave() != nil {
		t.Errorf("having moved: %q, leaving %v", got, w.Leave())
	}
	for what, stays := range map[string]func(){
		"it stays":           func() { w.Drains(false, nil, now) },
		"it was restarted":   w.Restarted,
		"nothing is there":   w.Ended,
		"nowhere to move to": func() { w.Drains(true, []string{"x"}, t0) },
	} {
		w.Drains(true, nil, t0)
		stays()
		if to, wait := w.Due(now); to != "" || wait != 0 {
			t.Errorf("%s: Due = %q, %v", what, to, wait)
		}
	}
}

func TestUseless(t *testing.T) {
	w := way()
	if w.Useless(0) {
		t.Error("a connection is useless though nobody was turned away")
	}
	w.TurnedAway()
	if !w.Useless(0) || w.Useless(1) {
		t.Errorf("turned away: useless without a session is %v, with one %v, want true and false", w.Useless(0), w.Useless(1))
	}
	w.Drains(false, nil, t0)
	if w.Useless(0) {
		t.Error("a connection is useless though its gateway stays")
	}
	w.TurnedAway()
	w.Ended()
	if w.Useless(0) {
		t.Error("the next connection is useless from its beginning")
	}
	w.Gateways = w.Gateways[:1]
	w.TurnedAway()
	if w.Useless(0) {
		t.Error("the only gateway is left")
	}
}

// TestSlots: nodes leave in order, within the time that the drain may take,
// whatever chance says.
func TestSlots(t *testing.T) {
	for _, random := range []func(time.Duration) time.Duration{
		func(time.Duration) time.Duration { return 0 }, func(n time.Duration) time.Duration { return n - 1 },
	} {
		for _, n := range []int{0, 1, 2, 7, 1000} {
			d := &Drain{Since: t0, Over: time.Minute, Random: random}
			last := t0
			for i := range n {
				at := d.Slot(i, n)
				if at.Before(last) || at.After(t0.Add(d.Over)) {
					t.Fatalf("node %d of %d leaves at %v, the one before at %v, all within %v", i, n, at, last, d.Over)
				}
				last = at
			}
			if at := d.Late(t0); at.Before(t0) || at.After(t0.Add(d.Over)) {
				t.Errorf("one that comes back leaves at %v", at)
			}
		}
		if got := (&Drain{Since: t0, Random: random}).Slot(3, 5); !got.Equal(t0) {
			t.Errorf("slot of a drain that takes no time = %v, want %v", got, t0)
		}
	}
}

// TestRefuses: what is new is refused, and other gateways are spoken of only where
// some are named.
func TestRefuses(t *testing.T) {
	var stays *Drain
	d := &Drain{}
	for _, r := range []*wire.Result{stays.Refuses(wire.StopError, false), stays.Refuses(wire.StopError, true), d.Refuses(wire.StopError, true)} {
		if r != nil {
			t.Errorf("refused: %+v", r)
		}
	}
	if r := d.Refuses(wire.StopError, false); r.Code != wire.StopError || r.Error != wire.ErrorTryAnother || r.Cause != wire.CauseDraining {
		t.Errorf("without a name: %+v", r)
	}
	d.To = []string{"gw-2.example:443"}
	if r := d.Refuses(wire.CDNNoFacilities, false); r.Code != wire.CDNNoFacilities || r.Error != wire.ErrorTryNamed || r.Cause.Advice() != wire.RetryLater {
		t.Errorf("with a name: %+v", r)
	}
}
