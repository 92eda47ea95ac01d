package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"tunneld/internal/api"
	"tunneld/internal/api/apitest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tunnelctl": main})
}

// TestScripts runs the stories in testdata/script. Beside testscript's own they
// have these commands:
//
//	daemon [bare]        serve apitest.Manager at $TUNNELD_SOCKET
//	end                  end that daemon (stop is a command of testscript itself)
//	dead                 leave the socket of a daemon that died
//	garbage              serve something that is no daemon
//	exits N CMD ARG...   run CMD, which must exit with status N
//	stranger N RE CMD…   run CMD as another user; it must exit with status N
//	                     and print what RE matches on stderr
//	asked RE             what the daemon was asked, negated by !
//	happen EVENT         an event happens, once somebody follows
//	cutoff               the one who follows fell behind
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("TUNNELD_SOCKET", filepath.Join(env.WorkDir, "s"))
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			env.Values[daemonKey{}] = new(daemon)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon":   cmdDaemon,
			"end":      cmdEnd,
			"dead":     cmdDead,
			"garbage":  cmdGarbage,
			"exits":    cmdExits,
			"stranger": cmdStranger,
			"asked":    cmdAsked,
			"happen":   cmdHappen,
			"cutoff":   cmdCutoff,
		},
	})
}

type daemonKey struct{}

// daemon is the one daemon a script can have at a time.
type daemon struct {
	manager *apitest.Manager
	stop    func()
}

func daemonOf(ts *testscript.TestScript) *daemon { return ts.Value(daemonKey{}).(*daemon) }

func cmdDaemon(ts *testscript.TestScript, _ bool, args []string) {
	d := daemonOf(ts)
	d.manager = &apitest.Manager{Bare: len(args) > 0 && args[0] == "bare"}
	l, err := api.Listen(ts.Getenv("TUNNELD_SOCKET"))
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- api.Serve(ctx, l, d.manager, slog.New(slog.DiscardHandler)) }()
	d.stop = func() {
		cancel()
		ts.Check(<-ended)
		d.stop = func() {}
	}
	ts.Defer(func() { d.stop() })
}

func cmdEnd(ts *testscript.TestScript, _ bool, _ []string) { daemonOf(ts).stop() }

func cmdDead(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("unix", ts.Getenv("TUNNELD_SOCKET"))
	ts.Check(err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	ts.Check(l.Close())
}

func cmdGarbage(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("unix", ts.Getenv("TUNNELD_SOCKET"))
	ts.Check(err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Read(make([]byte, 4096))
			conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwhat"))
			conn.Close()
		}
	}()
	ts.Defer(func() { l.Close(); <-ended })
}

func cmdExits(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits N CMD ARG...")
	}
	err := ts.Exec(args[1], args[2:]...)
	if got := exitStatus(err); strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit status %d, want %s", got, args[0])
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

// cmdStranger runs this binary by descriptor, since another user reaches
// neither the directory it lies in nor that of the script.
func cmdStranger(ts *testscript.TestScript, _ bool, args []string) {
	self, err := os.Open("/proc/self/exe")
	ts.Check(err)
	defer self.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/fd/3", args[3:]...)
	cmd.Args[0] = args[2]
	cmd.ExtraFiles = []*os.File{self}
	cmd.Dir = "/"
	cmd.Env = []string{"TUNNELD_SOCKET=" + ts.Getenv("TUNNELD_SOCKET"), "GORACE=atexit_sleep_ms=0"}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 59001, Gid: 59001}}
	} else {
		ts.Check(os.Chmod(ts.Getenv("TUNNELD_SOCKET"), 0))
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	err = cmd.Run()
	if got := exitStatus(err); strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit status %d (%v), want %s; stderr:\n%s", got, err, args[0], stderr.String())
	}
	if !regexp.MustCompile(args[1]).MatchString(stderr.String()) {
		ts.Fatalf("stderr is\n%s\nwant what matches %q", stderr.String(), args[1])
	}
}

func cmdAsked(ts *testscript.TestScript, neg bool, args []string) {
	asked := strings.Join(daemonOf(ts).manager.Asked(), "\n")
	if got := regexp.MustCompile("(?m)" + args[0]).MatchString(asked); got == neg {
		ts.Fatalf("the daemon was asked\n%s", asked)
	}
}

func within(ts *testscript.TestScript, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ts.Check(f(ctx))
}

func cmdHappen(ts *testscript.TestScript, _ bool, args []string) {
	within(ts, func(ctx context.Context) error {
		return daemonOf(ts).manager.Happen(ctx, api.Event{Time: apitest.Start.Add(time.Hour), Event: args[0]})
	})
}

func cmdCutoff(ts *testscript.TestScript, _ bool, _ []string) {
	within(ts, daemonOf(ts).manager.CutOff)
}

// brokenPipe is an output that is full.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, fmt.Errorf("no space left on device") }

// A result that could not be written is no success.
func TestOutputThatIsFull(t *testing.T) {
	for _, args := range [][]string{{"version"}, {"version", "--json"}, {"--help"}, {"completion", "bash"}} {
		var stderr strings.Builder
		status := run(args, strings.NewReader(""), brokenPipe{}, &stderr, func(string) string { return filepath.Join(t.TempDir(), "s") })
		if status != exitFailed || !strings.Contains(stderr.String(), "no space left on device") {
			t.Errorf("run(%q) with a full output = %d, stderr %q, want %d that says so", args, status, &stderr, exitFailed)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain äöü 漢字":        "plain äöü 漢字",
		"red \x1b[31m":        `red \x1b[31m`,
		"two\nlines\ttab":     `two\nlines\ttab`,
		"right\u202eto left":  `right\u202eto left`,
		"bad \xff utf-8":      "bad \ufffd utf-8",
		"c1 \u009b":           `c1 \u009b`,
		`quote " and ' kept`:  `quote " and ' kept`,
		`a back\slash is one`: `a back\slash is one`,
		"del \x7f":            `del \x7f`,
		"apostrophe ' kept":   "apostrophe ' kept",
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestQuoted(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", "": `""`, "two words": `"two words"`, "a=b": `"a=b"`, "x\x1b": `"x\x1b"`, `q"`: `"q\""`,
	} {
		if got := quoted(in); got != want {
			t.Errorf("quoted(%q) = %s, want %s", in, got, want)
		}
	}
}
