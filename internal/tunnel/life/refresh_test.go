package life

import (
	"testing"
	"time"

	"tunneld/internal/control/wire"
)

func TestPolicy(t *testing.T) {
	node, gateway := wire.RefresherNode, wire.RefresherGateway
	minute, hour := time.Minute, time.Hour
	for _, tt := range []struct {
		name   string
		policy Policy
		asked  *wire.Expires
		want   wire.Expires
		floor  time.Duration // of the refusal
	}{
		{"a node of a release before", Policy{Longest: hour, Refresher: gateway}, nil, wire.Expires{}, 0},
		{"nobody wishes any", Policy{Refresher: gateway}, &wire.Expires{}, wire.Expires{}, 0},
		{"nobody wishes any, but one names a refresher", Policy{Refresher: gateway}, &wire.Expires{Refresher: node}, wire.Expires{}, 0},
		{"the network's", Policy{Longest: hour, Refresher: gateway}, &wire.Expires{}, wire.Expires{After: hour, Refresher: gateway}, 0},
		{"the node's", Policy{Refresher: gateway}, &wire.Expires{After: minute}, wire.Expires{After: minute, Refresher: gateway}, 0},
		{"the shorter of both", Policy{Longest: hour, Refresher: gateway}, &wire.Expires{After: minute, Refresher: node}, wire.Expires{After: minute, Refresher: node}, 0},
		{"no longer than the network's", Policy{Longest: hour, Refresher: node}, &wire.Expires{After: 2 * hour}, wire.Expires{After: hour, Refresher: node}, 0},
		{"the floor itself", Policy{Least: minute, Refresher: node}, &wire.Expires{After: minute}, wire.Expires{After: minute, Refresher: node}, 0},
		{"below the floor", Policy{Least: minute, Longest: hour}, &wire.Expires{After: minute - time.Second}, wire.Expires{}, minute},
	} {
		got, r := tt.policy.Answer(tt.asked)
		floor := time.Duration(0)
		if r != nil {
			floor = r.Floor
			if r.Cause != wire.CauseTooShort || got != (wire.Expires{}) {
				t.Errorf("%s: refused by %+v, beside %+v", tt.name, r, got)
			}
		}
		if got != tt.want || floor != tt.floor {
			t.Errorf("%s: %+v, floor %v; want %+v, %v", tt.name, got, floor, tt.want, tt.floor)
		}
	}
}

// TestRefreshIsDue: the refresher refreshes at half of the time and again after
// every twelfth; the other end never does; both are over together.
func TestRefreshIsDue(t *testing.T) {
	agreed := wire.Expires{After: 12 * time.Minute, Refresher: wire.RefresherNode}
	own, theirs := New(wire.Lifetime{}, 0, time.Time{}, minutes(0), time.Now()), New(wire.Lifetime{}, 0, time.Time{}, minutes(0), time.Now())
	own.Refresh.Agreed(agreed, wire.RefresherNode, minutes(0))
	theirs.Refresh.Agreed(agreed, wire.RefresherGateway, minutes(0))
	due := func(want ...int) {
		t.Helper()
		var got []int
		for n := range 30 {
			if own.RefreshDue(minutes(n), 0) {
				got = append(got, n)
				if len(got) == len(want) {
					break
				}
			}
			if theirs.RefreshDue(minutes(n), 0) {
				t.Errorf("the end that does not refresh does, in minute %d", n)
			}
		}
		for i := range want {
			if len(got) <= i || got[i] != want[i] {
				t.Fatalf("refreshed in the minutes %v, want %v", got, want)
			}
		}
	}
	due(6, 7, 8)
	own.Refresh.Again(minutes(8))
	due(14, 15)
	for _, l := range []*Life{&own, &theirs} {
		l.Refresh.Again(minutes(20))
		if at := l.Refresh.NextAt(); at != minutes(26) {
			t.Errorf("the next refresh is due at %v, want %v", time.Duration(at), time.Duration(minutes(26)))
		}
		if at := l.HardTo(minutes(20), time.Now()); at != minutes(32) {
			t.Errorf("the data plane stops at %v, want %v", time.Duration(at), time.Duration(minutes(32)))
		}
		if reached, _ := l.Look(minutes(31), time.Now(), 0, true); reached != nil {
			t.Errorf("over before its time: %+v", reached)
		}
		if reached, _ := l.Look(minutes(32), time.Now(), 0, true); reached == nil || reached.Cause != wire.CauseUnrefreshed {
			t.Errorf("at its end: %+v", reached)
		}
	}
	none := New(wire.Lifetime{}, 0, time.Time{}, minutes(0), time.Now())
	if none.RefreshDue(minutes(9999), 0) || none.Refresh.NextAt() != Never {
		t.Error("what has no lifetime is refreshed")
	}
}

// TestRefreshIsEarlyAtRandom: by no more than a twelfth.
func TestRefreshIsEarlyAtRandom(t *testing.T) {
	for _, part := range []float64{0, 0.5, 0.999} {
		l := New(wire.Lifetime{}, 0, time.Time{}, minutes(0), time.Now())
		l.Refresh.Agreed(wire.Expires{After: 12 * time.Minute, Refresher: wire.RefresherNode}, wire.RefresherNode, minutes(0))
		l.RefreshDue(minutes(0), part)
		if at := l.Refresh.NextAt(); at > minutes(6) || at <= minutes(5) || (part == 0) != (at == minutes(6)) {
			t.Errorf("with a part of %v it is due at %v", part, time.Duration(at-minutes(0)))
		}
	}
}

// TestLastRefreshOutlivesTheProcess, which counts on where it was.
func TestLastRefreshOutlivesTheProcess(t *testing.T) {
	wall := time.Now()
	agreed := wire.Expires{After: time.Hour, Refresher: wire.RefresherGateway}
	l := New(wire.Lifetime{}, 0, time.Time{}, minutes(0), wall)
	l.Refresh.Agreed(agreed, wire.RefresherGateway, minutes(0))
	l.Refresh.Again(minutes(10))
	a := l.Ages(minutes(15), wall.Add(15*time.Minute), "boot")
	if a == nil {
		t.Fatal("nothing is journalled of a session with a lifetime")
	}
	again := New(wire.Lifetime{}, 0, time.Time{}, minutes(20), wall.Add(20*time.Minute))
	again.Refresh.Agreed(agreed, wire.RefresherGateway, minutes(20))
	again.Restore(a, minutes(20), wall.Add(20*time.Minute), "boot")
	if again.Refresh.At != minutes(10) {
		t.Errorf("refreshed last at %v, want %v", time.Duration(again.Refresh.At), time.Duration(minutes(10)))
	}
}
