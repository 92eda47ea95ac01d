package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"tunneld/internal/api"
	"tunneld/internal/api/apitest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tunneld": main})
}

// TestScripts runs the stories in testdata/script. Beside testscript's own they
// have these commands:
//
//	exits N CMD ARG...   run CMD, which must exit with status N
//	daemon SOCKET        another daemon listens at SOCKET
//	mode PERM FILE       the rights of FILE
//	powerless N ARG...   run tunneld without CAP_NET_ADMIN; it must exit with N
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: func(env *testscript.Env) error { env.Setenv("GORACE", "atexit_sleep_ms=0"); return nil },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":     cmdExits,
			"daemon":    cmdDaemon,
			"mode":      cmdMode,
			"powerless": cmdPowerless,
		},
	})
}

func cmdExits(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits N CMD ARG...")
	}
	if got := exitStatus(ts.Exec(args[1], args[2:]...)); strconv.Itoa(got) != args[0] {
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

func cmdDaemon(ts *testscript.TestScript, _ bool, args []string) {
	l, err := api.Listen(ts.MkAbs(args[0]))
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- api.Serve(ctx, l, &apitest.Manager{}, slog.New(slog.DiscardHandler)) }()
	ts.Defer(func() {
		cancel()
		ts.Check(<-ended)
	})
}

func cmdMode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := "0" + strconv.FormatUint(uint64(info.Mode().Perm()), 8); got != args[0] {
		ts.Fatalf("mode of %s is %s, want %s", args[1], got, args[0])
	}
}

func cmdPowerless(ts *testscript.TestScript, neg bool, args []string) {
	without := []string{args[0], "tunneld"}
	if os.Geteuid() == 0 {
		without = []string{args[0], "setpriv", "--bounding-set", "-net_admin", "tunneld"}
	}
	cmdExits(ts, neg, append(without, args[1:]...))
}
