package native

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/memfile"
	"tunneld/internal/tunnel/engine/noise"
	"tunneld/internal/tunnel/engine/udp"
)

// claimTime is how long an engine that has taken keypairs over waits for
// sessions to be added to which they belong, from New on. Meanwhile the kernel
// keeps what arrives.
const claimTime = 3 * time.Second

// A Descriptor is something of the kernel's that can outlive the process: a
// UDP socket, a queue of a TUN device, or the memory file. Name says which;
// the queues of one device share theirs, and so do the sockets.
type Descriptor struct {
	Name string
	FD   int
}

// Names of descriptors; that of a TUN device goes on with the interface.
const (
	memoryName = "memory"
	socketName = "udp"
	tunPrefix  = "tun-"
)

// A Keeper has descriptors of its own for what is to outlive the process, as
// systemd's store has. Its methods may be called from any goroutine.
type Keeper interface {
	// Keep sends the keeper descriptors under one name. They stay the
	// engine's, and must not be duplicated and closed in this process.
	Keep(name string, fds ...int) error
	// Forget has the keeper close what it has under a name.
	Forget(name string) error
}

// A legacy is the part of an engine that outlives the process, and what the
// process before this one left of its own.
type legacy struct {
	keeper Keeper        // nil: nothing outlives the process
	file   *memfile.File // nil: keypairs lie in ordinary memory
	log    *slog.Logger

	mu    sync.Mutex // guards everything below
	fds   map[string][]int
	finds map[session.ID][]memfile.Find // not claimed yet
}

// newLegacy takes over what c.Inherited names, closes what is of no use, and
// makes a memory file if there is none to go on with. It owns c.Inherited, also
// when it fails. Errors: [memfile.ErrInUse], [memfile.ErrSwap].
func newLegacy(c Config, at noise.Instant) (_ *legacy, err error) {
	l := &legacy{keeper: c.Keeper, log: c.Log, fds: make(map[string][]int), finds: make(map[session.ID][]memfile.Find)}
	for _, d := range c.Inherited {
		unix.CloseOnExec(d.FD)
		l.fds[d.Name] = append(l.fds[d.Name], d.FD)
	}
	if l.keeper == nil {
		l.discard()
		return l, nil
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if err := l.adopt(c.Journal, at); err != nil {
		return nil, err
	}
	if l.file == nil {
		if l.file, err = memfile.Create(c.Journal, newMixing()); err != nil {
			return nil, err
		}
		l.keep(memoryName, l.file.FD())
	}
	if err := l.file.CheckSwap(c.AllowSwap); err != nil {
		return nil, err
	}
	if err := l.file.Unlocked(); err != nil {
		l.log.Warn("keys not locked in memory", event.KeyErr, err)
	}
	return l, nil
}

// adopt goes on with the memory file of the process before, if there is one
// that fits.
func (l *legacy) adopt(journal session.ID, at noise.Instant) error {
	fds := l.take(memoryName)
	if len(fds) == 0 {
		return nil
	}
	for _, fd := range fds[1:] { // before there is a lock that this would free
		unix.Close(fd)
	}
	f, err := memfile.Adopt(fds[0], journal)
	switch {
	case errors.Is(err, memfile.ErrInUse):
		unix.Close(fds[0])
		return err
	case err != nil:
		l.log.Warn("memory file refused", event.KeyErr, err)
		unix.Close(fds[0])
		l.forget(memoryName)
		return nil
	}
	l.file = f
	finds, torn := f.TakeFinds(at)
	for _, find := range finds {
		id := find.Slot.About().Session
		l.finds[id] = append(l.finds[id], find)
	}
	l.log.Info("keypairs taken over", event.KeyKeypairs, len(finds), event.KeyPackets, f.TakeLost())
	if torn > 0 {
		l.log.Warn("keypairs torn and wiped", event.KeyKeypairs, torn)
	}
	return nil
}

// KeyMemory implements [engine.Engine].
func (e *Engine) KeyMemory() engine.KeyMemory {
	if e.legacy.file == nil {
		return engine.KeyMemory{Unlocked: engine.ErrOrdinaryMemory}
	}
	err := e.legacy.file.Unlocked()
	return engine.KeyMemory{Unlocked: err, Limited: errors.Is(err, memfile.ErrLimit)}
}

// indices are the receiver indices of all keypairs that were taken over.
func (l *legacy) indices() (all []uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, finds := range l.finds {
		for _, f := range finds {
			all = append(all, f.Pair.Local)
		}
	}
	return all
}

// mixing is how receiver indices are mixed.
func (l *legacy) mixing() [2]uint32 {
	if l.file == nil {
		return newMixing()
	}
	return l.file.Mixing()
}

// take hands out the descriptors of a name, once.
func (l *legacy) take(name string) []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	fds := l.fds[name]
	delete(l.fds, name)
	return fds
}

