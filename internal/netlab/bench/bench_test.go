package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"tunneld/internal/netlab"
)

// TestMain lets this program be the crowd, as bench is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "crowd" {
		os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// TestControl takes every figure of the control plane once, of a few nodes.
func TestControl(t *testing.T) {
	b := &bench{rounds: 1, nodes: 5, quiet: 1, progress: t.Output()}
	r, err := b.measure(t.Context(), []part{(*bench).control})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, s := range r.Own {
		got[s.Name] = s.Spread.Median
	}
	for _, name := range []string{"bare TLS handshakes", "set-ups", "resumes", "storm: all back after", "storm: a new log-in meanwhile", "storm: peak memory / steady"} {
		if got[name] <= 0 {
			t.Errorf("%s = %v, want something", name, got[name])
		}
	}
	if lost, ok := got["storm: sessions lost"]; !ok || lost != 0 {
		t.Errorf("%v sessions were lost in the storm (counted: %v), want none", lost, ok)
	}
}

func TestSpreadOf(t *testing.T) {
	tests := []struct {
		in   []float64
		want spread
	}{
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{3, 1, 2}, spread{2, 1, 3}},
		{[]float64{4, 1, 3, 2}, spread{2.5, 1, 4}},
	}
	for _, tt := range tests {
		if got := spreadOf(tt.in); got != tt.want {
			t.Errorf("spreadOf(%v) = %v, want %v", tt.in, got, tt.want)
		}
	}
}

// The ratio is that of a round, not of the medians: here the medians are equal
// and ours is worse in two rounds of three.
func TestRatioIsOfRounds(t *testing.T) {
	var r report
	for _, round := range [][2]float64{{100, 200}, {200, 100}, {100, 110}} {
		r.add("f", "u", round[0], round[1])
	}
	c := r.Compared[0]
	if want := (spread{100.0 / 110, 0.5, 2}); len(r.Compared) != 1 || c.Ratio != want {
		t.Errorf("ratio = %v, want %v", c.Ratio, want)
	}
}

func TestReport(t *testing.T) {
	r := report{Rounds: 1}
	r.add("TCP", "Mbit/s", 150, 100)
	r.own("first ping", "ms", 12.5)
	var out strings.Builder
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"TCP", "1.500", "first ping", "12.5"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("print has no %q:\n%s", want, out.String())
		}
	}
	file := filepath.Join(t.TempDir(), "bench.json")
	if err := r.write(file); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(b, &back); err != nil || back.Compared[0].Ratio.Median != 1.5 || back.Own[0].Spread.Max != 12.5 {
		t.Errorf("read back %+v, %v", back, err)
	}
}

// An echo request with a checksum that the right kernel does not like is not
// answered; RFC 1071, section 3 has this sum.
func TestOnesSum(t *testing.T) {
	if got := onesSum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != 0xddf2 {
		t.Errorf("onesSum = %#x, want 0xddf2", got)
	}
}

// TestBare takes the figures of packets without a tunnel: what was sent is
// counted, and pings are answered.
func TestBare(t *testing.T) {
	lab, err := netlab.New(netlab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	p, err := newPair(lab, "near", func(left, right *netlab.Host) error { return lab.Veth(left, wireIf, right, wireIf) })
	if err != nil {
		t.Fatal(err)
	}
	trips, err := p.ping(t.Context(), bare.address, func(sent int) bool { return sent < 3 })
	if err != nil || len(trips) != 3 {
		t.Errorf("%d pings came back, %v, want 3", len(trips), err)
	}
	s, err := p.stream(bare.address, 64)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	s.send(3)
	deadline := time.Now().Add(settle)
	for s.received.Load() < 3 && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if got := s.received.Load(); got != 3 {
		t.Errorf("%d packets arrived, want 3", got)
	}
}

func TestIperfReceived(t *testing.T) {
	tests := []struct {
		name, in, err string
		want          float64
	}{
		{"received", `{"end":{"sum_sent":{"bits_per_second":3e9},"sum_received":{"bits_per_second":2.5e9}}}`, "", 2500},
		{"refused", `{"error":"the server is busy","end":{}}`, "the server is busy", 0},
		{"no JSON", `iperf3: error`, "iperf3's answer", 0},
	}
	for _, tt := range tests {
		got, err := iperfReceived(tt.in)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: iperfReceived = %v, %v, want %v, %q", tt.name, got, err, tt.want, tt.err)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"-rounds", "0"}, {"-seconds", "0"}, {"extra"}, {"data", "extra"}, {"-nodes", "0"}, {"-nonsense"}} {
		var out, errs strings.Builder
		if got := run(context.Background(), args, &out, &errs); got != 2 || out.Len() > 0 || errs.Len() == 0 {
			t.Errorf("run(%q) = %d, stdout %q, stderr %q, want 2 and a word on stderr", args, got, out.String(), errs.String())
		}
	}
}
