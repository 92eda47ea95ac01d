package meter

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tunneld/internal/tunnel/engine"
)

func TestPasses(t *testing.T) {
	for _, c := range []struct {
		name     string
		gate     engine.Gate
		to       engine.Direction
		deadline time.Duration // from now; 0: none
		rx, tx   string        // why not; "" if they pass
		shut     bool
	}{
		{"open", engine.Open, engine.Duplex, 0, "", "", false},
		{"in time", engine.Open, engine.Duplex, time.Hour, "", "", false},
		{"closed", engine.Closed, engine.Duplex, 0, "gate", "gate", true},
		{"quarantined", engine.Quarantined, engine.Duplex, 0, "gate", "gate", false},
		{"over", engine.Open, engine.Duplex, -time.Nanosecond, "deadline", "deadline", true},
		{"long over", engine.Open, engine.Duplex, -200 * 365 * 24 * time.Hour, "deadline", "deadline", true},
		{"send only", engine.Open, engine.SendOnly, 0, "direction", "", false},
		{"receive only", engine.Open, engine.ReceiveOnly, 0, "", "direction", false},
	} {
		var m Meter
		m.SetGate(c.gate)
		m.SetDirection(c.to)
		if c.deadline != 0 {
			m.SetDeadline(time.Now().Add(c.deadline))
		}
		now := Now()
		for w, want := range map[Way]string{Rx: c.rx, Tx: c.tx} {
			got := ""
			if why, ok := m.Passes(w, now); !ok {
				got = map[engine.Cause]string{engine.CauseGate: "gate", engine.CauseDeadline: "deadline", engine.CauseDirection: "direction"}[why]
			}
			if got != want {
				t.Errorf("%s, way %d: stopped by %q, want %q", c.name, w, got, want)
			}
		}
		if got := m.Shut(now); got != c.shut {
			t.Errorf("%s: Shut = %v, want %v", c.name, got, c.shut)
		}
	}
	var m Meter
	m.SetGate(engine.Open)
	m.SetDeadline(time.Now().Add(time.Minute))
	if at := m.ends.Load(); at < Now()+int64(50*time.Second) || at > Now()+int64(61*time.Second) {
		t.Errorf("a deadline in a minute is %v from now", time.Duration(at-Now()))
	}
	m.SetDeadline(time.Time{})
	if m.Shut(Now()) {
		t.Error("a deadline that was taken away still counts")
	}
}

// TestRate: what passes in any span is at most the burst and what the rate
// allows in that span, and not much less when more is asked for.
func TestRate(t *testing.T) {
	var m Meter
	const rate, burst, size = 1_000_000, 10_000, 1000
	m.SetRate(Tx, engine.Rate{BytesPerSecond: rate, Burst: burst})
	passed, now := 0, int64(time.Hour)
	for ; now < int64(time.Hour+2*time.Second); now += int64(100 * time.Microsecond) { // ten times as many as allowed
		if m.Take(Tx, size, now) {
			passed += size
		}
	}
	if want := 2*rate + burst; passed > want || passed < want-2*size {
		t.Errorf("%d octets passed in 2 s, want about %d", passed, want)
	}
	var s engine.Stats
	if m.Read(&s); s.TxDropped[engine.CauseRate] != 20_000-uint64(passed/size) || s.RxDropped.Total() != 0 {
		t.Errorf("dropped = %+v, want all that did not pass", s)
	}
	if !m.Take(Rx, 1<<30, now) {
		t.Error("the other direction is bounded, too")
	}
	m.SetRate(Tx, engine.Rate{BytesPerSecond: rate, Burst: burst})
	if m.Take(Tx, burst, now) {
		t.Error("to set the same rate again fills the bucket")
	}
	m.SetRate(Tx, engine.Rate{})
	if !m.Take(Tx, 1<<30, now) {
		t.Error("no bound any more, and yet nothing passes")
	}
	for _, r := range []engine.Rate{{BytesPerSecond: 1}, {BytesPerSecond: 1<<64 - 1}, {BytesPerSecond: 1 << 40, Burst: 1<<64 - 1}} {
		l := newLimit(r)
		if !l.take(1, now) {
			t.Errorf("%+v lets not even the first octet through", r)
		}
	}
}

// TestRateOfMany: threads that take at once get no more together than one.
func TestRateOfMany(t *testing.T) {
	var m Meter
	m.SetRate(Rx, engine.Rate{BytesPerSecond: 1, Burst: 1000})
	var passed atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				if m.Take(Rx, 1, 1) {
					passed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if passed.Load() != 1000 {
		t.Errorf("%d octets passed, want the 1000 of the burst", passed.Load())
	}
}

func TestInherit(t *testing.T) {
	var old, m Meter
	old.Count(Rx, 1, 20)
	old.Count(Tx, 3, 40)
	old.Drop(Tx, engine.CauseNoKey, 5)
	m.Inherit(&old)
	var got, want engine.Stats
	m.Read(&got)
	old.Read(&want)
	if got != want || got.TxDropped.Total() != 5 {
		t.Errorf("inherited %+v, want %+v", got, want)
	}
}

// TestConfigure: a session that is to be open does not let packets through
// before the engine is ready, nor does one that was open stop meanwhile.
func TestConfigure(t *testing.T) {
	var m Meter
	m.Configure(engine.Session{Gate: engine.Open})
	if _, ok := m.Passes(Rx, Now()); ok || m.Shut(Now()) {
		t.Error("a new session that is to be open: want handshakes and no packets")
	}
	m.SetGate(engine.Open)
	m.Configure(engine.Session{Gate: engine.Open})
	if _, ok := m.Passes(Rx, Now()); !ok {
		t.Error("an open session that stays open was closed meanwhile")
	}
	m.Configure(engine.Session{Gate: engine.Closed})
	if !m.Shut(Now()) {
		t.Error("a session that is to be closed was not closed at once")
	}
}
