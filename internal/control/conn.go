package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
)

// Bounds of one transport.
const (
	sendQueue    = 256              // messages waiting to be written
	writeTimeout = 10 * time.Second // of one message, and of all that is left when a transport is dropped
	lastWords    = time.Second      // to read what a peer said before it closed
)

var errSlowPeer = errors.New("control: peer does not read")

// Handler decides for a Conn and keeps its journal. Its methods are called one
// at a time on the Conn's goroutine and must not call back into the Conn. A
// result that is not nil refuses.
type Handler interface {
	// Save makes the record durable before it returns nil. Its error may be a
	// *Denied.
	Save(*Record) error
	// Forget removes the record.
	Forget() error
	// Authorize says whether the peer may have the connection, or go on with it.
	Authorize(AskAuthorize) *wire.Result
	// Grant decides about a session at a gateway.
	Grant(AskSession) (Grant, *wire.Result)
	// SetUp prepares data plane and host for a session.
	SetUp(Session) *wire.Result
	// Sign renews the peer's certificate.
	Sign(AskSign) ([]byte, *wire.Result)
	// Notify tells what happened: one of the notices.
	Notify(Action)
}

// View is what a Conn looks like from outside. It is not changed any more once
// it was handed out.
type View struct {
	State    session.State
	Sessions []Session
	PeerName string
	PeerID   session.ID
	LocalID  uint32
	Pending  int    // messages the peer is not known to have journalled
	Serial   uint64 // of the checkpoint it stands at; 0: not known
	InUse    bool   // the peer has used the present transport, too
}

// Conn drives a Machine: the goroutine of Run owns it.
type Conn struct {
	h    Handler
	log  *slog.Logger
	in   chan input
	done chan struct{} // closed when Run returns
	view atomic.Pointer[View]

	ended error         // what Do fails with then; not changed any more once done is closed
	last  atomic.Uint64 // transport ids given out

	// Of Run's goroutine alone.
	m          *Machine
	transports map[TransportID]*transport
	lingering  map[TransportID]*transport // replaced, and not closed yet
	lost       time.Time                  // when a transport last ended or was given up; zero: none was
	timers     [numTimers]armed
	unsaved    bool             // the last Save failed
	failing    bool             // so did the last write of all, which the log has
	remains    bool             // so did Forget
	again      <-chan time.Time // when to write it again; nil: nothing to write
	rested     <-chan time.Time // when to park; nil: it is not at rest
	graceTo    time.Time        // when TimerGrace runs out, if it is armed
	wg         sync.WaitGroup
}

// input is one event with what its sender waits for, if anything.
type input struct {
	ev      Event
	attach  *transport
	expired *armed
	handled chan<- struct{}
}

// armed is a timer; each arming is another value, so that one that ran out
// while it was being armed anew is known to be late.
type armed struct {
	kind  Timer
	timer *time.Timer
	seq   uint64
}

// transport is one net.Conn with the goroutine that reads it, and one that writes
// while there is something to write.
type transport struct {
	id    TransportID
	nc    net.Conn
	b     Binding
	first *wire.Packet
	br    *bufio.Reader
	out   outbox
	gone  chan struct{} // closed when nothing is read any more and nc is closed
	ends  atomic.Int32  // how many of the two are not
	cut   bool          // out is finished, or lingers
	last  *time.Timer   // set before the queue is closed: closes nc if that takes too long
}

// NewConn returns a Conn around m, which it owns from now on.
func NewConn(m *Machine, h Handler, log *slog.Logger) *Conn {
	c := &Conn{h: h, log: log, m: m, in: make(chan input), done: make(chan struct{}), ended: ErrClosed, transports: map[TransportID]*transport{}, lost: m.rec.SuspendedAt}
	c.look()
	return c
}

// View returns the present look of the connection, from any goroutine.
func (c *Conn) View() *View { return c.view.Load() }

// Done is closed when Run has returned.
func (c *Conn) Done() <-chan struct{} { return c.done }

// writeAgainAfter is how long after a failed write the journal is tried again.
const writeAgainAfter = time.Second

