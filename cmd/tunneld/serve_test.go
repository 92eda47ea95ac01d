package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tunneld/internal/api"
	"tunneld/internal/api/apitest"
	"tunneld/internal/config"
)

// fakeDaemon is ready when told so and ends as it is told.
type fakeDaemon struct {
	*apitest.Manager
	ready   chan struct{}
	fails   chan error
	retired chan time.Duration // what Retire was asked for; it returns when ctx ends
}

func newFake() *fakeDaemon {
	return &fakeDaemon{Manager: &apitest.Manager{}, ready: make(chan struct{}), fails: make(chan error, 1), retired: make(chan time.Duration, 1)}
}

func (d *fakeDaemon) Ready() <-chan struct{} { return d.ready }

func (d *fakeDaemon) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-d.fails:
		return err
	}
}

func (d *fakeDaemon) Retire(ctx context.Context, wait time.Duration) {
	d.retired <- wait
	<-ctx.Done()
}

// notifications are what systemd would be told.
func notifications(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

func next(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	b := make([]byte, 256)
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	n, err := conn.Read(b)
	if err != nil {
		t.Fatalf("systemd is not told: %v", err)
	}
	return string(b[:n])
}

// serving is a serve under way.
type serving struct {
	path  string
	stop  context.CancelFunc
	ended chan error
}

func startServe(t *testing.T, d *fakeDaemon) *serving {
	t.Helper()
	s := &serving{path: filepath.Join(t.TempDir(), "s"), ended: make(chan error, 1)}
	l, err := api.Listen(s.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	t.Cleanup(cancel)
	go func() { s.ended <- serve(ctx, d, l, slog.New(slog.NewTextHandler(t.Output(), nil))) }()
	return s
}

func (s *serving) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-s.ended:
		return err
	case <-time.After(time.Minute):
		t.Fatal("serve does not end")
		return nil
	}
}

func TestServe(t *testing.T) {
	defer goleak.VerifyNone(t)
	systemd, d := notifications(t), newFake()
	s := startServe(t, d)
	close(d.ready)
	if got := next(t, systemd); got != "READY=1" {
		t.Errorf("systemd is told %q, want READY=1", got)
	}
	if _, err := api.Dial(s.path).Status(t.Context()); err != nil {
		t.Errorf("a daemon that is ready does not answer: %v", err)
	}
	s.stop()
	if got := next(t, systemd); got != "STOPPING=1" {
		t.Errorf("systemd is told %q, want STOPPING=1", got)
	}
	if err := s.end(t); err != nil {
		t.Errorf("serve = %v, want nil", err)
	}
	if _, err := os.Lstat(s.path); err == nil {
		t.Error("the socket is still there")
	}
}

// Nothing may ask a manager that is not ready; whoever connects waits.
func TestServeWaitsForReady(t *testing.T) {
	defer goleak.VerifyNone(t)
	d := newFake()
	s := startServe(t, d)
	answered := make(chan error, 1)
	go func() {
		_, err := api.Dial(s.path).Status(context.Background())
		answered <- err
	}()
	conn, err := net.Dial("unix", s.path) // the backlog takes callers meanwhile
	if err != nil {
		t.Fatalf("nobody listens before the daemon is ready: %v", err)
	}
	conn.Close()
	if asked := d.Asked(); len(asked) != 0 {
		t.Errorf("before it was ready the daemon was asked %q", asked)
	}
	close(d.ready)
	if err := <-answered; err != nil {
		t.Errorf("whoever came early is not answered: %v", err)
	}
	s.stop()
	s.end(t)
}

func TestServeEndsWithTheDaemon(t *testing.T) {
	defer goleak.VerifyNone(t)
	broken := errors.New("port 443 is taken")
	for _, early := range []bool{true, false} {
		d := newFake()
		s := startServe(t, d)
		if !early {
			close(d.ready)
		}
		d.fails <- broken
		if err := s.end(t); !errors.Is(err, broken) {
			t.Errorf("serve = %v, want %v", err, broken)
		}
	}
}

