package script

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"tunneld/internal/netlab"
)

// patience is how long anything in a story may take.
const patience = time.Minute

// usualPlan is the network of a story that says no other.
const usualPlan = "hq.eth0 192.0.2.1/24 -- alice.eth0 192.0.2.2/24"

// bin is set once, before any test runs.
var bin netlab.Binaries

// slots limits how many laboratories run at once, whatever -parallel says.
var slots = make(chan struct{}, 2)

func TestMain(m *testing.M) {
	os.Setenv("GORACE", "atexit_sleep_ms=0") // a race is told of at once; waiting at each exit helps nobody
	goleak.VerifyTestMain(built{m})
}

// built builds the commands before the tests, where tests can run, and removes
// them afterwards.
type built struct{ m *testing.M }

func (b built) Run() int {
	if netlab.Check() != nil {
		return b.m.Run() // each test says why it cannot
	}
	dir, err := os.MkdirTemp("", "script-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = os.Chmod(dir, 0o755) // other users run them too
	}
	if err == nil {
		bin, err = netlab.Build(context.Background(), dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return b.m.Run()
}

// TestScripts runs the stories in testdata/script. A node is written HOST/NAME,
// which is where its directory is, seen from where the script runs. Beside
// testscript's own they have these commands:
//
//	lab [PLAN]               builds the network of file PLAN, or hq with 192.0.2.1 and alice with 192.0.2.2
//	init NODE ARG...         tunneld init
//	start NODE               starts its daemon, which must come up
//	end NODE                 ends it in order
//	gateway NODE [ARG...]    init as gateway hq at 192.0.2.1:443, ARG or a network office, and start
//	node NODE GATEWAY ARG... init as a node named like its host, start, and join with an invite made with ARG
//	on HOST N CMD ARG...     runs CMD on the host; it must exit with status N
//	ctl NODE N ARG...        runs tunnelctl for the node's daemon, likewise
//	occupy HOST tcp|udp ADDR takes an address and port
//	edit FILE OLD NEW        replaces the one OLD in the file, \n in NEW begins a line
//	expire NODE GATEWAY      gives a stopped node a certificate whose life is over
//	outlive FILE             waits until the invite code in FILE is no longer good
//	remember                 notes how everything is: see snapshot
//	same                     fails if anything is not as noted
//
// The condition [root] is true for root of the machine, who can be other users.
func TestScripts(t *testing.T) {
	netlab.Require(t)
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: setup,
		Condition: func(cond string) (bool, error) {
			if cond != "root" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			m, err := os.ReadFile("/proc/self/uid_map")
			return os.Geteuid() == 0 && strings.Join(strings.Fields(string(m)), " ") == "0 0 4294967295", err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"lab":      story((*stage).build),
			"init":     story((*stage).init),
			"start":    story((*stage).start),
			"end":      story((*stage).end),
			"gateway":  story((*stage).gateway),
			"node":     story((*stage).node),
			"on":       story((*stage).on),
			"ctl":      story((*stage).ctl),
			"occupy":   story((*stage).occupy),
			"edit":     story((*stage).edit),
			"expire":   story((*stage).expire),
			"outlive":  story((*stage).outlive),
			"remember": story((*stage).remember),
			"same":     story((*stage).same),
		},
	})
}

// stage is the laboratory of one script.
type stage struct {
	lab    *netlab.Lab
	net    *netlab.Net
	nodes  map[string]*netlab.Daemon // by HOST/NAME
	before []string                  // as remember noted
}

type stageKey struct{}

