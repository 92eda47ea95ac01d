package sim

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// A mutant is the real source with one mistake in it.
type mutant struct {
	name     string
	file     string // below internal
	old, new string // old stands there exactly once
	promises string // that catch it, as a regular expression
}

var mutants = []mutant{
	{"acknowledge before the journal", "control/machine.go",
		"\t\t\tat = i\n\t\t\tbreak\n", "\t\t\tat = max(at, i)\n\t\t\tbreak\n", "P3"},
	{"a message is not written down", "control/machine.go",
		"\t\tm.dirty, m.ackDue = true, true\n", "\t\tm.ackDue = true\n", "P3"},
	{"a change that came has no serial", "control/machine.go",
		"\t\tm.rec.Nr++\n\t\tm.count()\n", "\t\tm.rec.Nr++\n", "equal|P1"},
	{"a serial does not outlive the daemon", "control/record.go",
		"Nr: v.Nr, Serial: v.Serial,", "Nr: v.Nr, Serial: min(v.Serial, firstSerial),", "equal|P1"},
	{"an attempt is not written down", "control/setup.go",
		"\t\tm.rec.Attempt++ // journalled before it is sent\n\t\tm.dirty = true\n", "\t\tm.rec.Attempt++\n", "P3"},
	{"a failed write is passed over", "control/ends.go",
		"\tif m.cur != nil {\n\t\tm.lose(ev.Err)\n\t}\n\tm.dirty = false", "\tm.dirty = false", "P3|equal|quiet|P1"},
	{"a transport that was given up has a say", "control/machine.go",
		"\tcase l == nil: // late: from a transport that was given up\n\tcase l == m.next:", "\tcase l == nil && m.cur == nil:\n\tcase l != nil && l == m.next:", "fencing"},
	{"the old transport is kept at a take-over", "control/setup.go",
		"\t\tm.do(Drop{m.cur.id, errReplaced})\n\t}\n\tl.phase = up", "\t}\n\tl.phase = up", "fencing"},
	{"the attempt number is ignored", "control/setup.go",
		"if q.Proof.Attempt <= m.rec.Attempt {", "if q.Proof.Attempt == 0 {", "one outcome"},
	{"the attempt number is not kept", "control/setup.go",
		"\tm.rec.Attempt = q.Proof.Attempt\n", "", "one outcome|P3"},
	{"the resume key is not ratcheted", "control/keys.go",
		"\treturn secret.New(next)\n}", "\t_ = next\n\treturn key\n}", "one outcome"},
	{"the gateway forgets the present key too early", "control/setup.go",
		"\tm.rec.NextKey = ratchet(m.rec.ResumeKey, l.binding, m.rec.Generation+1)\n",
		"\tm.rec.NextKey = ratchet(m.rec.ResumeKey, l.binding, m.rec.Generation+1)\n\tdefer func() { m.rec.ResumeKey = m.rec.NextKey }()\n", "P1|quiet"},
	{"the proof is not looked at", "control/setup.go",
		"\tif !macEqual(want, q.Proof.MAC) {\n\t\treturn wire.CauseResumeProof", "\tif false && !macEqual(want, q.Proof.MAC) {\n\t\treturn wire.CauseResumeProof", "one outcome|P1"},
	{"FSR is ignored", "control/setup.go",
		"\t\tif p.RemoteID != 0 {\n\t\t\tcontinue\n", "\t\tif true {\n\t\t\tcontinue\n", "equal"},
	{"FSQ is ignored", "control/setup.go",
		"\tm.tell(r)\n}\n\n// fsr removes", "}\n\n// fsr removes", "equal"},
	{"the cursor is off by one", "control/machine.go",
		"int16(nr-m.rec.Unacked[0].Ns) > 0", "int16(nr-m.rec.Unacked[0].Ns) >= 0", "P1|equal|quiet"},
	{"nothing is replayed", "control/setup.go",
		"\t\tm.rec.Unacked[i] = &again\n\t\tm.do(Send{l.id, &again})\n", "\t\tm.rec.Unacked[i] = &again\n", "P1|equal|quiet"},
	{"what is to be replayed is not restored", "control/record.go",
		"\t\tr.Unacked = append(r.Unacked, p)\n", "\t\t_ = p\n", "P1|P3|equal|quiet"},
	{"a repetition is acted upon", "control/machine.go",
		"\t\t\tm.ackDue = true\n\t\t\treturn\n\t\tcase d > 0:", "\t\t\tm.ackDue = true\n\t\tcase d > 0:", "P3"},
	{"CDN does not remove the session", "control/session.go",
		"\t\tm.end(s, c.Result, true, c.RequestID)\n", "\t\t_ = s\n", "equal|quiet"},
	{"an end is told twice", "control/session.go",
		"\tif waiting {\n\t\tm.do(SessionRefused{s.Network, s.Label, res, remote, s.RequestID})\n\t\treturn\n\t}\n",
		"\tif waiting {\n\t\tm.do(SessionRefused{s.Network, s.Label, res, remote, s.RequestID})\n\t\treturn\n\t}\n\tm.do(down)\n", "P7"},
	{"the grace is ignored", "control/machine.go",
		"\t\tif m.state == session.Suspended {\n\t\t\tm.over(", "\t\tif false {\n\t\t\tm.over(", "P5|quiet"},
	{"rights are not checked again", "control/setup.go",
		"\tl.phase = waitAnswer\n\tm.ask(AskAuthorize{l.id, l.b, q.Recovery != nil})\n",
		"\tl.phase = waitAnswer\n\tif q.Recovery != nil {\n\t\tm.authorized(Authorized{l.id, nil})\n\t\treturn\n\t}\n\tm.ask(AskAuthorize{l.id, l.b, false})\n", "P5"},
	{"a refusal is ignored", "control/setup.go",
		"\tif ev.Refusal != nil {\n\t\tm.abandon(l, ev.Refusal", "\tif false {\n\t\tm.abandon(l, ev.Refusal", "P5"},
	{"a session is asked for twice after a restart", "control/machine.go",
		"if s.State != session.WaitReply || s.Rebuild { // its key proof", "if true { // its key proof", "quiet|P4|equal"},
	{"what was asked for survives its transport", "control/ends.go",
		"\t\tif s.State == session.WaitReply && !s.Rebuild {\n\t\t\tm.remove(s)\n\t\t\tm.do(SessionRefused{s.Network, s.Label, wire.Result{Code: wire.CDNCarrierLost}, false, s.RequestID})",
		"\t\tif false {\n\t\t\tm.remove(s)\n\t\t\tm.do(SessionRefused{s.Network, s.Label, wire.Result{Code: wire.CDNCarrierLost}, false, s.RequestID})", "quiet|equal|P4"},
	{"a sent change is taken back", "control/session.go",
		"m.cur == nil && int16(p.Ns-m.unsent) >= 0", "m.cur == nil", "equal|quiet"},
	{"the absolute end is ignored", "tunnel/life/life.go",
		"\tif l.Terms.Absolute == 0 {\n", "\tif true {\n", "P5"},
	{"a proof is good for ever", "tunnel/life/life.go",
		"\tif l.Terms.Reauth > 0 {\n\t\tall[1].At", "\tif false {\n\t\tall[1].At", "P5"},
	{"the grace is no deadline of the data plane", "tunnel/life/life.go",
		"\tif l.GraceTo != 0 {\n", "\tif false {\n", "P5"},
	{"idleness is not looked at", "tunnel/life/life.go",
		"\tif l.Terms.Idle > 0 {\n\t\tall[3].At", "\tif false {\n\t\tall[3].At", "P5"},
	{"the last proof is forgotten with the daemon", "tunnel/life/life.go",
		"\tl.Proven = min(l.Proven, now.Plus(-a.Proven-passed))\n", "", "P5"},
	{"a lifetime is not looked at", "tunnel/life/life.go",
		"\tif l.Refresh.After > 0 {\n\t\tall[4].At", "\tif false {\n\t\tall[4].At", "P5"},
	{"the last refresh is forgotten with the daemon", "tunnel/life/life.go",
		"\tl.Refresh.At = min(l.Refresh.At, now.Plus(-a.Refreshed-passed))\n", "", "P5"},
	{"who agrees to a refresh does not count it", "control/refresh.go",
		"\tm.do(SessionRefreshed{*s, c.RequestID})\n", "", "P1"},
	{"who agrees to a refresh forgets for how long", "control/refresh.go",
		"\ts.Expires = e\n\tm.answerChange", "\tm.answerChange", "equal"},
	{"a lifetime that is too short is not asked for again", "control/refresh.go",
		"res.Cause != wire.CauseTooShort || s.Raised", "true || res.Cause != wire.CauseTooShort || s.Raised", "quiet|P1"},
	{"an offer takes effect before it is taken", "control/change.go",
		"\ts.Offer = &o\n", "\ts.Offer = &o\n\t*s = s.with(o.Terms)\n", "equal|P1"},
	{"a refused offer stays open", "control/change.go",
		"\ts.Offer = nil\n\tm.dirty = true\n", "\tif a.Result == nil {\n\t\ts.Offer = nil\n\t}\n\tm.dirty = true\n", "equal|P1"},
	{"what was refused is in force at the node", "control/change.go",
		"\tif ev.Refusal == nil {\n\t\t*s = s.with", "\tif true {\n\t\t*s = s.with", "equal|P1"},
	{"what was taken is not in force at the gateway", "control/change.go",
		"\t\t*s = s.with(o.Terms)\n", "", "equal|P1"},
	{"addresses that were taken are not told of", "control/change.go",
		"\t\tm.retime()\n\t\tm.do(TermsChanged{*s, o.Terms, o.RequestID})\n", "\t\tm.retime()\n", "quiet|P4"},
	{"an offer does not outlive the daemon", "control/record.go",
		"Offer: s.Offer, Life: s.Life,\n\t\t\tClaims", "Life: s.Life,\n\t\t\tClaims", "P1|equal"},
	{"an extension counts double", "control/change.go",
		"ev.Lifetime.Whole(), ev.By\n", "ev.Lifetime.Whole(), 2*ev.By\n", "P5"},
	{"what the gateway has lost is given up", "control/setup.go",
		"res.Cause == wire.CauseUnknownResume && m.startOver(l, res)", "false && m.startOver(l, res)", "P1"},
	{"a claim is not kept over a restart", "control/machine.go",
		"if s.State != session.WaitReply || s.Rebuild {", "if s.State != session.WaitReply {", "P1|equal|quiet"},
	{"a claim is given up with its transport", "control/ends.go",
		"\t\tif s.State == session.WaitReply && !s.Rebuild {\n\t\t\tm.remove(s)\n\t\t\tm.do(SessionRefused{s.Network, s.Label, wire.Result{Code: wire.CDNCarrierLost}",
		"\t\tif s.State == session.WaitReply {\n\t\t\tm.remove(s)\n\t\t\tm.do(SessionRefused{s.Network, s.Label, wire.Result{Code: wire.CDNCarrierLost}", "P1|equal|quiet"},
	{"a claim begins an epoch that was used", "control/ticket.go",
		"\ts.ClaimEpoch++\n", "\ts.ClaimEpoch = max(s.ClaimEpoch, 1)\n", "P1|wire"},
	{"a gateway that goes takes what is new", "tunnel/redirect/drain.go",
		"\tif d == nil || goesOn {", "\tif true {", "drain"},
	{"a gateway that goes takes nothing at all", "tunnel/redirect/drain.go",
		"\tif d == nil || goesOn {", "\tif d == nil {", "drain"},
	{"nodes of a gateway that goes leave out of order", "tunnel/redirect/drain.go",
		"part*time.Duration(i) + d.Random(part+1)", "part + d.Random(d.Over+1)", "drain"},
	{"nobody is told that a gateway goes", "control/drain.go",
		"\tm.do(GatewayDrains{d.Leaving, d.Gateways, d.Delay})\n", "", "drain"},
	{"a gateway that stays after all is left", "control/drain.go",
		"m.do(GatewayDrains{d.Leaving, ", "m.do(GatewayDrains{true, ", "drain"},
	{"a node leaves before it was told to", "tunnel/redirect/redirect.go",
		"if left := w.leave.At.Sub(now); left > 0 {", "if left := w.leave.At.Sub(now); left > 2*time.Second {", "drain"},
	{"a node goes wherever it is sent", "tunnel/redirect/redirect.go",
		"slices.Contains(w.Gateways, g) && w.Joined(g)", "w.Joined(g)", "drain"},
	{"a node moves to a gateway that it has not joined", "tunnel/redirect/redirect.go",
		"slices.Contains(w.Gateways, g) && w.Joined(g)", "slices.Contains(w.Gateways, g)", "drain|quiet"},
	{"a node is sent on for ever", "tunnel/redirect/redirect.go",
		"\tif w.hops++; w.hops > MaxHops {", "\tif w.hops++; false {", "drain"},
	{"the hop limit is off by one", "tunnel/redirect/redirect.go",
		"\tif w.hops++; w.hops > MaxHops {", "\tif w.hops++; w.hops > MaxHops+1 {", "drain"},
	{"hops are never forgotten", "tunnel/redirect/redirect.go",
		"\tw.hops, w.prefer, w.lostAt = 0, \"\", time.Time{}", "\tw.prefer, w.lostAt = \"\", time.Time{}", "drain"},
	{"a restarted gateway is not waited for", "tunnel/redirect/redirect.go",
		"Patience = 5 * time.Second", "Patience = 4 * time.Second", "P1"},
	{"a living connection is tried elsewhere", "tunnel/redirect/redirect.go",
		"\tcase w.lostAt.IsZero(): // a transport beside the living one\n\t\torder = []string{home}\n", "", "P1"},
	{"an address is leased twice", "tunnel/pool/pool.go",
		"\t\tif p.slots[p.next] == nil {\n\t\t\tp.next++", "\t\tif true {\n\t\t\tp.next++", "P4|quiet"},
	{"a lease of before a restart holds no address", "tunnel/pool/restore.go",
		"\t\tslots:    p.slotsOf(l.Addresses),\n", "", "P4"},
	{"a rest of before a restart is forgotten", "tunnel/pool/restore.go",
		"\t\t\tp.rest(s, owner, freedAt)\n", "\t\t\t_, _ = owner, freedAt\n", "P4"},
	{"a freed address does not rest", "tunnel/pool/pool.go",
		"return !s.freedAt.Add(p.cooloff).After(now)", "return true", "P4"},
	{"an address does not come back", "tunnel/pool/pool.go",
		"\t\tp.owners[owner] = append(p.owners[owner], s)\n", "", "P4"},
}

