package auth

import "sync"

// order lets in, one after the other, those who took a number. The zero value is
// ready.
type order struct {
	mu    sync.Mutex // guards everything below
	taken uint64     // the last number given out
	over  uint64     // every number up to here is done
	turn  map[uint64]chan struct{}
}

// take gives out the next number, from 1 on. Who has one must await it.
func (o *order) take() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.taken++
	return o.taken
}

// await returns when every number before n is done. Then the caller calls done.
func (o *order) await(n uint64) {
	o.mu.Lock()
	if n == o.over+1 {
		o.mu.Unlock()
		return
	}
	if o.turn == nil {
		o.turn = map[uint64]chan struct{}{}
	}
	turn := make(chan struct{})
	o.turn[n] = turn
	o.mu.Unlock()
	<-turn
}

// done lets the next one in.
func (o *order) done() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over++
	if next := o.turn[o.over+1]; next != nil {
		delete(o.turn, o.over+1)
		close(next)
	}
}
