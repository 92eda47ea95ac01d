package auth

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"tunneld/internal/session"
	"tunneld/internal/store/storetest"
)

var (
	ticketNow  = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	ticketNode = session.ID{1: 7}
	ticketGW   = session.ID{1: 8}
)

func newKeep(t testing.TB) Keep { return Keep{Keys: storetest.New(t), Book: storetest.New(t)} }

func openTickets(t testing.TB, k Keep, now time.Time) *Tickets {
	t.Helper()
	x, err := OpenTickets(k, ticketGW, now, time.Hour)
	if err != nil {
		t.Fatalf("OpenTickets = %v", err)
	}
	return x
}

func ticketOf(id byte, until time.Time) Ticket {
	return Ticket{
		Until: until, Session: session.ID{2: id}, Network: "office", Owner: "alice", PeerKey: [32]byte{3}, KeyEpoch: 4,
		Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.2")}, Began: ticketNow, Resumes: 5, RxBytes: 6, TxBytes: 7,
	}
}

func seal(t testing.TB, x *Tickets, v Ticket) []byte {
	t.Helper()
	b, err := x.Seal(ticketNode, v)
	if err != nil {
		t.Fatalf("Seal = %v", err)
	}
	return b
}

// reopened is what the next process of the gateway knows.
func reopened(t testing.TB, x *Tickets, now time.Time) *Tickets {
	t.Helper()
	if err := x.Save(); err != nil {
		t.Fatal(err)
	}
	return openTickets(t, x.keep, now)
}

func wantTicket(t *testing.T, x *Tickets, what string, b []byte, node session.ID, now time.Time, want error) {
	t.Helper()
	v, err := x.Open(b, node, now)
	if !errors.Is(err, want) || err == nil && want != nil {
		t.Errorf("%s: Open = %+v, %v; want %v", what, v, err, want)
	}
}

func TestTicket(t *testing.T) {
	x := openTickets(t, newKeep(t), ticketNow)
	until := ticketNow.Add(time.Hour)
	first := seal(t, x, ticketOf(1, until))
	second := seal(t, x, ticketOf(1, until))
	third := seal(t, x, ticketOf(1, until))
	other := seal(t, x, ticketOf(2, until))
	x = reopened(t, x, ticketNow)
	v, err := x.Open(third, ticketNode, ticketNow)
	want := ticketOf(1, until)
	if err != nil || v.Session != want.Session || v.PeerKey != want.PeerKey || v.KeyEpoch != 4 || v.Addresses[0] != want.Addresses[0] ||
		!v.Began.Equal(want.Began) || v.Resumes != 5 || v.RxBytes != 6 || v.TxBytes != 7 || v.Network != "office" || v.Owner != "alice" {
		t.Errorf("Open = %+v, %v; want %+v", v, err, want)
	}
	wantTicket(t, x, "the one before, which the node may have", second, ticketNode, ticketNow, nil)
	wantTicket(t, x, "the one before that", first, ticketNode, ticketNow, ErrTicketOld)
	wantTicket(t, x, "another node's", third, session.ID{1: 9}, ticketNow, ErrTicketForeign)
	wantTicket(t, x, "when its time is over", third, ticketNode, until, ErrTicketOld)
	wantTicket(t, openTickets(t, newKeep(t), ticketNow), "another gateway's", third, ticketNode, ticketNow, ErrTicketForeign)
	for i := range third {
		bad := append([]byte(nil), third...)
		bad[i] ^= 4
		wantTicket(t, x, "a changed octet", bad, ticketNode, ticketNow, ErrTicketForeign)
	}

	x.Used(v, third)
	wantTicket(t, x, "used", third, ticketNode, ticketNow, ErrTicketUsed)
	wantTicket(t, x, "older than one that was used", second, ticketNode, ticketNow, ErrTicketOld)
	x = reopened(t, x, ticketNow)
	wantTicket(t, x, "used, after a restart", third, ticketNode, ticketNow, ErrTicketUsed)
	fourth := seal(t, x, ticketOf(1, until))
	wantTicket(t, x, "the next of a session that was rebuilt", fourth, ticketNode, ticketNow, nil)
	wantTicket(t, x, "another session's", other, ticketNode, ticketNow, nil)
	x.Ended(v.Session)
	x = reopened(t, x, ticketNow)
	wantTicket(t, x, "of a session that ended", fourth, ticketNode, ticketNow, ErrTicketOld)
	if got := x.Leases(ticketNow); len(got) != 1 || got[0].Owner != "alice" || got[0].Network != "office" || len(got[0].Addresses) != 1 {
		t.Errorf("Leases = %+v, want the one that may come back", got)
	}
}

