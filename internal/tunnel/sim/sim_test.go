package sim

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	seedFlag      = flag.Uint64("seed", 0, "run this schedule alone and show it")
	fromFlag      = flag.Uint64("from", 1, "first seed")
	updateFlag    = flag.Bool("update", false, "add to testdata/pairs.txt what was reached")
	schedulesFlag = flag.Int("schedules", 0, "how many schedules; 0: 20,000, with -race 1,000")
)

// outcome is what a schedule came to.
type outcome struct {
	seed uint64
	err  error // a violation, or a panic of the code under test
	stats
	trace string
}

// schedule plays one seed.
func schedule(seed uint64, show bool) (o outcome) {
	w := newWorld(seed)
	if show {
		w.trace = &strings.Builder{}
	}
	defer func() {
		o.seed, o.stats = seed, w.stats
		if r := recover(); r != nil {
			if v, ok := r.(violation); ok {
				o.err = v
			} else {
				o.err = violation{"panic", fmt.Sprintf("%v\n%s", r, debug.Stack())}
			}
		}
		if show {
			o.trace = w.trace.String()
		}
	}()
	w.play()
	return o
}

// tally is what many schedules came to.
type tally struct {
	stats
	n      int
	each   []int // steps
	failed []outcome
}

func (t *tally) add(o *outcome) {
	t.n++
	t.each = append(t.each, o.steps)
	t.stats.add(&o.stats)
	if o.err != nil {
		t.failed = append(t.failed, *o)
	}
}

func (s *stats) add(o *stats) {
	s.steps += o.steps
	s.cuts += o.cuts
	s.crashes += o.crashes
	s.resumes += o.resumes
	s.parks += o.parks
	s.sessions += o.sessions
	s.ends += o.ends
	s.saves += o.saves
	s.full += o.full
	s.clocks += o.clocks
	s.thefts += o.thefts
	s.losses += o.losses
	s.rebuilds += o.rebuilds
	s.drains += o.drains
	s.moves += o.moves
	s.retargets += o.retargets
	s.loops += o.loops
	s.refreshes += o.refreshes
	s.offers += o.offers
	s.readdressed += o.readdressed
	if s.pairs == nil {
		s.pairs = map[pair]int{}
	}
	for p, n := range o.pairs {
		s.pairs[p] += n
	}
}

// many plays n seeds from first on all processors, until one fails.
func many(first uint64, n int) *tally {
	var next atomic.Uint64
	var failed atomic.Bool
	next.Store(first)
	var mu sync.Mutex // guards all
	all := &tally{}
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for !failed.Load() {
				seed := next.Add(1) - 1
				if seed >= first+uint64(n) {
					return
				}
				o := schedule(seed, false)
				if o.err != nil {
					failed.Store(true)
				}
				mu.Lock()
				all.add(&o)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return all
}

// report is what TestMain prints last, in one line: schedules=, mutants= and
// more.
var report []string

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if len(report) > 0 {
		fmt.Println("sim:", strings.Join(report, " "))
	}
	os.Exit(code)
}

// TestSim plays many schedules and holds every promise after every step.
func TestSim(t *testing.T) {
	if *seedFlag != 0 {
		o := schedule(*seedFlag, true)
		t.Logf("seed %d\n%s", o.seed, o.trace)
		if o.err != nil {
			t.Errorf("seed %d: %v", o.seed, o.err)
		}
		return
	}
	n := schedules()
	began := time.Now()
	all := many(*fromFlag, n)
	for _, o := range all.failed {
		t.Errorf("seed %d: %v\nagain: go test ./internal/tunnel/sim -run TestSim -seed %d -v", o.seed, o.err, o.seed)
	}
	if t.Failed() {
		return
	}
	report = append(report, summary(all), checkPairs(t, all), "seconds="+strconv.Itoa(int(time.Since(began).Seconds())))
}

func schedules() int {
	switch {
	case *schedulesFlag > 0:
		return *schedulesFlag
	case os.Getenv("TUNNELD_LONG") != "":
		return 1000000
	case raceEnabled:
		return 1000
	}
	return 20000
}

func summary(t *tally) string {
	slices.Sort(t.each)
	return fmt.Sprintf("schedules=%d seeds=%d-%d steps=%d median-steps=%d cuts=%d crashes=%d resumes=%d sessions=%d ends=%d saves=%d failed-saves=%d clock-steps=%d thefts=%d losses=%d rebuilds=%d drains=%d moves=%d retargets=%d loops=%d refreshes=%d address-offers=%d readdressed=%d parks=%d",
		t.n, *fromFlag, *fromFlag+uint64(t.n)-1, t.steps, t.each[t.n/2], t.cuts, t.crashes, t.resumes, t.sessions, t.ends, t.saves, t.full, t.clocks, t.thefts, t.losses, t.rebuilds, t.drains, t.moves, t.retargets, t.loops, t.refreshes, t.offers, t.readdressed, t.parks)
}

// TestReplay: one seed is one schedule, or a failure could not be looked at.
func TestReplay(t *testing.T) {
	for seed := uint64(1); seed < 1000; seed += 97 {
		a, b := schedule(seed, true), schedule(seed, true)
		if a.trace != b.trace {
			t.Errorf("seed %d: two different schedules of %d and %d octets", seed, len(a.trace), len(b.trace))
		}
	}
}

// wanted is the share of the reachable pairs that a run of 20,000 has to reach.
const wanted = 0.95

// pairsFile lists the pairs of a situation and an event that honest peers can
// reach: all that any run ever reached, million-schedule runs included. What the
// table tests of internal/control list beyond them takes a peer that breaks the
// rules.
const pairsFile = "testdata/pairs.txt"

// checkPairs compares the pairs that were reached with those that can be.
func checkPairs(t *testing.T, all *tally) string {
	got := all.pairs
	b, err := os.ReadFile(pairsFile)
	if err != nil && !*updateFlag {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		known[strings.TrimSpace(line)] = true
	}
	n := 0
	var fresh []string
	for p := range got {
		if known[p.String()] {
			n++
			continue
		}
		fresh = append(fresh, p.String())
	}
	for _, p := range fresh {
		t.Logf("reached for the first time: %s (-update adds it)", p)
		known[p] = *updateFlag || known[p]
	}
	maps.DeleteFunc(known, func(_ string, listed bool) bool { return !listed })
	if *updateFlag {
		if err := os.WriteFile(pairsFile, []byte(strings.Join(slices.Sorted(maps.Keys(known)), "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	share := float64(n) / float64(len(known))
	if all.n >= 20000 && share < wanted {
		t.Errorf("reached %.1f %% of the pairs, want %.0f %%", 100*share, 100*wanted)
	}
	return fmt.Sprintf("pairs=%d/%d", n, len(known))
}

func (p pair) String() string { return p.situation + " | " + p.event }