// Run drives the connection until it is over (nil), is parked (ErrParked) or ctx
// ends (its cause).
// What could not be written to the journal is tried again until it can: a
// session that ended must not come back with the next restart. When it returns every transport is closed and every goroutine has ended; what
// is left of the connection is in its record.
func (c *Conn) Run(ctx context.Context) error {
	defer c.wg.Wait()
	defer close(c.done)
	defer c.disarmAll()
	for c.m.State() != session.Closed || c.remains {
		c.rest()
		select {
		case in := <-c.in:
			c.take(in)
		case <-c.again:
			c.writeAgain()
		case <-c.rested:
			c.ended = ErrParked
			return ErrParked
		case <-ctx.Done():
			c.cutAll(context.Cause(ctx))
			c.writeAgain()
			return context.Cause(ctx)
		}
	}
	c.cutAll(ErrClosed)
	return nil
}

// Do gives the connection an event and returns when it has been acted upon.
// It fails with ErrClosed when the connection is over, with ErrParked when it is
// parked, or when ctx ends.
func (c *Conn) Do(ctx context.Context, ev Event) error {
	return c.put(ctx, input{ev: ev})
}

// Attach gives the connection a transport, which it owns from now on: one that
// this end dialled, or, with the SCCRQ already read from br, one that a peer
// did. The channel is closed when the transport is gone. Where it fails, as Do
// does, the transport remains the caller's.
func (c *Conn) Attach(ctx context.Context, nc net.Conn, br *bufio.Reader, b Binding, first *wire.Packet) (<-chan struct{}, error) {
	t := &transport{
		id: TransportID(c.last.Add(1)), nc: nc, b: b, first: first, br: br,
		gone: make(chan struct{}),
	}
	if err := c.put(ctx, input{attach: t}); err != nil {
		return nil, err
	}
	return t.gone, nil
}

