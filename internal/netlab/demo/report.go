package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"
)

// result is what one event did. The names in JSON are a contract.
type result struct {
	Event            string  `json:"event"`
	Sent             int     `json:"sent"`
	Lost             int     `json:"lost"`
	LongestGapMS     float64 `json:"longest_gap_ms"`
	TCPSurvived      bool    `json:"tcp_survived"`
	SessionUnchanged bool    `json:"session_unchanged"`
	Resumes          uint64  `json:"resumes"`
}

// The events, as the contract names them.
const (
	controlCut    = "control-cut"
	addressChange = "address-change"
	gatewayKill   = "gateway-kill"
	nodeKill      = "node-kill"
	freeze        = "freeze"
	down          = "down"
)

var everyEvent = []string{controlCut, addressChange, gatewayKill, nodeKill, freeze, down}

// report collects the results.
type report struct {
	file   *os.File // nil: no JSON wanted
	Events []result `json:"events"`
	// SHA256OK says that all of the transfer arrived as it was sent.
	SHA256OK bool    `json:"sha256_ok"`
	Seconds  float64 `json:"seconds"` // the whole demo, without building
}

// openReport creates the file for the JSON before the work, so that a wrong
// name costs no time. No name, no file.
func openReport(name string) (*report, error) {
	r := &report{Events: []result{}}
	if name == "" {
		return r, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, fmt.Errorf("file of $%s: %w", jsonVar, err)
	}
	r.file = f
	return r, nil
}

// close prints the table, writes the JSON and says in its error what did not
// hold.
func (r *report) close(out io.Writer, took time.Duration) error {
	r.Seconds = float64(took.Round(10*time.Millisecond)) / float64(time.Second)
	return errors.Join(r.table(out), r.write(), r.held())
}

func (r *report) table(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\nevent\tsent\tlost\tlongest gap ms\tTCP survived\tsession\tresumes\t")
	for _, e := range r.Events {
		session := "same"
		if !e.SessionUnchanged {
			session = "new"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%.1f\t%s\t%s\t%d\t\n", e.Event, e.Sent, e.Lost, e.LongestGapMS, yes(e.TCPSurvived), session, e.Resumes)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\nSHA-256 of the transfer is right: %s. %.1f s in all.\n", yes(r.SHA256OK), r.Seconds)
	return err
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "NO"
}

func (r *report) write() error {
	if r.file == nil {
		return nil
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	_, err = r.file.Write(append(b, '\n'))
	return errors.Join(err, r.file.Close())
}

// held says what of the promises was not kept: each event must have come, the
// transfer must have outlived it, and no session may have changed but by
// `down`. The loss of the control connection alone may lose no packet.
func (r *report) held() error {
	var problems []error
	problem := func(bad bool, format string, args ...any) {
		if bad {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	for i, name := range everyEvent {
		if i >= len(r.Events) || r.Events[i].Event != name {
			problem(true, "%s was not reached", name)
			break
		}
		e := r.Events[i]
		problem(!e.TCPSurvived, "%s: the TCP connection did not survive", name)
		problem(e.Sent == 0, "%s: no probe was sent", name)
		problem(e.SessionUnchanged == (name == down), "%s: session unchanged is %v", name, e.SessionUnchanged)
		problem(name == controlCut && e.Lost > 0, "%s: %d packets were lost", name, e.Lost)
		problem(name == controlCut && e.Resumes == 0, "%s: nothing was resumed", name)
	}
	problem(!r.SHA256OK, "the transfer did not arrive as it was sent")
	return errors.Join(problems...)
}