// effort is how many schedules a mutant may survive.
const effort = 10000

// TestMutants shows that the simulator finds bugs: each mutant is built with
// -overlay, the tree stays as it is, and must break a promise.
func TestMutants(t *testing.T) {
	if raceEnabled || *seedFlag != 0 {
		return // the mutants are the same without the race detector, and tell nothing of one seed
	}
	internal, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var caught int
	var mu sync.Mutex
	turns := make(chan struct{}, 2)
	var wg sync.WaitGroup
	for _, m := range mutants {
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			began := time.Now()
			by, err := m.hunt(t.TempDir(), internal)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("mutant %q: %v", m.name, err)
				return
			}
			caught++
			t.Logf("%-50s caught by %s (%v)", m.name, by, time.Since(began).Round(10*time.Millisecond))
		})
	}
	wg.Wait()
	report = append(report, fmt.Sprintf("mutants=%d/%d", caught, len(mutants)))
}

// patched writes the mutated file and an overlay that puts it in the place of
// the real one.
func (m mutant) patched(dir, internal string) (overlay string, err error) {
	real := filepath.Join(internal, filepath.FromSlash(m.file))
	src, err := os.ReadFile(real)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(src), m.old); n != 1 {
		return "", fmt.Errorf("%s has %d places like %q, want 1: the source has changed, change the mutant", m.file, n, m.old)
	}
	fake := filepath.Join(dir, filepath.Base(m.file))
	if err := os.WriteFile(fake, []byte(strings.Replace(string(src), m.old, m.new, 1)), 0o644); err != nil {
		return "", err
	}
	b, err := json.Marshal(map[string]map[string]string{"Replace": {real: fake}})
	if err != nil {
		return "", err
	}
	overlay = filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, b, 0o644)
}