func (c *Conn) put(ctx context.Context, in input) error {
	handled := make(chan struct{})
	in.handled = handled
	select {
	case c.in <- in:
		<-handled
		return nil
	case <-c.done:
		return c.ended
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// post hands over an event nobody waits for.
func (c *Conn) post(in input) {
	select {
	case c.in <- in:
	case <-c.done:
	}
}

// take acts on one input.
func (c *Conn) take(in input) {
	if in.handled != nil {
		defer close(in.handled)
	}
	switch {
	case in.attach != nil:
		c.begin(in.attach)
	case in.expired != nil:
		if t := &c.timers[in.expired.kind]; t.seq == in.expired.seq {
			c.step(Expired{t.kind, time.Now()})
		}
	default:
		if d, ok := in.ev.(Detached); ok {
			c.lost = time.Now()
			c.settle(d.Transport)
		}
		c.step(in.ev)
	}
	c.look()
}

// begin starts the goroutines of a transport and tells the machine of it.
func (c *Conn) begin(t *transport) {
	c.transports[t.id] = t
	t.ends.Store(2)
	t.out = outbox{nc: t.nc, spawn: c.wg.Go, ended: t.ended}
	c.wg.Go(func() { defer t.ended(); c.readLoop(t) })
	c.step(Attached{t.id, t.b, t.first != nil && t.b.Since.Before(c.lost)})
	if t.first != nil {
		c.step(Received{t.id, t.first})
	}
}

// ended notes the end of reading, or of nc.
func (t *transport) ended() {
	if t.ends.Add(-1) == 0 {
		t.last.Stop()
		close(t.gone)
	}
}

// step runs the machine on one event and on the answers to what it asks.
func (c *Conn) step(ev Event) {
	for ev != nil {
		next, err := c.perform(c.m.Step(ev))
		if err != nil {
			next = SaveFailed{err}
		}
		ev = next
	}
}

// perform does actions in their order. A question is always the last of them;
// its answer is the next event.
func (c *Conn) perform(actions []Action) (answer Event, err error) {
	for _, a := range actions {
		switch a := a.(type) {
		case Save:
			if err := c.save(a.Record); err != nil {
				return nil, err
			}
		case Forget:
			c.forget()
		case Send:
			c.send(a)
		case Drop:
			c.drop(a.Transport, a.Err)
		case Arm:
			c.arm(a.Timer, a.After)
		case Disarm:
			c.disarm(a.Timer)
		case AskAuthorize:
			answer = Authorized{a.Transport, c.h.Authorize(a)}
		case AskSession:
			grant, refusal := c.h.Grant(a)
			answer = Granted{a.LocalID, grant, refusal}
		case AskSetUp:
			answer = SetUp{a.Session.LocalID, c.h.SetUp(a.Session)}
		case AskSign:
			cert, refusal := c.h.Sign(a)
			answer = Signed{a.RequestID, cert, refusal}
		case AskArm:
			answer = c.askArm(a)
		case AskChange:
			answer = c.askChange(a)
		case AskExtend:
			answer = c.askExtend(a)
		case AskRefresh:
			answer = c.askRefresh(a)
		case AskTicket:
			answer = c.askTicket(a)
		default:
			c.h.Notify(a)
		}
	}
	return answer, nil
}

func (c *Conn) save(r *Record) error {
	err := c.h.Save(r)
	c.unsaved = err != nil
	c.wrote(err)
	return err
}

func (c *Conn) forget() {
	err := c.h.Forget()
	c.unsaved, c.remains = false, err != nil
	c.wrote(err)
}

// wrote plans another try where there is something left to write.
func (c *Conn) wrote(err error) {
	c.again = nil
	if err != nil {
		if !c.failing {
			c.log.Error("journal not written", event.KeyErr, err)
		}
		c.again = time.After(writeAgainAfter)
	}
	c.failing = err != nil
}

// writeAgain writes what could not be written, if anything.
func (c *Conn) writeAgain() {
	switch {
	case c.remains:
		c.forget()
	case c.unsaved:
		c.save(c.m.Record())
	}
}

// look publishes the present view.
func (c *Conn) look() {
	id, name, _ := c.m.Peer()
	local, _ := c.m.IDs()
	c.view.Store(&View{c.m.State(), c.m.Sessions(), name, id, local, c.m.Pending(), c.m.rec.Serial, c.m.InUse()})
}

func (c *Conn) send(a Send) {
	t := c.transports[a.Transport]
	if t == nil || t.cut {
		return
	}
	c.log.Debug("message sent", event.KeyEvent, a.Packet.Message.Type().String())
	if !t.out.push(a.Packet) {
		c.drop(t.id, errSlowPeer)
		t.last.Reset(0)
	}
}

// drop closes a transport once what was queued has left.
func (c *Conn) drop(id TransportID, err error) {
	t := c.transports[id]
	if t == nil || t.cut {
		return
	}
	if err != nil {
		c.log.Debug("transport dropped", event.KeyErr, err)
	}
	t.cut = true
	c.lost = time.Now()
	delete(c.transports, id)
	if errors.Is(err, errReplaced) && c.m.cfg.Role == Initiator {
		c.linger(t)
		return
	}
	t.last = time.AfterFunc(writeTimeout, func() { t.nc.Close() })
	t.out.finish()
}

// cutAll takes every transport from the machine and closes it.
func (c *Conn) cutAll(err error) {
	for id := range c.transports {
		c.step(Detached{id, time.Now(), err})
		c.drop(id, err)
	}
	for id := range c.lingering {
		c.settle(id)
	}
	c.look()
}

// readLoop turns octets into events until the transport ends.
func (c *Conn) readLoop(t *transport) {
	for {
		raw, err := wire.ReadPacket(t.br, wire.MaxMessage)
		if err != nil {
			c.post(input{ev: Detached{t.id, time.Now(), fmt.Errorf("transport lost: %w", err)}})
			return
		}
		p, err := wire.Parse(raw)
		if err != nil {
			c.post(input{ev: Malformed{t.id, wire.ResultFor(err, wire.TypeStopCCN)}})
			continue
		}
		c.log.Debug("message received", event.KeyEvent, p.Message.Type().String())
		c.post(input{ev: Received{t.id, p}})
	}
}

func (c *Conn) arm(kind Timer, after time.Duration) {
	t := &c.timers[kind]
	if t.timer != nil {
		t.timer.Stop()
	}
	if kind == TimerGrace {
		c.graceTo = time.Now().Add(after)
	}
	t.kind = kind
	t.seq++
	late := *t
	t.timer = time.AfterFunc(after, func() { c.post(input{expired: &late}) })
}

func (c *Conn) disarm(kind Timer) {
	t := &c.timers[kind]
	t.seq++
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
	}
}

func (c *Conn) disarmAll() {
	for k := range c.timers {
		c.disarm(Timer(k))
	}
}

// Refuse answers the SCCRQ of a transport that no connection takes, and closes
// the transport.
//
// gateways are those to be tried instead, if the result says so.
func Refuse(nc net.Conn, q *wire.SCCRQ, res wire.Result, gateways ...string) {
	defer nc.Close()
	p := &wire.Packet{ConnID: q.AssignedID, Nr: 1, Message: &wire.StopCCN{Result: res, Gateways: gateways}}
	if b, err := p.Append(nil); err == nil {
		nc.SetWriteDeadline(time.Now().Add(writeTimeout))
		nc.Write(b)
	}
}
