package tunnel

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"tunneld/internal/store"
	"tunneld/internal/store/storetest"
	"tunneld/internal/tunnel/pool"
)

// journalledRests are the rests in a store, by row.
func journalledRests(t *testing.T, st store.Store) map[string]pool.Rest {
	t.Helper()
	all := map[string]pool.Rest{}
	err := (&journal{st}).each(bucketLeases, func(key string, b []byte) error {
		var v leaseV1
		err := decode(b, &v, &v.Version)
		all[key] = v.Rest
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestRestIsJournalledWithTheEnd: there is no moment at which a gateway that is
// killed has recorded the end of a session and not that its addresses rest.
func TestRestIsJournalledWithTheEnd(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	blocked, release := make(chan struct{}), make(chan struct{})
	gw.m.chores.add("block", func(context.Context) { close(blocked); <-release })
	<-blocked
	if err := gw.m.KillSession(t.Context(), id, "test"); err != nil {
		t.Fatal(err)
	}
	wait(t, "the record of the end", func() bool { return len(gw.ends()) == 1 })
	got := journalledRests(t, gw.store)
	for _, key := range []string{"office/10.77.0.2", "office/fd77::2"} {
		if r := got[key]; r.Owner != "alice" || len(r.Addresses) != 2 {
			t.Errorf("%s rests as %+v, want it alice's", key, r)
		}
	}
	close(release)
	wait(t, "the rests to be flushed", func() bool {
		gw.m.gateway.mu.Lock()
		defer gw.m.gateway.mu.Unlock()
		return len(gw.m.gateway.freed) == 0
	})
}

// TestRestOfARefusedOffer: addresses that were offered and refused rest like those
// of a session.
func TestRestOfARefusedOffer(t *testing.T) {
	gw, node := pair(t)
	established(t, gw, node)
	gw.end()
	gw.cfg.Networks[0].Pools = []netip.Prefix{netip.MustParsePrefix("10.88.0.0/24")}
	node.host.Fail("SetLink", errors.New("no more addresses"))
	gw.run()
	wait(t, "the refusal at both ends", func() bool {
		return node.happened("change-refused", "no more addresses") > 0 && gw.happened("change-refused", "no more addresses") > 0
	})
	wait(t, "the rest of what was offered", func() bool { return journalledRests(t, gw.store)["office/10.88.0.2"].Owner == "alice" })
}

// TestRestsOfOneAddress: of two the later counts, in whatever order they are
// written; with other pools each address goes its own way.
func TestRestsOfOneAddress(t *testing.T) {
	st := storetest.New(t)
	first, second := netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("10.77.0.3")
	six := netip.MustParseAddr("fd77::2")
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, r := range []savedRest{
		{"office", pool.Rest{Owner: "alice", Addresses: []netip.Addr{first, six}, FreedAt: t0.Add(time.Minute)}, nil},
		{"office", pool.Rest{Owner: "bob", Addresses: []netip.Addr{first, six}, FreedAt: t0}, nil},
		{"office", pool.Rest{Owner: "cem", Addresses: []netip.Addr{second, six}, FreedAt: t0.Add(time.Hour)}, nil},
	} {
		if err := st.Update(func(tx store.Tx) error { return r.put(tx) }); err != nil {
			t.Fatal(err)
		}
	}
	got := journalledRests(t, st)
	for key, want := range map[string]string{"office/10.77.0.2": "alice", "office/10.77.0.3": "cem", "office/fd77::2": "cem"} {
		if got[key].Owner != want {
			t.Errorf("%s is %q's, want %q", key, got[key].Owner, want)
		}
	}
}
