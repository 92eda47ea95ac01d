package noise

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"golang.zx2c4.com/wireguard/replay"
)

// The window is compared with a set of all counters, and with wireguard-go's.
func TestWindowAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SampledFrom([]int{2, 4, 128}).Draw(t, "words")
		w := make(Window, 1+words)
		reach := uint64(words-1) * wordBits
		var foreign replay.Filter
		seen, last := map[uint64]bool{}, uint64(0)
		for range rapid.IntRange(1, 300).Draw(t, "n") {
			var c uint64
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
				c = last + rapid.Uint64Range(1, 3).Draw(t, "ahead")
			case 1:
				c = last + rapid.Uint64Range(0, 3*reach).Draw(t, "jump")
			case 2:
				c = last - min(last, rapid.Uint64Range(0, reach+130).Draw(t, "behind"))
			default:
				c = rapid.Uint64Range(0, 1<<62).Draw(t, "any")
			}
			want := !seen[c] && (c > last || last-c <= reach)
			if got := w.Accept(c); got != want {
				t.Fatalf("Accept(%d) with the last %d = %v, want %v", c, last, got, want)
			}
			if words == 128 {
				if got := foreign.ValidateCounter(c, RejectAfterMessages); got != want {
					t.Fatalf("wireguard-go says %v of %d after %d, want %v", got, c, last, want)
				}
			}
			seen[c] = true
			last = max(last, c)
			if w.Last() != last {
				t.Fatalf("Last() = %d, want %d", w.Last(), last)
			}
		}
	})
}

// What another process finds after a kill is some moment in the middle of
// Accept. Whatever moment: a counter that was accepted is not accepted again.
// The moments are taken by reading along: words in reach of a highest counter
// that has not moved meanwhile must not have been cleared.
func TestWindowOrder(t *testing.T) {
	const words, jump = 4096, 2000 // wide, so that there is time to look in between
	w := make(Window, 1+words)
	var stop atomic.Bool
	done, ready := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(done)
		close(ready)
		for back := uint64(jump); !stop.Load(); back++ {
			if back > words-2 {
				back = jump
			}
			last := atomic.LoadUint64(&w[0])
			block := last / wordBits
			if block < words {
				continue
			}
			bits := atomic.LoadUint64(&w[1+(block-back)%words])
			if bits == 0 && last == atomic.LoadUint64(&w[0]) {
				done <- fmt.Sprintf("with the last %d, what was accepted from %d on is forgotten", last, (block-back)*wordBits)
				return
			}
		}
	}()
	<-ready
	block := uint64(0)
	for range 1000 { // jumps over some words, then a bit in each of them
		block += jump
		for b := block; b > block-jump; b-- {
			w.Accept(b * wordBits)
		}
		if len(done) > 0 {
			break
		}
	}
	stop.Store(true)
	if msg := <-done; msg != "" {
		t.Error(msg)
	}
}

// Every state that a kill can leave behind, in the order that Accept promises,
// refuses what was accepted before.
func TestWindowAfterKill(t *testing.T) {
	for _, jump := range []uint64{1, 63, 64, 200, 1000} {
		before := make(Window, 1+8)
		var accepted []uint64
		for c := uint64(0); c < 700; c += 3 {
			before.Accept(c)
			accepted = append(accepted, c)
		}
		after := slices.Clone(before)
		next := before.Last() + jump
		after.Accept(next)
		moment := slices.Clone(before)
		moment[0] = after[0]
		checkReplays(t, moment, accepted)
		for i := before.Last()/wordBits + 1; i <= next/wordBits; i++ {
			moment[1+i%8] = 0
			checkReplays(t, moment, accepted)
		}
		checkReplays(t, after, append(accepted, next))
	}
}

func checkReplays(t *testing.T, w Window, accepted []uint64) {
	t.Helper()
	for _, c := range accepted {
		if slices.Clone(w).Accept(c) {
			t.Errorf("counter %d is accepted twice with the last %d", c, w.Last())
		}
	}
}

// TestMend: after a kill between moving the highest counter and clearing the
// words it moved over, no packet that is still to come is refused, and none
// that was taken comes in again.
func TestMend(t *testing.T) {
	for _, gap := range []uint64{1, 2, 63, 64, 65, 200} {
		w := make(Window, WindowWords)
		last := uint64(2*(WindowWords-1)*wordBits - 1) // every bit of the window is set
		for c := range last + 1 {
			w.Accept(c)
		}
		w[0] = last + gap // killed here
		w.Mend()
		for c := last + gap; c > last+gap-100; c-- {
			if taken := c <= last || c == last+gap; taken && w.Accept(c) {
				t.Errorf("gap %d: counter %d, %d after the last, is accepted again", gap, c, int64(c-last))
			}
		}
		for c := last + gap + 1; c < last+gap+5000; c++ {
			if !w.Accept(c) {
				t.Fatalf("gap %d: counter %d, %d after the last, is refused", gap, c, c-last)
			}
		}
	}
	fresh := make(Window, WindowWords)
	fresh.Mend()
	if !fresh.Accept(0) {
		t.Error("a window that has seen nothing refuses the first packet")
	}
	fresh.Mend()
	if fresh.Accept(0) || !fresh.Accept(1) {
		t.Error("a mended window accepts its first packet again, or refuses its second")
	}
}
