package noise

import (
	"cmp"
	"slices"
	"time"
)

// crossingTime bounds how long Confirmed insists on our own keypair after both
// ends initiated at once. It covers a round trip of 1.2 s; a peer that still
// sends with the other pair after it does not have ours.
const crossingTime = 2 * time.Second

// Keypairs are the keypairs of one session: which one sends, and which still
// receive. It is for one goroutine at a time; the caller makes Current known to
// the data path after each change, and takes the indices of what was dropped
// out of its table before it retires it.
type Keypairs struct {
	Current  *Keypair    // sends
	Next     *Keypair    // answered, not yet seen in use: receives
	Previous [2]*Keypair // receive what is still on its way; the second only after a crossing
}

// Dropped are pairs that left the ring, filled from the front.
type Dropped [2]*Keypair

// Initiated makes the pair of our answered initiation the one that sends.
func (r *Keypairs) Initiated(kp *Keypair, now Instant) Dropped { return r.advance(kp, now) }

// Responded keeps a pair made for an answer until the peer uses it. What was
// in that place was never used, and gives way.
func (r *Keypairs) Responded(kp *Keypair) Dropped {
	d := Dropped{r.Next}
	r.Next = kp
	return d
}

// Confirmed is called when a packet opened with a pair. If that is Next, the
// peer has our answer, and the pair sends from now on (promoted). Then a
// handshake of ours still in flight has become needless: the caller wipes it
// and calls Timers.Complete.
//
// After a crossing both ends have both pairs, and without a rule each might
// send with another and neither feel responsible for the next handshake. So the
// end whose key wins ([StaticKey.Wins]) stays with its own pair, and the other
// changes over when the first packet under that pair comes. Only if none comes
// does the winner give way: its pair may be lost at the peer.
func (r *Keypairs) Confirmed(kp *Keypair, now Instant, wins bool) (d Dropped, promoted bool) {
	if kp == nil || kp != r.Next {
		return d, false
	}
	if c := r.Current; wins && kp.Crossed != 0 && c != nil && c.Local == kp.Crossed && now.Sub(c.Created) < crossingTime {
		return d, false
	}
	r.Next = nil
	return r.advance(kp, now), true
}

// advance makes kp the sender. The two before it go on receiving while they are
// young: after a crossing the peer may have packets on their way under either.
func (r *Keypairs) advance(kp *Keypair, now Instant) (d Dropped) {
	n := 0
	drop := func(old *Keypair) {
		if old != nil {
			d[n] = old
			n++
		}
	}
	turn := uint64(1)
	if r.Current != nil {
		turn += r.Current.slot.Turn.Load()
	}
	kp.slot.Turn.Store(turn)
	drop(r.Previous[1])
	r.Previous[1], r.Previous[0], r.Current = r.Previous[0], r.Current, kp
	if old := r.Previous[1]; old != nil && !old.MayReceive(now) {
		drop(old)
		r.Previous[1] = nil
	}
	return d
}

// Restore fills an empty ring with pairs that outlived a process, in any order,
// and returns those it has no place for. Which was sent with last, and which
// was not yet seen in use, stands in their slots.
func (r *Keypairs) Restore(pairs []*Keypair) (dropped []*Keypair) {
	pairs = slices.SortedFunc(slices.Values(pairs), func(a, b *Keypair) int {
		return cmp.Or(cmp.Compare(b.slot.Turn.Load(), a.slot.Turn.Load()), cmp.Compare(b.Created, a.Created))
	})
	places := []**Keypair{&r.Current, &r.Previous[0], &r.Previous[1]}
	for _, kp := range pairs {
		switch {
		case kp.slot.Turn.Load() == 0 && r.Next == nil:
			r.Next = kp
		case kp.slot.Turn.Load() > 0 && len(places) > 0:
			*places[0] = kp
			places = places[1:]
		default:
			dropped = append(dropped, kp)
		}
	}
	return dropped
}

// Clear empties the ring and hands out all that was in it; places may be nil.
func (r *Keypairs) Clear() (all [4]*Keypair) {
	all = [4]*Keypair{r.Current, r.Next, r.Previous[0], r.Previous[1]}
	*r = Keypairs{}
	return all
}
