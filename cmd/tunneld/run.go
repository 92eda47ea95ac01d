package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"tunneld/internal/api"
	"tunneld/internal/config"
	"tunneld/internal/event"
)

// daemon is the manager as this package sees it.
type daemon interface {
	api.Manager
	// Run brings everything up and keeps it so until ctx ends; then sessions
	// are suspended and our changes taken off the host. It returns nil when it
	// was ctx that ended it.
	Run(ctx context.Context) error
	// Retire has the nodes of a gateway leave, for wait at most, or until ctx
	// ends.
	Retire(ctx context.Context, wait time.Duration)
	// Ready is closed when Run has brought everything up. Before that no
	// other method may be called.
	Ready() <-chan struct{}
}

// errAtOnce is what a second signal leads to.
var errAtOnce = errors.New("ended at once by a second signal; what was changed on the host may be left behind until the next start")

func newRun(c *cli) *cobra.Command {
	var file, trace, level string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "run the daemon",
		Long:  runUsage,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var l slog.Level
			switch level {
			case "debug", "info", "warn", "error":
				_ = l.UnmarshalText([]byte(level)) // knows these four
			default:
				return usageOf(cmd, "--log-level is %q, want debug, info, warn or error", level)
			}
			return c.run(cmd.Context(), file, trace, newLog(c.stderr, l, toJournal(c.stderr, c.env("JOURNAL_STREAM"))))
		},
	}
	cmd.Flags().StringVar(&file, "config", config.DefaultPath, "the configuration")
	cmd.Flags().StringVar(&trace, "trace", "", "where control messages are written to")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	_ = cmd.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// run is everything between the command line and the daemon's end. Checks that
// touch nothing come first.
func (c *cli) run(ctx context.Context, file, trace string, log *slog.Logger) error {
	cfg, err := load(file)
	if err != nil {
		return err
	}
	if err := harden(); err != nil {
		return err
	}
	first, second, release := watchSignals(log)
	defer release()
	l, err := api.Listen(cfg.Node.Socket)
	if err != nil {
		return err
	}
	defer l.Close()
	heir, err := inherit(c.env, os.Getpid(), log)
	if err != nil {
		return err
	}
	d, err := newDaemon(cfg, trace, heir, log)
	if err != nil {
		return err
	}
	var leaving sync.WaitGroup
	defer leaving.Wait()
	ctx, end := context.WithCancel(ctx)
	defer end()
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, d, l, log) }()
	for {
		select {
		case err := <-ended:
			return err
		case s := <-first:
			leaving.Go(func() {
				retire(ctx, d, s, cfg.Gateway, log)
				end()
			})
		case <-second:
			return errAtOnce // whatever still runs ends with the process
		}
	}
}

// stopTime is how long an orderly end may take: TimeoutStopSec= of our unit.
const stopTime = 10 * time.Second

// retire has the nodes of a gateway leave before it ends, if the configuration
// says so and SIGTERM is what ends it. systemd is asked for that much more time.
func retire(ctx context.Context, d daemon, s os.Signal, g *config.Gateway, log *slog.Logger) {
	if s != unix.SIGTERM || g == nil || g.DrainOnStop == 0 {
		return
	}
	select {
	case <-d.Ready():
	default:
		return // nobody has a session yet
	}
	notify(log, fmt.Sprintf("%s\nEXTEND_TIMEOUT_USEC=%d", sd.SdNotifyStopping, (g.DrainOnStop+stopTime).Microseconds()))
	d.Retire(ctx, g.DrainOnStop)
}

// serve runs the daemon and its local interface until ctx ends or one of them
// fails, and returns when both have ended.
func serve(ctx context.Context, d daemon, l net.Listener, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var apiErr error
	wg.Go(func() {
		select {
		case <-d.Ready():
			notify(log, sd.SdNotifyReady)
			apiErr = api.Serve(ctx, l, d, log)
			cancel() // a daemon that cannot be steered is of no use
		case <-ctx.Done():
		}
	})
	wg.Go(func() {
		<-ctx.Done()
		notify(log, sd.SdNotifyStopping)
	})
	err := d.Run(ctx)
	cancel()
	wg.Wait()
	return errors.Join(err, apiErr)
}

// watchSignals returns a channel that has the first SIGTERM, SIGINT or SIGHUP, and
// one that the second of them closes. release gives the signals back.
func watchSignals(log *slog.Logger) (first <-chan os.Signal, second <-chan struct{}, release func()) {
	in, one, again, done := make(chan os.Signal, 2), make(chan os.Signal, 1), make(chan struct{}), make(chan struct{})
	signal.Notify(in, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 1; ; n++ {
			select {
			case s := <-in:
				log.Info("signal received", event.KeyCause, s.String())
				if n == 2 {
					close(again)
					return
				}
				one <- s
			case <-done:
				return
			}
		}
	})
	return one, again, func() {
		signal.Stop(in)
		close(done)
		wg.Wait()
	}
}

// notify tells systemd, if it started us, how far we are (sd_notify(3)).
func notify(log *slog.Logger, state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		log.Warn("systemd not notified", event.KeyErr, fmt.Errorf("%s: %w", state, err))
	}
}
