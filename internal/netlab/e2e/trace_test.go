package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tshark runs a program of others, as it is installed, on a trace.
func (w *world) tshark(file string, args ...string) string {
	w.t.Helper()
	cmd := exec.CommandContext(w.patience(), "tshark", append([]string{"-n", "-r", file}, args...)...)
	cmd.Env = append(os.Environ(), "WIRESHARK_CONFIG_DIR="+w.t.TempDir())
	out, err := cmd.Output()
	w.check(err)
	return strings.TrimSpace(string(out))
}

// said are the messages in a trace: "1<SCCRQ" is one that the daemon received
// in the first of its lives, "2>SCCRP" one that it sent in the second; "+77"
// behind it says that it resumes. Acknowledgements and signs of life come when
// they like and are left out.
func (w *world) said(file string) (all []string) {
	w.t.Helper()
	fields := []string{"-T", "fields", "-E", "separator=;"}
	for _, f := range []string{"frame.section_number", "frame.p2p_dir", "_ws.col.Info", "l2tp.avp.type"} {
		fields = append(fields, "-e", f)
	}
	for line := range strings.SplitSeq(w.tshark(file, append(fields, "-Y", "l2tp")...), "\n") {
		part := strings.Split(line, ";")
		words := strings.Fields(part[2]) // Control Message - SCCRQ (ccid=0x00000000)
		if len(part) != 4 || len(words) < 5 {
			w.t.Fatalf("tshark says %q", line)
		}
		if words[3] == "ACK" || words[3] == "Hello" {
			continue
		}
		m := part[0] + map[string]string{"0": ">", "1": "<"}[part[1]] + words[3]
		if slices.Contains(strings.Split(part[3], ","), "77") {
			m += "+77"
		}
		all = append(all, m)
	}
	return all
}

// TestTrace follows a gateway from a session's set-up over two resumes, one of
// them in another process, to its end, with nothing but a trace to look at.
func TestTrace(t *testing.T) {
	w := newStage(t, roadPlan)
	if _, err := exec.LookPath("tshark"); err != nil {
		if os.Geteuid() != 0 {
			t.Skipf("needs tshark: %v", err)
		}
		t.Fatalf("root must be able to run this: %v", err)
	}
	file := filepath.Join(t.TempDir(), "hq.pcapng")
	w.hq = w.net.Hosts["hq"].Daemon(bin, "node", "--trace", file)
	w.check(w.hq.Init(w.patience(), officeInit...))
	w.start(w.hq)
	alice := w.node("alice")
	_, atGateway := w.established(alice)
	if n := w.net.Wires["nat.wan"].ResetTCP(port); n != 1 {
		t.Fatalf("%d control connections were reset, want 1", n)
	}
	tunnel, _ := w.resumed(alice, atGateway.Resumes+1)
	w.check(w.hq.Process().Kill9())
	w.start(w.hq)
	w.resumed(alice, atGateway.Resumes+2)
	w.ctl(alice, "down", office)
	w.gone(tunnel.Session)
	w.check(w.hq.Process().Stop())

	info, err := os.Stat(file)
	w.check(err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("rights of the trace = %v, want 0600", info.Mode())
	}
	if got := w.tshark(file, "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE",
		"-Y", "!l2tp || _ws.malformed || ip.checksum.status != 1 || udp.checksum.status != 1"); got != "" {
		t.Errorf("tshark complains of\n%s", got)
	}
	for line := range strings.SplitSeq(w.tshark(file, "-T", "fields", "-e", "ip.addr", "-e", "udp.port"), "\n") {
		if !strings.Contains(line, "203.0.113.1") || !strings.Contains(line, "198.51.100.2") || !strings.Contains(line, "1701") {
			t.Errorf("a message between %s, want the gateway, port 1701, and the NAT's outside", line)
		}
	}
	got := w.said(file)
	for _, want := range []string{
		"1<SCCRQ 1>SCCRP 1<SCCCN 1<ICRQ 1>ICRP 1<ICCN",
		"1<SCCRQ+77 1>SCCRP 1<SCCCN", "2<SCCRQ+77 2>SCCRP 2<SCCCN", // the resumes
		"1<FSQ 1>FSR", "1>FSQ 1<FSR", "2<FSQ 2>FSR", "2>FSQ 2<FSR", // in both directions
		"2<FSR 2<CDN",
	} {
		if !inOrder(got, strings.Fields(want)) {
			t.Errorf("the trace has %v, want %s in this order", got, want)
		}
	}
}

// inOrder reports whether want stands in all in its order, whatever is between.
func inOrder(all, want []string) bool {
	for _, m := range all {
		if len(want) > 0 && m == want[0] {
			want = want[1:]
		}
	}
	return len(want) == 0
}
