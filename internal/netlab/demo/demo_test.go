package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tunneld/internal/netlab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// good is a report of which everything held.
func good() *report {
	r := &report{SHA256OK: true}
	for i, name := range everyEvent {
		r.Events = append(r.Events, result{Event: name, Sent: 100 * (i + 1), TCPSurvived: true, SessionUnchanged: name != down, Resumes: 1})
	}
	return r
}

func TestHeld(t *testing.T) {
	if err := good().held(); err != nil {
		t.Fatalf("held() = %v of a good report, want nil", err)
	}
	for _, tc := range []struct {
		name  string
		spoil func(*report)
		want  string
	}{
		{"no events", func(r *report) { r.Events = nil }, "control-cut was not reached"},
		{"one missing", func(r *report) { r.Events = r.Events[:5] }, "down was not reached"},
		{"TCP died", func(r *report) { r.Events[2].TCPSurvived = false }, "gateway-kill: the TCP connection did not survive"},
		{"nothing sent", func(r *report) { r.Events[3].Sent = 0 }, "node-kill: no probe was sent"},
		{"session changed", func(r *report) { r.Events[4].SessionUnchanged = false }, "freeze: session unchanged is false"},
		{"session survived down", func(r *report) { r.Events[5].SessionUnchanged = true }, "down: session unchanged is true"},
		{"packet lost by a cut", func(r *report) { r.Events[0].Lost = 1 }, "control-cut: 1 packets were lost"},
		{"a cut that was none", func(r *report) { r.Events[0].Resumes = 0 }, "control-cut: nothing was resumed"},
		{"wrong octets", func(r *report) { r.SHA256OK = false }, "the transfer did not arrive as it was sent"},
	} {
		r := good()
		tc.spoil(r)
		if err := r.held(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: held() = %v, want %q in it", tc.name, err, tc.want)
		}
	}
}

func TestReport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "demo.json")
	r, err := openReport(file)
	if err != nil {
		t.Fatal(err)
	}
	r.Events, r.SHA256OK = good().Events, true
	r.Events[1].LongestGapMS = 12.5
	var out bytes.Buffer
	if err := r.close(&out, 34560*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	const row = "  address-change   200     0            12.5           yes     same        1\n"
	if !strings.Contains(out.String(), row) || !strings.Contains(out.String(), "is right: yes. 34.6 s in all.") {
		t.Errorf("the table is\n%s\nwant in it\n%s", out.String(), row)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	checkContract(t, b)
}

// checkContract compares the keys with those that scripts rely on, all of them
// and no others.
func checkContract(t *testing.T, b []byte) {
	t.Helper()
	var got struct {
		Events []struct {
			Event            *string  `json:"event"`
			Sent             *int     `json:"sent"`
			Lost             *int     `json:"lost"`
			LongestGapMS     *float64 `json:"longest_gap_ms"`
			TCPSurvived      *bool    `json:"tcp_survived"`
			SessionUnchanged *bool    `json:"session_unchanged"`
			Resumes          *int     `json:"resumes"`
		} `json:"events"`
		SHA256OK *bool    `json:"sha256_ok"`
		Seconds  *float64 `json:"seconds"`
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&got); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	if got.SHA256OK == nil || got.Seconds == nil || len(got.Events) != len(everyEvent) {
		t.Fatalf("a key or an event is missing in %s", b)
	}
	for i, e := range got.Events {
		if e.Event == nil || *e.Event != everyEvent[i] {
			t.Errorf("event %d is not %s in %s", i, everyEvent[i], b)
		}
		if e.Sent == nil || e.Lost == nil || e.LongestGapMS == nil || e.TCPSurvived == nil || e.SessionUnchanged == nil || e.Resumes == nil {
			t.Errorf("event %s lacks a key in %s", everyEvent[i], b)
		}
	}
}

func TestEmptyReportHasNoNull(t *testing.T) {
	file := filepath.Join(t.TempDir(), "demo.json")
	r, err := openReport(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.close(io.Discard, 0); err == nil {
		t.Error("close() = nil of a report without events")
	}
	if b, _ := os.ReadFile(file); !strings.Contains(string(b), `"events": []`) {
		t.Errorf("JSON = %s, want an empty list of events", b)
	}
}

func TestReportNowhere(t *testing.T) {
	if _, err := openReport("/nonexistent/demo.json"); err == nil || !strings.Contains(err.Error(), "file of $DEMO_JSON: ") {
		t.Errorf("openReport = %v, want an error that names DEMO_JSON", err)
	}
}

func TestPrinter(t *testing.T) {
	var out bytes.Buffer
	p := newPrinter(&out)
	p.show(func() string { return "progress" })
	p.line("%d of %d", 1, 2)
	p.close()
	p.close()
	if got := out.String(); !strings.HasSuffix(got, "s  1 of 2\n") || strings.ContainsAny(got, "\r\x1b") {
		t.Errorf("not a terminal: output %q, want one plain line", got)
	}
}

// TestPrinterTerminal takes a buffer for a terminal.
func TestPrinterTerminal(t *testing.T) {
	r, w := io.Pipe()
	p := &printer{out: w, start: time.Now(), terminal: true, stop: make(chan struct{})}
	p.wg.Go(p.refresh)
	go func() {
		p.show(func() string { return "half" })
		p.line("done")
	}()
	var seen bytes.Buffer
	buf := make([]byte, 100)
	for !strings.Contains(seen.String(), "half") || !strings.Contains(seen.String(), "done\n") {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		seen.Write(buf[:n])
	}
	go io.Copy(io.Discard, r)
	p.close()
	w.Close()
	if !strings.Contains(seen.String(), "\r\x1b[K") {
		t.Errorf("output %q erases no line", seen.String())
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"now"}, {"-fast"}} {
		var stderr bytes.Buffer
		if status := run(t.Context(), args, io.Discard, &stderr); status != 2 || stderr.Len() == 0 {
			t.Errorf("run(%q) = %d with %q, want 2 and a word about it", args, status, stderr.String())
		}
	}
}

// TestInterrupted interrupts the demo when daemons run, and finds nothing of it.
func TestInterrupted(t *testing.T) {
	netlab.Require(t)
	bin, err := netlab.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(netlab.TunneldVar, bin.Tunneld)
	t.Setenv(netlab.TunnelctlVar, bin.Tunnelctl)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	ctx, cancel := context.WithCancelCause(t.Context())
	var stderr bytes.Buffer
	stdout := &onWord{word: "gateway from nothing", f: func() { cancel(errInterrupted) }}
	status := run(ctx, nil, stdout, &stderr)
	if status != 1 || stderr.String() != "demo: error: interrupted\n" {
		t.Errorf("run = %d with %q, want 1 and the word that it was interrupted", status, stderr.String())
	}
	if !errors.Is(context.Cause(ctx), errInterrupted) {
		t.Fatalf("it ended before it was interrupted: %s", stdout.seen.String())
	}
	if left, _ := os.ReadDir(tmp); len(left) != 0 {
		t.Errorf("%s holds %v after the demo", tmp, left)
	}
}

// onWord calls f when a word has been written to it.
type onWord struct {
	word string
	f    func()
	seen bytes.Buffer
}

func (w *onWord) Write(b []byte) (int, error) {
	w.seen.Write(b)
	if strings.Contains(w.seen.String(), w.word) {
		w.f()
	}
	return len(b), nil
}
