package auth

import (
	"slices"
	"sync"
	"testing"
)

// Whoever awaits first, the numbers go through in their order.
func TestOrder(t *testing.T) {
	const n = 100
	var o order
	var got, want []uint64 // got: of whose turn it is
	var wg sync.WaitGroup
	for range n {
		want = append(want, o.take())
	}
	for _, turn := range slices.Backward(want) {
		wg.Go(func() {
			o.await(turn)
			defer o.done()
			got = append(got, turn)
		})
	}
	wg.Wait()
	if !slices.Equal(got, want) {
		t.Errorf("turns in the order %v, want %v", got, want)
	}
}
