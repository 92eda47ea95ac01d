package netlab

import (
	"encoding/binary"
	"math"
	"testing"
	"time"
)

// through sends n numbered packets of the given size, one every step, and
// returns what comes out and when.
func through(im Impairment, n, size int, step time.Duration) (numbers []int, at []time.Duration, fates []fate) {
	l := newDelayLine(im.Seed, 0)
	var now time.Duration
	drain := func(until time.Duration) {
		for {
			due, ok := l.next()
			if !ok || due > until {
				return
			}
			data, _ := l.pop(due)
			numbers = append(numbers, int(binary.BigEndian.Uint32(data)))
			at = append(at, due)
		}
	}
	for i := range n {
		now = time.Duration(i) * step
		drain(now)
		data := make([]byte, max(size, 4))
		binary.BigEndian.PutUint32(data, uint32(i))
		fates = append(fates, l.push(im, data, now))
	}
	drain(math.MaxInt64)
	return numbers, at, fates
}

func TestDelayLineKeepsOrderAndTime(t *testing.T) {
	const step = time.Millisecond
	for _, im := range []Impairment{
		{},
		{Delay: 30 * time.Millisecond},
		{Delay: 10 * time.Millisecond, Jitter: 20 * time.Millisecond, Seed: 3},
	} {
		numbers, at, _ := through(im, 1000, 100, step)
		if len(numbers) != 1000 {
			t.Fatalf("%v: %d of 1000 packets came out", im, len(numbers))
		}
		for i, n := range numbers {
			late := at[i] - time.Duration(n)*step
			if n != i || late < im.Delay || late > im.Delay+im.Jitter {
				t.Fatalf("%v: packet %d came as number %d after %v", im, n, i, late)
			}
		}
	}
}

func TestDelayLineJitterIsSpread(t *testing.T) {
	im := Impairment{Jitter: 20 * time.Millisecond, Seed: 5}
	var sum time.Duration
	_, at, _ := through(im, 2000, 100, 50*time.Millisecond) // apart, so that order does not bind
	for i, a := range at {
		sum += a - time.Duration(i)*50*time.Millisecond
	}
	if mean := sum / 2000; mean < 9*time.Millisecond || mean > 11*time.Millisecond {
		t.Errorf("mean of evenly spread jitter up to 20ms = %v, want about 10ms", mean)
	}
}

// TestDelayLineStatistics checks rates over 20 000 packets: five standard
// deviations of a 10 % event are 1.1 %.
func TestDelayLineStatistics(t *testing.T) {
	const n = 20000
	near := func(name string, got int, want float64) {
		t.Helper()
		if share := float64(got) / n; math.Abs(share-want) > 0.011 {
			t.Errorf("%s: share = %.4f, want %.2f ± 0.011", name, share, want)
		}
	}
	numbers, _, _ := through(Impairment{Loss: 0.1, Seed: 1}, n, 100, time.Millisecond)
	near("lost", n-len(numbers), 0.1)

	numbers, _, _ = through(Impairment{Duplicate: 0.1, Seed: 1}, n, 100, time.Millisecond)
	near("doubled", len(numbers)-n, 0.1)

	numbers, _, _ = through(Impairment{Reorder: 0.1, Seed: 1}, n, 100, time.Millisecond)
	late, highest := 0, -1
	for _, number := range numbers {
		if number < highest {
			late++
			if highest-number > 6 { // three, while up to three others are held too
				t.Fatalf("packet %d came after %d", number, highest)
			}
		}
		highest = max(highest, number)
	}
	near("overtaken", late, 0.1)
	if len(numbers) != n {
		t.Errorf("reordering: %d packets came out, want %d", len(numbers), n)
	}
}

func TestDelayLineHoldEnds(t *testing.T) {
	l := newDelayLine(1, 0)
	if f := l.push(Impairment{Reorder: 1}, []byte("alone"), time.Second); !f.reordered {
		t.Fatalf("push with Reorder 1: fate = %+v, want reordered", f)
	}
	if due, ok := l.next(); !ok || due != time.Second+reorderHold {
		t.Errorf("held packet that nothing follows: next() = %v, %v, want %v", due, ok, time.Second+reorderHold)
	}
	l.pop(time.Second + reorderHold)
	l.push(Impairment{}, []byte("later"), 2*time.Second) // must not look for the one that has gone
	if data, ok := l.pop(2 * time.Second); !ok || string(data) != "later" {
		t.Errorf("pop = %q, %v, want the later packet", data, ok)
	}
}

func TestDelayLineRate(t *testing.T) {
	im := Impairment{Rate: 8e6} // 1000 octets a millisecond
	_, at, _ := through(im, 100, 1000, 0)
	for i, a := range at {
		if want := time.Duration(i+1) * time.Millisecond; a != want {
			t.Fatalf("packet %d left at %v, want %v", i, a, want)
		}
	}
	_, all, fates := through(im, 1000, 1000, 0)
	if len(all) != 201 || !fates[len(fates)-1].overflow { // 200 ms of backlog and the one being sent
		t.Errorf("1000 packets at once: %d passed, last fate %+v, want 201 and overflow", len(all), fates[len(fates)-1])
	}
}

func TestDelayLineSameSeedSameFate(t *testing.T) {
	im := Impairment{Loss: 0.3, Reorder: 0.2, Duplicate: 0.1, Jitter: time.Millisecond, Seed: 7}
	_, _, first := through(im, 500, 100, time.Millisecond)
	_, _, again := through(im, 500, 700, 2*time.Millisecond) // size and time do not matter
	im.Seed = 8
	_, _, other := through(im, 500, 100, time.Millisecond)
	same := 0
	for i := range first {
		if first[i] != again[i] {
			t.Fatalf("packet %d: fate = %+v, then %+v with the same seed", i, first[i], again[i])
		}
		if first[i] == other[i] {
			same++
		}
	}
	if same == len(first) {
		t.Error("another seed: every fate is the same")
	}
}

func TestDelayLineClear(t *testing.T) {
	l := newDelayLine(1, 0)
	for range 3 {
		l.push(Impairment{Delay: time.Second, Reorder: 0.5}, []byte("x"), 0)
	}
	if n := l.clear(); n != 3 {
		t.Errorf("clear() = %d, want 3", n)
	}
	if _, ok := l.next(); ok {
		t.Error("a cleared line has a next packet")
	}
	l.push(Impairment{}, []byte("y"), time.Second)
	if _, ok := l.pop(time.Second); !ok {
		t.Error("a packet pushed after clear does not come out")
	}
}

func TestImpairmentString(t *testing.T) {
	im := Impairment{Delay: 5 * time.Millisecond, Loss: 0.01, Rate: 1e8, Seed: 4}
	if got, want := im.String(), "delay 5ms, loss 1 %, rate 100 Mbit/s"; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
	if got := (Impairment{}).String(); got != "" {
		t.Errorf("String() of nothing = %q, want none", got)
	}
}
