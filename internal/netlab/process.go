package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	logTail  = 40               // lines of each log that a failing test shows
	stopWait = 15 * time.Second // for a process to end after SIGTERM
)

// Process is a program running on a host. Its output goes to a log in the
// laboratory's directory. Methods may be called from any goroutine.
type Process struct {
	host *Host
	name string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; read it after done
}

// Start runs a program on the host, in a process group of its own, so that a
// terminal's interrupt reaches this process alone. name is the log's: lines of
// an earlier process of the same name stay in it.
func (h *Host) Start(name, path string, args ...string) (*Process, error) {
	return h.startWith(name, nil, nil, path, args...)
}

// startWith is Start with more environment, and descriptors from 3 on.
func (h *Host) startWith(name string, env []string, files []*os.File, path string, args ...string) (*Process, error) {
	if h.isClosed() {
		return nil, fmt.Errorf("host %s: start %s: %w", h.name, name, ErrClosed)
	}
	file, err := h.lab.path(h.name, name+".log")
	if err != nil {
		return nil, fmt.Errorf("host %s: log of %s: %w", h.name, name, err)
	}
	log, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("host %s: log of %s: %w", h.name, name, err)
	}
	defer log.Close() // the child has its own
	fmt.Fprintf(log, "--- %s starts %s %q\n", time.Now().Format("15:04:05.000"), path, args)

	p := &Process{host: h, name: name, done: make(chan struct{})}
	p.cmd = command(context.Background(), path, args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env, p.cmd.ExtraFiles = append(p.cmd.Environ(), env...), files
	if err := h.onKeeper(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("host %s: start %s: %w", h.name, name, err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	h.lab.add(p)
	return p, nil
}

// command prepares a program of the laboratory. One with the race detector
// would sleep for a second before each exit; reports come without that, too.
func command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	if raceEnabled {
		cmd.Env = append(os.Environ(), strings.TrimSpace("GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0"))
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}
	return cmd
}

// ExitError is a program that ended with a status other than 0.
type ExitError struct {
	Command string
	Status  int
	Stderr  string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", e.Command, e.Status, bytes.TrimSpace([]byte(e.Stderr)))
}

// Run runs a program on the host to its end and returns what it wrote to
// stdout. The error is an *ExitError if it ended badly by itself.
func (h *Host) Run(ctx context.Context, stdin, path string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := command(ctx, path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader([]byte(stdin)), &stdout, &stderr
	cmd.WaitDelay = time.Second
	if err := h.onKeeper(cmd.Start); err != nil {
		return "", fmt.Errorf("host %s: start %s: %w", h.name, path, err)
	}
	err := cmd.Wait()
	what := fmt.Sprintf("%s: %s %q", h.name, filepath.Base(path), args)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return stdout.String(), &ExitError{Command: what, Status: exit.ExitCode(), Stderr: stderr.String()}
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", what, errors.Join(context.Cause(ctx), err), bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// PID of the process, also after its end.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the process has not ended; a frozen one has not.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Wait waits for the end of the process and returns what ended it: nil for
// exit status 0.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%s on %s: %w", p.name, p.host.name, p.err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s on %s has not ended: %w", p.name, p.host.name, context.Cause(ctx))
	}
}

// Freeze stops the process as closing the lid of a laptop does (SIGSTOP). It
// returns when the process stands still.
func (p *Process) Freeze() error {
	if err := p.signal(unix.SIGSTOP); err != nil {
		return err
	}
	for p.Running() {
		state, err := procState(p.PID())
		if err != nil {
			return fmt.Errorf("freeze %s on %s: %w", p.name, p.host.name, err)
		}
		if state == 'T' {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("freeze %s on %s: %w", p.name, p.host.name, os.ErrProcessDone)
}

// procState reads the state letter of proc(5).
func procState(pid int) (byte, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	i := bytes.LastIndexByte(b, ')') // the name before it may hold anything
	if i < 0 || i+2 >= len(b) {
		return 0, fmt.Errorf("/proc/%d/stat has no state", pid)
	}
	return b[i+2], nil
}

// Thaw undoes Freeze.
func (p *Process) Thaw() error { return p.signal(unix.SIGCONT) }

// Kill9 kills the process with SIGKILL and waits for its end, by which the
// kernel has closed its sockets and removed its interfaces.
func (p *Process) Kill9() error {
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Stop asks the process to end (SIGTERM) and waits. A status other than 0, or
// none within some seconds, is an error; then the process is killed.
func (p *Process) Stop() error {
	if err := p.signal(unix.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopWait)
	defer cancel()
	err := p.Wait(ctx)
	return errors.Join(err, p.Close())
}

func (p *Process) signal(sig unix.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("send %v to %s on %s: %w", sig, p.name, p.host.name, err)
	}
	return nil
}

// Close kills the process if it runs, and waits for its end.
func (p *Process) Close() error {
	if p.Running() {
		p.cmd.Process.Kill() // an error means that it has ended meanwhile
	}
	<-p.done
	return nil
}

// LogTails returns the last lines of every log of the laboratory.
func (l *Lab) LogTails(lines int) string {
	var out bytes.Buffer
	for _, file := range l.Logs() {
		b, err := os.ReadFile(file)
		if err != nil {
			fmt.Fprintf(&out, "==> %s: %v\n", file, err)
			continue
		}
		all := bytes.SplitAfter(b, []byte("\n"))
		fmt.Fprintf(&out, "==> %s (%d lines)\n%s\n", file, len(all)-1, bytes.Join(all[max(0, len(all)-1-lines):], nil))
	}
	return out.String()
}

// Logs returns the files that processes have written to.
func (l *Lab) Logs() []string {
	files, _ := filepath.Glob(filepath.Join(l.dir, "*", "*.log")) // fails for bad patterns only
	return files
}

// Crashes returns the first line of each crash and data race that a log of the
// laboratory tells of.
func (l *Lab) Crashes() []string {
	var found []string
	for _, file := range l.Logs() {
		b, err := os.ReadFile(file)
		if err != nil {
			found = append(found, err.Error())
		}
		for line := range bytes.Lines(b) {
			for _, start := range []string{"panic: ", "fatal error: ", "WARNING: DATA RACE"} {
				if bytes.HasPrefix(line, []byte(start)) {
					found = append(found, fmt.Sprintf("%s: %s", file, bytes.TrimSpace(line)))
				}
			}
		}
	}
	return found
}

// Poll calls done every few milliseconds until it reports true, and returns
// nil; or until it fails or ctx ends, and returns why.
func Poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
