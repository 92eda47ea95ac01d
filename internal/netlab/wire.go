package netlab

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Direction says which way a frame goes on a wire.
type Direction int

// The two directions, after the order of the hosts in [Lab.Wire].
const (
	AtoB Direction = iota
	BtoA
)

// Other returns the opposite direction.
func (d Direction) Other() Direction { return 1 - d }

// Counters of one direction of a wire, in frames.
type Counters struct {
	Received  uint64 // taken from the sending host
	Delivered uint64 // given to the other one
	Lost      uint64 // by Impairment.Loss
	Overflow  uint64 // by Impairment.Rate
	Cut       uint64 // while the wire was cut
	Dropped   uint64 // by DropTCP and DropUDP
	Reordered uint64
	Doubled   uint64
}

// End is where a wire is plugged in.
type End struct {
	Host *Host
	If   string
	fd   int
}

// Wire joins an interface of one host to one of another, or of the same.
// Methods may be called from any goroutine.
type Wire struct {
	ends  [2]End
	start time.Time
	stop  int // eventfd, readable for good once the wire is closed
	wg    sync.WaitGroup
	once  sync.Once

	// mu guards everything below.
	mu       sync.Mutex
	im       Impairment
	lines    [2]*delayLine
	counters [2]Counters
	cut      bool
	drops    map[dropKey]bool
	flows    map[flowKey]*flow
	tap      func(Direction, []byte)
	pcap     *pcapWriter
	err      error
}

type dropKey struct {
	proto uint8
	port  uint16
}

// Wire makes an interface on each host (they may not exist yet) and joins
// them. Both are up; see [Host.SetAddr] for addresses.
func (l *Lab) Wire(a *Host, ifA string, b *Host, ifB string, im Impairment) (*Wire, error) {
	w := &Wire{start: time.Now(), im: im, drops: map[dropKey]bool{}, flows: map[flowKey]*flow{}}
	w.ends = [2]End{{Host: a, If: ifA, fd: -1}, {Host: b, If: ifB, fd: -1}}
	w.lines = [2]*delayLine{newDelayLine(im.Seed, 0), newDelayLine(im.Seed, 1)}
	if err := w.open(l); err != nil {
		w.closeFDs()
		return nil, fmt.Errorf("wire %s: %w", w.Name(), err)
	}
	for d := range w.ends {
		w.wg.Go(func() { w.relay(Direction(d)) })
	}
	l.add(w)
	return w, nil
}

func (w *Wire) open(l *Lab) (err error) {
	if w.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		w.stop = -1
		return fmt.Errorf("eventfd: %w", err)
	}
	for i := range w.ends {
		e := &w.ends[i]
		if err := e.Host.Do(func() (err error) { e.fd, err = openTAP(e.If); return err }); err != nil {
			e.fd = -1
			return err
		}
		if err := e.Host.plug(e.If, l.nextMAC()); err != nil {
			return err
		}
	}
	return w.openPcap()
}

// Name is "hostA.ifA-hostB.ifB".
func (w *Wire) Name() string {
	return fmt.Sprintf("%s.%s-%s.%s", w.ends[0].Host.Name(), w.ends[0].If, w.ends[1].Host.Name(), w.ends[1].If)
}

// Set changes what the wire does from the next packet on. The seed stays the
// one the wire was made with.
func (w *Wire) Set(im Impairment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	im.Seed = w.im.Seed
	w.im = im
}

// Cut drops every frame from now on, also those on their way; the hosts see
// nothing of it. See [Wire.SetCarrier] for a cable that is pulled out visibly.
func (w *Wire) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
	for d, line := range w.lines {
		w.counters[d].Cut += uint64(line.clear())
	}
}

// Restore undoes Cut.
func (w *Wire) Restore() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = false
}

// SetCarrier lowers or raises the carrier at both ends.
func (w *Wire) SetCarrier(up bool) error {
	for _, e := range w.ends {
		if err := setCarrier(e.fd, up); err != nil {
			return fmt.Errorf("wire %s: %w", w.Name(), err)
		}
	}
	return nil
}

// DropTCP drops, silently, all TCP from and to a port, or no more. What is
// sent over UDP passes: the half-open connection.
func (w *Wire) DropTCP(port uint16, on bool) { w.drop(dropKey{protoTCP, port}, on) }

