package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tunneld/internal/netlab"
)

// TestSoak has a session live on a bad wire, under four flows of packets and with
// changes of data keys and of control connections all the time: it stays the same
// session, no packet is lost that the wire did not lose, and the daemons do not
// grow. By night it takes two hours, or as long as $TUNNELD_SOAK says.
func TestSoak(t *testing.T) {
	length := 20 * time.Second
	if os.Getenv("TUNNELD_LONG") == "1" {
		length = 2 * time.Hour
	}
	if d, err := time.ParseDuration(os.Getenv("TUNNELD_SOAK")); err == nil {
		length = d
	}
	w := newOffice(t, roadPlan)
	alice := w.configured("alice", "rekey = \"1s\"\nredial = \"3s\"\n")
	to, err := w.net.Hosts["server"].Echo(netip.AddrPortFrom(server, 7).String())
	w.check(err)
	var probes []*netlab.Probe
	var begin []netlab.Mark
	for range 4 {
		p, err := w.net.Hosts["alice"].Probe(to, 2*time.Millisecond)
		w.check(err)
		w.answered(p)
		probes, begin = append(probes, p), append(begin, p.Mark())
	}
	before, _ := w.established(alice)
	wire := w.net.Wires["nat.wan"]
	lost := func() uint64 { return wire.Counters(netlab.AtoB).Lost + wire.Counters(netlab.BtoA).Lost }
	wire.Set(netlab.Impairment{Delay: 5 * time.Millisecond, Jitter: 3 * time.Millisecond, Loss: 0.01, Reorder: 0.05, Duplicate: 0.02})
	w.pass(length / 4)
	young := [2]size{sizeOf(t, alice), sizeOf(t, w.hq)}
	w.pass(length - length/4)
	wire.Set(netlab.Impairment{})

	var end []netlab.Mark
	for _, p := range probes {
		end = append(end, p.Mark())
	}
	sent, missing := 0, 0
	for i, p := range probes {
		p.Settle(t.Context(), begin[i], end[i], 5*time.Second)
		s := p.Between(begin[i], end[i])
		sent, missing = sent+s.Sent, missing+s.Lost
	}
	tunnel, s := w.established(alice)
	w.same(before, tunnel)
	t.Logf("%d packets, %d without an answer; the wire lost %d; %d changes of the data key, %d new control connections", sent, missing, lost(), s.KeyEpoch, s.Resumes)
	if full := w.overflows(); uint64(missing) > lost()+full {
		t.Errorf("%d packets had no answer, the wire lost %d datagrams, and queues of the hosts that nobody emptied in time %d", missing, lost(), full)
	}
	if s.KeyEpoch < 3 || s.Resumes < 3 || lost() == 0 {
		t.Errorf("%d changes of the data key, %d new control connections, %d lost: nothing was proved", s.KeyEpoch, s.Resumes, lost())
	}
	for i, d := range []*netlab.Daemon{alice, w.hq} {
		old := sizeOf(t, d)
		t.Logf("%s: at a quarter %+v, at the end %+v", []string{"the node", "the gateway"}[i], young[i], old)
		if old.memory > 2*young[i].memory+16<<10 || old.descriptors > young[i].descriptors+8 {
			t.Errorf("%s has grown from %+v to %+v", []string{"the node", "the gateway"}[i], young[i], old)
		}
	}
}

// overflows is how many packets the kernel has dropped at all hosts because an
// interface's queue or a socket's buffer was full: the machine was busy with
// something else.
func (w *world) overflows() (n uint64) {
	w.t.Helper()
	for _, h := range w.net.Hosts {
		out, err := h.Run(w.patience(), "", "ip", "-j", "-s", "link")
		w.check(err)
		var links []struct {
			Stats struct {
				TX struct{ Dropped uint64 } `json:"tx"`
			} `json:"stats64"`
		}
		w.check(json.Unmarshal([]byte(out), &links))
		for _, l := range links {
			n += l.Stats.TX.Dropped
		}
		out, err = h.Run(w.patience(), "", "cat", "/proc/self/net/snmp")
		w.check(err)
		n += receiveBufferErrors(w.t, out)
	}
	return n
}

// receiveBufferErrors reads that field of UDP out of /proc/net/snmp, which has a
// line of names and one of values for each protocol.
func receiveBufferErrors(t *testing.T, snmp string) uint64 {
	t.Helper()
	var names []string
	for line := range strings.Lines(snmp) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0 || fields[0] != "Udp:":
		case names == nil:
			names = fields
		default:
			n, err := strconv.ParseUint(fields[slices.Index(names, "RcvbufErrors")], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no counters of UDP in %q", snmp)
	return 0
}

// pass lets time pass.
func (w *world) pass(d time.Duration) {
	w.t.Helper()
	select {
	case <-time.After(d):
	case <-w.t.Context().Done():
	}
}

// size is what a process holds.
type size struct {
	memory      int // in KiB, without what is mapped of files
	descriptors int
}

func sizeOf(t *testing.T, d *netlab.Daemon) (s size) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", d.Process().PID())
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if n, _ := fmt.Sscanf(line, "RssAnon: %d kB", &s.memory); n == 1 {
			return size{s.memory, len(fds)}
		}
	}
	t.Fatalf("%sstatus has no RssAnon", proc)
	return s
}
