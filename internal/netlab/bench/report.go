package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
)

// A report is every figure that was taken, as it is written to BENCH_JSON.
type report struct {
	Rounds   int           `json:"rounds"`
	Compared []*comparison `json:"compared"`
	Own      []*series     `json:"own"`
}

// A comparison is one figure of both subjects, round by round.
type comparison struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Ours   []float64 `json:"ours"`
	Theirs []float64 `json:"wireguard_go"`
	Ratio  spread    `json:"ratio"`
}

// A series is one figure that only we have.
type series struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
	Spread spread    `json:"spread"`
}

// A spread says where values lie.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) spread {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return spread{Median: (s[(n-1)/2] + s[n/2]) / 2, Min: s[0], Max: s[n-1]}
}

// add adds one round of a comparison.
func (r *report) add(name, unit string, ours, theirs float64) {
	i := slices.IndexFunc(r.Compared, func(c *comparison) bool { return c.Name == name })
	if i < 0 {
		i = len(r.Compared)
		r.Compared = append(r.Compared, &comparison{Name: name, Unit: unit})
	}
	c := r.Compared[i]
	c.Ours, c.Theirs = append(c.Ours, ours), append(c.Theirs, theirs)
	ratios := make([]float64, len(c.Ours))
	for i := range ratios {
		ratios[i] = c.Ours[i] / c.Theirs[i]
	}
	c.Ratio = spreadOf(ratios)
}

// own adds one value of ours.
func (r *report) own(name, unit string, value float64) {
	i := slices.IndexFunc(r.Own, func(s *series) bool { return s.Name == name })
	if i < 0 {
		i = len(r.Own)
		r.Own = append(r.Own, &series{Name: name, Unit: unit})
	}
	s := r.Own[i]
	s.Values = append(s.Values, value)
	s.Spread = spreadOf(s.Values)
}

// memory adds what the processes hold now.
func (r *report) memory(ours, theirs subject) error {
	for i, side := range [2]string{"memory after load, left", "memory after load, right"} {
		a, err := residentMiB(ours.processes[i])
		if err != nil {
			return err
		}
		b, err := residentMiB(theirs.processes[i])
		if err != nil {
			return err
		}
		r.add(side, "MiB", a, b)
	}
	return nil
}

// print writes the tables for people.
func (r *report) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "figure\tunit\tours\twireguard-go\tratio\tlowest\thighest\trounds\t")
	for _, c := range r.Compared {
		fmt.Fprintf(t, "%s\t%s\t%.4g\t%.4g\t%.3f\t%.3f\t%.3f\t%d\t\n", c.Name, c.Unit,
			spreadOf(c.Ours).Median, spreadOf(c.Theirs).Median, c.Ratio.Median, c.Ratio.Min, c.Ratio.Max, len(c.Ours))
	}
	fmt.Fprintln(t)
	fmt.Fprintln(t, "ours alone\tunit\tmedian\tlowest\thighest\ttimes\t")
	for _, s := range r.Own {
		fmt.Fprintf(t, "%s\t%s\t%.4g\t%.4g\t%.4g\t%d\t\n", s.Name, s.Unit, s.Spread.Median, s.Spread.Min, s.Spread.Max, len(s.Values))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, "\nours and wireguard-go are medians; ratio is the median of ours / wireguard-go within each round, with its lowest and highest.")
	return err
}

// write writes the report as JSON.
func (r *report) write(file string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}