// claim hands out the keypairs of a session, once; others are those that were
// made with another key of either end.
func (l *legacy) claim(id session.ID, peer, local [noise.KeySize]byte) (ours, others []memfile.Find) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.finds[id] {
		if a := f.Slot.About(); a.Peer == peer && a.Local == local {
			ours = append(ours, f)
		} else {
			others = append(others, f)
		}
	}
	delete(l.finds, id)
	return ours, others
}

// unclaimed reports whether keypairs or descriptors wait for their owner.
func (l *legacy) unclaimed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.finds) > 0 || len(l.fds) > 0
}

// rest hands out the keypairs that nobody claimed, and lets go of descriptors
// that nobody wants.
func (l *legacy) rest() (rest []memfile.Find) {
	l.discard()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, finds := range l.finds {
		rest = append(rest, finds...)
	}
	clear(l.finds)
	return rest
}

// discard closes descriptors that were not taken, and has them forgotten: an
// interface that nobody wants any more vanishes.
func (l *legacy) discard() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, fds := range l.fds {
		for _, fd := range fds {
			unix.Close(fd)
		}
		l.forget(name)
	}
	clear(l.fds)
}

// keep has the keeper hold descriptors. Without it a restart costs a
// handshake, and packets; that is no reason not to start.
func (l *legacy) keep(name string, fds ...int) {
	if l.keeper == nil {
		return
	}
	l.forget(name) // what came to nothing
	if err := l.keeper.Keep(name, fds...); err != nil {
		l.log.Warn("descriptors not kept for a restart", event.KeyErr, fmt.Errorf("%s: %w", name, err))
	}
}

// forget has the keeper let go of a name.
func (l *legacy) forget(name string) {
	if l.keeper == nil {
		return
	}
	if err := l.keeper.Forget(name); err != nil {
		l.log.Warn("descriptors not forgotten", event.KeyErr, fmt.Errorf("%s: %w", name, err))
	}
}

// hand is a place for a thread to say what it has in hand; nil if nothing
// outlives the process.
func (l *legacy) hand() *memfile.Hand {
	if l.file == nil {
		return nil
	}
	return l.file.Hand()
}

// putBack ends its use.
func (l *legacy) putBack(h *memfile.Hand) {
	if h != nil {
		l.file.PutBack(h)
	}
}

// close lets go of everything; what the keeper has stays there.
func (l *legacy) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, fds := range l.fds {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	clear(l.fds)
	if l.file != nil {
		l.file.Close()
	}
}

// keypairLocked makes a keypair of keys, where it outlives the process if
// anything does. e is its entry.
func (p *peer) keypairLocked(e *entry, keys *noise.Keys) *noise.Keypair {
	l := p.d.engine.legacy
	if k := p.d.key.Load(); k != nil && l.file != nil {
		about := memfile.About{Session: p.id, Peer: p.key, Local: k.Public(), Stamp: p.protocol.LastStamp()}
		pair, slot := l.file.Keypair(keys, about)
		if pair != nil {
			e.slot = slot
			return pair
		}
		p.d.engine.complain("memory file", errNoSlot)
	}
	return noise.NewKeypair(keys)
}

var errNoSlot = errors.New("native: the memory file is full; some sessions will need a handshake after a restart")