var verdict = regexp.MustCompile(`seed (\d+): ([^:]+): (.*)`)

// hunt builds and runs a mutant until it is caught, and says by what.
func (m mutant) hunt(dir, internal string) (string, error) {
	overlay, err := m.patched(dir, internal)
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "mutant.test")
	build := exec.Command("go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-overlay", overlay, "-o", bin, ".")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("does not build: %v\n%s", err, out)
	}
	run := exec.Command(bin, "-test.run", "^TestSim$", "-schedules", fmt.Sprint(effort), "-from", flag.Lookup("from").Value.String(), "-test.timeout", "80s")
	run.Env = append(os.Environ(), "GOMAXPROCS=1")
	out, err := run.CombinedOutput()
	if err == nil {
		return "", fmt.Errorf("%d schedules passed", effort)
	}
	v := verdict.FindStringSubmatch(string(out))
	if v == nil {
		return "", fmt.Errorf("ended without a verdict: %v\n%.2000s", err, out)
	}
	if !regexp.MustCompile("^(" + m.promises + ")$").MatchString(v[2]) {
		return "", fmt.Errorf("caught by %s, want %s: seed %s: %s", v[2], m.promises, v[1], v[3])
	}
	return fmt.Sprintf("%s, seed %s: %.110s", v[2], v[1], v[3]), nil
}