// TestTicketKeysRotate: a key seals for a day, and opens for as long as its
// tickets live.
func TestTicketKeysRotate(t *testing.T) {
	k := newKeep(t)
	x := openTickets(t, k, ticketNow)
	day := ticketNow.Add(keyLife)
	b := seal(t, x, ticketOf(1, day.Add(30*time.Minute)))
	if err := x.Rotate(day, time.Hour); err != nil {
		t.Fatal(err)
	}
	if len(x.ring) != 2 {
		t.Errorf("%d keys after a day, want the old and the new", len(x.ring))
	}
	x = reopened(t, x, day)
	wantTicket(t, x, "sealed with the old key", b, ticketNode, day, nil)
	if c := seal(t, x, ticketOf(1, day.Add(time.Hour))); string(c[:ticketHeader]) == string(b[:ticketHeader]) {
		t.Error("the old key seals still")
	}
	late := day.Add(time.Hour + time.Second)
	if err := x.Rotate(late, time.Hour); err != nil || len(x.ring) != 1 {
		t.Errorf("Rotate = %v, %d keys are left, want one", err, len(x.ring))
	}
	wantTicket(t, reopened(t, x, late), "with a key that is gone", b, ticketNode, ticketNow, ErrTicketForeign)
}

// TestTicketsOfTheDead: what is forgotten of old sessions makes no ticket good
// again, not even when the clock is set back.
func TestTicketsOfTheDead(t *testing.T) {
	x := openTickets(t, newKeep(t), ticketNow)
	b := seal(t, x, ticketOf(1, ticketNow.Add(time.Minute)))
	x.Ended(session.ID{2: 1})
	if err := x.Rotate(ticketNow.Add(time.Hour), time.Hour); err != nil {
		t.Fatal(err)
	}
	if len(x.floors) != 0 {
		t.Errorf("%d sessions are remembered whose tickets are over", len(x.floors))
	}
	x = reopened(t, x, ticketNow)
	wantTicket(t, x, "of a session that is forgotten", b, ticketNode, ticketNow, ErrTicketOld)
}

// TestSerialsNeverComeAgain: not after a restart, and not where the book was lost.
func TestSerialsNeverComeAgain(t *testing.T) {
	x := openTickets(t, newKeep(t), ticketNow)
	until := ticketNow.Add(time.Hour)
	serial := func() uint64 {
		v, err := x.Open(seal(t, x, ticketOf(1, until)), ticketNode, ticketNow)
		if err != nil {
			t.Fatal(err)
		}
		return v.Serial
	}
	last := serial()
	for range 3 {
		x = openTickets(t, x.keep, ticketNow) // killed: nothing was saved
		if now := serial(); now <= last {
			t.Errorf("serial %d after %d", now, last)
		} else {
			last = now
		}
	}
	b := seal(t, x, ticketOf(1, until))
	x = openTickets(t, Keep{x.keep.Keys, storetest.New(t)}, ticketNow)
	v, err := x.Open(b, ticketNode, ticketNow)
	if err != nil {
		t.Fatalf("with a lost book: Open = %v", err)
	}
	x.Used(v, b)
	wantTicket(t, x, "the next after a lost book", seal(t, x, ticketOf(1, until)), ticketNode, ticketNow, nil)
}

// TestTicketsWithoutBook: where nothing can be written no ticket is given.
func TestTicketsWithoutBook(t *testing.T) {
	book := storetest.New(t)
	x := openTickets(t, Keep{storetest.New(t), book}, ticketNow)
	book.FailUpdates(1)
	if _, err := x.Seal(ticketNode, ticketOf(1, ticketNow.Add(time.Hour))); !errors.Is(err, storetest.ErrInjected) {
		t.Errorf("Seal = %v, want the book's error", err)
	}
	b := seal(t, x, ticketOf(1, ticketNow.Add(time.Hour)))
	book.FailUpdates(1)
	if err := x.Save(); !errors.Is(err, storetest.ErrInjected) {
		t.Errorf("Save = %v, want the book's error", err)
	}
	v, _ := x.Open(b, ticketNode, ticketNow)
	x.Used(v, b)
	wantTicket(t, reopened(t, x, ticketNow), "saved at the second try", b, ticketNode, ticketNow, ErrTicketUsed)
}

// FuzzTicket is a node that makes tickets up.
func FuzzTicket(f *testing.F) {
	x := openTickets(f, newKeep(f), ticketNow)
	good := seal(f, x, ticketOf(1, ticketNow.Add(time.Hour)))
	f.Add(good)
	f.Add(good[:ticketHeader])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := x.Open(b, ticketNode, ticketNow); err == nil && string(b) != string(good) {
			t.Errorf("%x opens", b)
		}
	})
}