// adoptLocked goes on with the keypairs that the process before this one had for p,
// if both ends have the keys they had.
func (p *peer) adoptLocked(t noise.Instant) {
	k := p.d.key.Load()
	if k == nil {
		return
	}
	e := p.d.engine
	finds, others := e.legacy.claim(p.id, p.key, k.Public())
	e.wipe(others)
	if len(finds) == 0 {
		return
	}
	pairs := make([]*noise.Keypair, len(finds))
	newest := finds[0].Pair.Created
	for i, f := range finds {
		pairs[i] = f.Pair
		newest = max(newest, f.Pair.Created)
		p.protocol.SetStampFloor(f.Slot.About().Stamp)
	}
	dropped := p.ring.Restore(pairs)
	for _, f := range finds {
		if slices.Contains(dropped, f.Pair) {
			e.wipe([]memfile.Find{f})
			continue
		}
		entry := e.table.adopt(f.Pair.Local, p)
		entry.slot = f.Slot
		entry.top.Store(f.Pair.Newest())
		entry.fresh.Store(f.Pair == p.ring.Next)
		entry.pair.Store(f.Pair)
	}
	made := time.Now().Add(-t.Sub(newest))
	p.lastHandshake.Store(&made)
	e.agenda.at(p, p.timers.Resume(newest))
	p.returnLocked()
	p.publishLocked()
}

// returnLocked makes the peer's place the one it had in the process before.
// What the control plane knows of it is older, unless it is what we dialled.
func (p *peer) returnLocked() {
	slot := p.slotLocked()
	if slot == nil {
		return
	}
	place, ok := slot.Place()
	if !ok || place.Dst == p.dialled {
		return
	}
	p.budget.Store(0)
	p.doubted.Store(!place.Proved)
	p.endpoint.Store(udp.NewEndpoint(place.Dst, udp.Source{Addr: place.Source, Ifindex: place.Ifindex}, p.d.engine.path.Load()))
}

// keepPlaceLocked writes down where the peer is, for the next process.
func (p *peer) keepPlaceLocked() {
	to, slot := p.endpoint.Load(), p.slotLocked()
	if to != nil && slot != nil && to.Carrier == nil {
		slot.SetPlace(memfile.Place{Dst: to.Dst, Source: to.Src.Addr, Ifindex: to.Src.Ifindex, Proved: !p.doubted.Load()})
	}
}

// slotLocked is where the current keypair lies in the memory file; nil if it
// does not.
func (p *peer) slotLocked() *memfile.Slot {
	if p.ring.Current == nil {
		return nil
	}
	if e := p.d.engine.table.find(p.ring.Current.Local); e != nil {
		return e.slot
	}
	return nil
}

// wipe ends keypairs that nobody goes on with.
func (e *Engine) wipe(finds []memfile.Find) {
	for _, f := range finds {
		e.table.release(f.Pair.Local)
		f.Pair.Retire()
	}
}

// Settled implements [engine.Engine]. An engine that took nothing over moves
// packets from the start; one that did settles by itself when nobody says so
// in time.
func (e *Engine) Settled() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.moving || e.closed {
		return
	}
	e.wipe(e.legacy.rest())
	e.move()
}

// move starts the threads of sockets and devices. The caller holds mu, or
// nobody else knows e yet.
func (e *Engine) move() {
	e.moving = true
	close(e.moved)
	widen(len(e.sockets))
	for _, s := range e.sockets {
		in := newInbound(e, s)
		e.threads.Go(in.run)
	}
	for _, d := range *e.devices.Load() {
		d.move()
	}
}

// awaitSettled settles when nobody says so in time.
func (e *Engine) awaitSettled() {
	limit := time.NewTimer(claimTime)
	defer limit.Stop()
	select {
	case <-limit.C:
		e.Settled()
	case <-e.moved:
	case <-e.agenda.done:
	}
}

// HandOver ends the engine like Close, but wipes nothing: the batches in hand
// are finished, and what the keeper has waits for the next process. Packets
// that arrive meanwhile wait in the kernel.
func (e *Engine) HandOver() error { return e.end(true) }