// setup makes an empty laboratory, in whose directory the script runs: it is
// kept, with the logs in it, if the script fails.
func setup(env *testscript.Env) error {
	slots <- struct{}{}
	t := env.T().(interface {
		testscript.T
		netlab.TB
	})
	t.Cleanup(func() { <-slots })
	lab := netlab.ForTest(t)
	t.Cleanup(func() {
		for _, crash := range lab.Crashes() {
			t.Errorf("a daemon crashed: %s", crash)
		}
	})
	if err := os.CopyFS(lab.Dir(), os.DirFS(env.WorkDir)); err != nil {
		return err
	}
	if err := os.Chmod(lab.Dir(), 0o755); err != nil { // other users look in
		return err
	}
	env.Cd = lab.Dir()
	env.Setenv("WORK", lab.Dir())
	env.Setenv("PATH", filepath.Dir(bin.Tunneld)+":"+filepath.Dir(bin.Tunnelctl)+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	env.Values[stageKey{}] = &stage{lab: lab, nodes: map[string]*netlab.Daemon{}}
	return nil
}

// story makes a script's command of a method.
func story(f func(*stage, *testscript.TestScript, []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg {
			ts.Fatalf("! has no meaning here: on and ctl name the exit status")
		}
		f(ts.Value(stageKey{}).(*stage), ts, args)
	}
}

// within runs f under a deadline.
func within(ts *testscript.TestScript, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ts.Check(f(ctx))
}

func atLeast(ts *testscript.TestScript, args []string, n int) {
	if len(args) < n {
		ts.Fatalf("%d arguments, want at least %d", len(args), n)
	}
}

func (s *stage) build(ts *testscript.TestScript, args []string) {
	plan := usualPlan
	if len(args) > 0 {
		plan = ts.ReadFile(args[0])
	}
	var err error
	s.net, err = s.lab.Build(plan)
	ts.Check(err)
}

func (s *stage) host(ts *testscript.TestScript, name string) *netlab.Host {
	if s.net == nil || s.net.Hosts[name] == nil {
		ts.Fatalf("no host %q", name)
	}
	return s.net.Hosts[name]
}

// daemon finds a node; it is one from when it is first named.
func (s *stage) daemon(ts *testscript.TestScript, node string) *netlab.Daemon {
	if d := s.nodes[node]; d != nil {
		return d
	}
	host, name, ok := strings.Cut(node, "/")
	if !ok {
		ts.Fatalf("node %q is not HOST/NAME", node)
	}
	s.nodes[node] = s.host(ts, host).Daemon(bin, name)
	return s.nodes[node]
}

func (s *stage) init(ts *testscript.TestScript, args []string) {
	atLeast(ts, args, 1)
	within(ts, func(ctx context.Context) error { return s.daemon(ts, args[0]).Init(ctx, args[1:]...) })
}

func (s *stage) start(ts *testscript.TestScript, args []string) {
	atLeast(ts, args, 1)
	d := s.daemon(ts, args[0])
	ts.Check(d.Start())
	within(ts, d.WaitReady)
}

func (s *stage) end(ts *testscript.TestScript, args []string) {
	atLeast(ts, args, 1)
	ts.Check(s.daemon(ts, args[0]).Process().Stop())
}

func (s *stage) gateway(ts *testscript.TestScript, args []string) {
	atLeast(ts, args, 1)
	networks := args[1:]
	if len(networks) == 0 {
		networks = []string{"--network", "office=10.77.0.0/24"}
	}
	s.init(ts, append([]string{args[0], "--name", "hq", "--public", "192.0.2.1:443"}, networks...))
	s.start(ts, args)
}

func (s *stage) node(ts *testscript.TestScript, args []string) {
	atLeast(ts, args, 2)
	d, gateway := s.daemon(ts, args[0]), s.daemon(ts, args[1])
	name := d.Host().Name()
	s.init(ts, []string{args[0], "--name", name})
	s.start(ts, args)
	within(ts, func(ctx context.Context) error {
		code, err := gateway.Ctl(ctx, append([]string{"invite", name}, args[2:]...)...)
		if err != nil {
			return err
		}
		_, err = d.CtlInput(ctx, code, "join", "-")
		return err
	})
}

// on runs a program with its thread in the host's namespace, which the program
// inherits. One that does not end, as a daemon that should have refused, is
// ended.
func (s *stage) on(ts *testscript.TestScript, args []string) {
	atLeast(ts, args, 3)
	limit := strconv.Itoa(int(patience.Seconds()))
	var err error
	ts.Check(s.host(ts, args[0]).Do(func() error {
		err = ts.Exec("timeout", append([]string{limit}, args[2:]...)...)
		return nil
	}))
	if got := exitStatus(err); strconv.Itoa(got) != args[1] {
		ts.Fatalf("exit status %d, want %s", got, args[1])
	}
}

func exitStatus(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	return -1
}

func (s *stage) ctl(ts *testscript.TestScript, args []string) {
	atLeast(ts, args, 3)
	d := s.daemon(ts, args[0])
	command := []string{d.Host().Name(), args[1], "tunnelctl", "--socket", filepath.Join(d.Dir(), "tunneld.sock")}
	s.on(ts, append(command, args[2:]...))
}

// occupy holds a port until the script ends.
func (s *stage) occupy(ts *testscript.TestScript, args []string) {
	atLeast(ts, args, 3)
	h := s.host(ts, args[0])
	switch args[1] {
	case "tcp":
		ts.Check(h.Do(func() error {
			l, err := listenTCP(args[2])
			if err == nil {
				ts.Defer(func() { l.Close() })
			}
			return err
		}))
	case "udp":
		conn, err := h.ListenUDP(args[2])
		ts.Check(err)
		ts.Defer(func() { conn.Close() })
	default:
		ts.Fatalf("occupy %q: want tcp or udp", args[1])
	}
}

func (s *stage) edit(ts *testscript.TestScript, args []string) {
	atLeast(ts, args, 3)
	text := ts.ReadFile(args[0])
	if n := strings.Count(text, args[1]); n != 1 {
		ts.Fatalf("%s has %q %d times, want once:\n%s", args[0], args[1], n, text)
	}
	text = strings.Replace(text, args[1], strings.ReplaceAll(args[2], `\n`, "\n"), 1)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o644))
}