func TestServeEndsWithItsListener(t *testing.T) {
	defer goleak.VerifyNone(t)
	d := newFake()
	l, err := api.Listen(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	close(d.ready)
	if err := serve(t.Context(), d, l, slog.New(slog.DiscardHandler)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("serve = %v, want %v: a daemon that cannot be steered ends", err, net.ErrClosed)
	}
}

// The first signal says how to end, the second one ends the wait for that.
func TestSignals(t *testing.T) {
	defer goleak.VerifyNone(t)
	first, again, release := watchSignals(slog.New(slog.DiscardHandler))
	defer release()
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case s := <-first:
		if s != syscall.SIGTERM {
			t.Errorf("the first signal is %v, want SIGTERM", s)
		}
	case <-time.After(time.Minute):
		t.Fatal("the first signal ends nothing")
	}
	select {
	case <-again:
		t.Fatal("one signal counts as two")
	default:
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case <-again:
	case <-time.After(time.Minute):
		t.Fatal("the second signal is not heard")
	}
}

// SIGTERM has the nodes leave where the configuration says so, and systemd is
// told that it takes longer.
func TestRetire(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, c := range []struct {
		name  string
		s     os.Signal
		g     *config.Gateway
		ready bool
	}{
		{"a plain node", syscall.SIGTERM, nil, true},
		{"without the key", syscall.SIGTERM, &config.Gateway{}, true},
		{"another signal", syscall.SIGINT, &config.Gateway{DrainOnStop: time.Minute}, true},
		{"before it is up", syscall.SIGTERM, &config.Gateway{DrainOnStop: time.Minute}, false},
	} {
		d := newFake()
		if c.ready {
			close(d.ready)
		}
		retire(t.Context(), d, c.s, c.g, log)
		if len(d.retired) != 0 {
			t.Errorf("%s: the nodes have to leave", c.name)
		}
	}
	systemd, d := notifications(t), newFake()
	close(d.ready)
	ctx, end := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		retire(ctx, d, syscall.SIGTERM, &config.Gateway{DrainOnStop: 2 * time.Minute}, log)
	}()
	if wait := <-d.retired; wait != 2*time.Minute {
		t.Errorf("the nodes have %v, want 2m", wait)
	}
	if got, want := next(t, systemd), "STOPPING=1\nEXTEND_TIMEOUT_USEC=130000000"; got != want {
		t.Errorf("systemd is told %q, want %q", got, want)
	}
	end()
	<-done
}

func TestLogForTheJournal(t *testing.T) {
	var b bytes.Buffer
	log := newLog(&b, slog.LevelDebug, true)
	log.Debug("message sent")
	log.Info("daemon started", "node", "gw1")
	log.With("tunnel", "home").Warn("peer silent")
	log.WithGroup("g").Error("journal lost", "err", "no space left on device")
	want := `<7>level=DEBUG msg="message sent"
<6>level=INFO msg="daemon started" node=gw1
<4>level=WARN msg="peer silent" tunnel=home
<3>level=ERROR msg="journal lost" g.err="no space left on device"
`
	if b.String() != want {
		t.Errorf("log =\n%swant\n%s", &b, want)
	}
}

func TestLogForPeople(t *testing.T) {
	var b bytes.Buffer
	log := newLog(&b, slog.LevelWarn, false)
	log.Info("daemon started")
	log.Warn("peer silent")
	if got := b.String(); !strings.HasPrefix(got, "time=") || strings.Contains(got, "started") || !strings.Contains(got, "level=WARN") {
		t.Errorf("log = %q, want one line with its time", got)
	}
}

// JOURNAL_STREAM counts only for the stream it names.
func TestToJournal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	stream := streamOf(&st)
	for _, tt := range []struct {
		name   string
		stderr io.Writer
		stream string
		want   bool
	}{
		{"the stream itself", f, stream, true},
		{"no journal", f, "", false},
		{"another stream", f, stream + "1", false},
		{"no file", io.Discard, stream, false},
	} {
		if got := toJournal(tt.stderr, tt.stream); got != tt.want {
			t.Errorf("%s: toJournal = %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestParts(t *testing.T) {
	var closed []string
	p := parts{closer{"first", &closed}, closer{"second", &closed}}
	if err := p.Close(); err == nil || strings.Join(closed, " ") != "second first" {
		t.Errorf("Close = %v after closing %q, want both errors and the last one first", err, closed)
	}
}

type closer struct {
	name string
	to   *[]string
}

func (c closer) Close() error {
	*c.to = append(*c.to, c.name)
	return errors.New(c.name)
}
