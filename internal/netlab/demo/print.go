package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// progressEvery is how often the line that is overwritten is.
const progressEvery = 200 * time.Millisecond

// printer writes lines with the time they were said at and, on a terminal, one
// more below them that shows progress. Methods may be called from any
// goroutine.
type printer struct {
	out      io.Writer
	start    time.Time
	terminal bool
	stop     chan struct{}
	wg       sync.WaitGroup
	once     sync.Once

	// mu guards everything below.
	mu       sync.Mutex
	progress func() string
}

func newPrinter(out io.Writer) *printer {
	p := &printer{out: out, start: time.Now(), terminal: isTerminal(out), stop: make(chan struct{})}
	if p.terminal {
		p.wg.Go(p.refresh)
	}
	return p
}

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// elapsed is the time since the beginning.
func (p *printer) elapsed() time.Duration { return time.Since(p.start) }

// line says what happened just now.
func (p *printer) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.eraseLocked()
	fmt.Fprintf(p.out, "%6.2fs  %s\n", p.elapsed().Seconds(), fmt.Sprintf(format, args...))
}

// show sets what the line of progress says; nil ends it.
func (p *printer) show(progress func() string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.progress = progress
	p.eraseLocked()
}

func (p *printer) eraseLocked() {
	if p.terminal {
		io.WriteString(p.out, "\r\x1b[K")
	}
}

func (p *printer) refresh() {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
		p.mu.Lock()
		if p.progress != nil {
			fmt.Fprintf(p.out, "\r\x1b[K%6.2fs  %s", p.elapsed().Seconds(), p.progress())
		}
		p.mu.Unlock()
	}
}

// close ends the line of progress. It may be called again.
func (p *printer) close() {
	p.once.Do(func() {
		close(p.stop)
		p.wg.Wait()
		p.show(nil)
	})
}