// DropUDP is DropTCP for UDP: the network that lets only the web through.
func (w *Wire) DropUDP(port uint16, on bool) { w.drop(dropKey{protoUDP, port}, on) }

func (w *Wire) drop(key dropKey, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if on {
		w.drops[key] = true
	} else {
		delete(w.drops, key)
	}
}

// Tap has f called with each frame that is delivered; nil ends that. The frame
// is valid, and f may not call the wire, until f returns.
func (w *Wire) Tap(f func(d Direction, frame []byte)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tap = f
}

// Counters returns those of one direction.
func (w *Wire) Counters(d Direction) Counters {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counters[d]
}

// Err returns what broke the relay, which is for good; nil while it works.
func (w *Wire) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Close unplugs the wire: both interfaces vanish. It returns when the relays
// have ended, and may be called again.
func (w *Wire) Close() error {
	w.once.Do(func() {
		unix.Write(w.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		w.wg.Wait()
		w.closeFDs()
		w.pcap.close()
	})
	return nil
}

func (w *Wire) closeFDs() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, fd := range []*int{&w.stop, &w.ends[0].fd, &w.ends[1].fd} {
		if *fd >= 0 {
			unix.Close(*fd)
		}
		*fd = -1 // the number will be somebody else's
	}
}

// relay moves the frames of one direction. It waits in ppoll, because its
// timeout is exact to the kernel's timer slack, where the runtime's timers are
// exact to a millisecond.
func (w *Wire) relay(d Direction) {
	buf := make([]byte, maxFrame)
	from := w.ends[d].fd
	for {
		if stop, err := waitReadable(from, w.stop, w.untilDue(d)); stop || err != nil {
			w.fail(err)
			return
		}
		for range 64 { // then look what is due
			n, ok, err := readFrame(from, buf)
			if err != nil {
				w.fail(err)
				return
			}
			if !ok {
				break
			}
			w.accept(d, buf[:n])
		}
		w.deliver(d)
	}
}

// waitReadable waits until there is something to read, or the timeout is over
// (none if negative). stop says that it is for the wire to end.
func waitReadable(fd, stopFD int, timeout time.Duration) (stop bool, err error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stopFD), Events: unix.POLLIN}}
	var ts *unix.Timespec
	if timeout >= 0 {
		t := unix.NsecToTimespec(int64(timeout))
		ts = &t
	}
	if _, err := unix.Ppoll(fds, ts, nil); err != nil && err != unix.EINTR {
		return false, fmt.Errorf("ppoll: %w", err)
	}
	if fds[0].Revents&unix.POLLNVAL != 0 {
		return false, fmt.Errorf("ppoll: descriptor %d is not open", fd)
	}
	return fds[1].Revents != 0, nil
}

func (w *Wire) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

func (w *Wire) untilDue(d Direction) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	due, ok := w.lines[d].next()
	if !ok {
		return -1
	}
	return max(0, due-time.Since(w.start))
}

// accept decides about one frame that host d sent. frame is the caller's.
func (w *Wire) accept(d Direction, frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := &w.counters[d]
	c.Received++
	if w.cut {
		c.Cut++
		return
	}
	p, isIP := parse(frame)
	if !isIP || p.neighbourly() {
		w.passLocked(d, frame)
		return
	}
	if w.drops[dropKey{p.proto, p.src.Port()}] || w.drops[dropKey{p.proto, p.dst.Port()}] {
		c.Dropped++
		return
	}
	w.noteLocked(d, p)
	f := w.lines[d].push(w.im, append([]byte(nil), frame...), time.Since(w.start))
	for _, n := range []struct {
		happened bool
		counter  *uint64
	}{{f.lost, &c.Lost}, {f.overflow, &c.Overflow}, {f.reordered, &c.Reordered}, {f.duplicated, &c.Doubled}} {
		if n.happened {
			*n.counter++
		}
	}
}

// deliver passes on what is due.
func (w *Wire) deliver(d Direction) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		frame, ok := w.lines[d].pop(time.Since(w.start))
		if !ok {
			return
		}
		w.passLocked(d, frame)
	}
}

func (w *Wire) passLocked(d Direction, frame []byte) {
	w.counters[d].Delivered++
	writeFrame(w.ends[d.Other()].fd, frame)
	w.pcap.write(frame)
	if w.tap != nil {
		w.tap(d, frame)
	}
}
