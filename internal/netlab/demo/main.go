// Command demo shows what tunneld is for, in network namespaces of this
// machine: a road warrior behind NAT and a branch office reach a gateway, and
// their sessions outlive everything that is then done to them.
//
//	sudo make demo                        (DEMO_JSON=FILE for the results)
//	demo [-logs DIR]
//
//	alice ── nat ──┐
//	               ├── inet ── hq ── server
//	desk ── branch ┘
//
// It uses the two commands as anybody would: those that $TUNNELD_BIN and
// $TUNNELCTL_BIN name, or lie beside it, or else builds them. It prints line by
// line what happens, and in the end a table.
//
// Exit status: 0 everything held, 1 something did not or was interrupted, 2
// usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"tunneld/internal/netlab"
)

// jsonVar names the environment variable with the file for the results.
const jsonVar = "DEMO_JSON"

var errInterrupted = errors.New("interrupted")

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-signals
		cancel(errInterrupted)
	}()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	logs := flags.String("logs", "", "keep the daemons' files and logs in this `directory`")
	if flags.Parse(args) != nil {
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "demo: error: unexpected argument %q\n", flags.Arg(0))
		return 2
	}
	if err := perform(ctx, *logs, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "demo: error: %v\n", err)
		return 1
	}
	return 0
}

// perform plays the whole piece. Whatever happens, nothing of it is left when
// it returns.
func perform(ctx context.Context, logs string, stdout, stderr io.Writer) (err error) {
	if err := netlab.Check(); err != nil {
		return err
	}
	report, err := openReport(os.Getenv(jsonVar))
	if err != nil {
		return err
	}
	lab, err := netlab.New(netlab.Options{Dir: logs, Name: "demo"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	bin, err := binaries(ctx, lab.Dir())
	if err != nil {
		return err
	}
	say := newPrinter(stdout)
	defer say.close()
	t := &theatre{lab: lab, bin: bin, say: say, report: report}
	err = t.play(ctx)
	say.close()
	if err != nil && context.Cause(ctx) != nil {
		return errors.Join(context.Cause(ctx), report.write())
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s\n%s\n", lab.Picture(), lab.LogTails(30))
	}
	return errors.Join(err, report.close(stdout, say.elapsed()))
}

// binaries finds the two commands, or builds them into dir.
func binaries(ctx context.Context, dir string) (netlab.Binaries, error) {
	self, err := os.Executable()
	if err != nil {
		return netlab.Binaries{}, err
	}
	beside := netlab.Binaries{
		Tunneld:   filepath.Join(filepath.Dir(self), "tunneld"),
		Tunnelctl: filepath.Join(filepath.Dir(self), "tunnelctl"),
	}
	if os.Getenv(netlab.TunneldVar) == "" && os.Getenv(netlab.TunnelctlVar) == "" && exists(beside.Tunneld) && exists(beside.Tunnelctl) {
		return beside, nil
	}
	return netlab.Build(ctx, dir)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
