package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"tunneld/internal/netlab"
)

// configured is node with more keys of [data].
func (w *world) configured(host, keys string) *netlab.Daemon {
	w.t.Helper()
	d := w.net.Hosts[host].Daemon(bin, "node")
	w.check(d.Init(w.patience(), "--name", host))
	w.check(d.Configure(dataSection(w.engines.nodes, keys)))
	w.start(d)
	w.join(w.hq, d, host)
	w.ctl(d, "up", office)
	return d
}

// TestDataRekey changes the preshared key again and again under a probe and a
// flow that takes what it gets: no more packets are lost than without.
func TestDataRekey(t *testing.T) { mixed(t, testDataRekey) }

func testDataRekey(t *testing.T, e engines, short bool) {
	every, changes := "8s", uint32(1) // wireguard-go's handshakes are 5 s apart
	switch native := (engines{"native", "native"}); {
	case e == native || e == engines{}:
		every, changes = "20ms", 1000 // as fast as the protocol goes
	case os.Getenv("TUNNELD_LONG") == "1" && !short:
		changes = 20
	}
	w := newMixedOffice(t, roadPlan, e)
	alice := w.configured("alice", "")
	p := w.probe("alice")
	s, err := w.lab.Stream(w.patience(), w.net.Hosts["alice"], w.net.Hosts["server"], netip.AddrPortFrom(server, 5001), 1<<40, 1<<40)
	w.check(err)
	w.check(s.Alive(w.patience()))

	begin := p.Mark()
	w.check(netlab.Poll(w.patience(), 50*time.Millisecond, func() (bool, error) { return p.Between(begin, p.Mark()).Sent >= 800, nil }))
	quiet := p.Since(t.Context(), begin, lateAnswers)

	w.check(alice.Process().Stop())
	w.check(alice.Configure(fmt.Sprintf("rekey = %q\n", every)))
	w.start(alice)
	before, _ := w.established(alice)
	w.check(s.Alive(w.patience()))
	begin = p.Mark()
	started := time.Now()
	w.rekeyed(changes)
	took := time.Since(started)
	changing := p.Since(t.Context(), begin, lateAnswers)
	t.Logf("without a change: %+v; %d changes in %v: %+v; %d octets carried", quiet, changes, took.Round(time.Millisecond), changing, s.Received())
	if changing.Lost > quiet.Lost*changing.Sent/max(quiet.Sent, 1) {
		t.Errorf("%d changes of the data key: %+v; without one: %+v", changes, changing, quiet)
	}
	after, _ := w.established(alice)
	w.same(before, after)
	if after.KeyEpoch < changes || after.Resumes != before.Resumes {
		t.Errorf("key epoch %d after %d resumes, want at least %d after %d", after.KeyEpoch, after.Resumes, changes, before.Resumes)
	}
	w.check(s.Alive(w.patience()))
}

// rekeyed waits until hq's session is in that key epoch. To ask costs what the
// changes need, so it does that seldom.
func (w *world) rekeyed(epoch uint32) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Minute)
	defer cancel()
	w.check(netlab.Poll(ctx, time.Second, func() (bool, error) {
		list, err := w.hq.Sessions(ctx)
		return err == nil && len(list) == 1 && list[0].KeyEpoch >= epoch, err
	}))
}

// TestControlRedial dials the control connection anew, beside the living one,
// under a probe.
func TestControlRedial(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.configured("alice", "redial = \"1s\"\n")
	p, s := w.probe("alice"), w.stream("alice")
	before, _ := w.established(alice)
	old := w.conns("alice")
	begin := p.Mark()
	after, _ := w.resumed(alice, before.Resumes+5)
	if got := p.Since(t.Context(), begin, lateAnswers); got.Lost > 0 {
		t.Errorf("new control connections: %+v, want no packet lost", got)
	}
	w.same(before, after)
	for _, c := range w.conns("alice") {
		if slices.Contains(old, c) {
			t.Errorf("the old control connection %v is still there", c)
		}
	}
	if events := w.ctl(alice, "events"); strings.Contains(events, "suspended") {
		t.Errorf("the session was suspended meanwhile:\n%s", events)
	}
	w.check(s.Alive(w.patience()))
}
