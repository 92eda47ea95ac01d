package control

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// memory is a Handler that says yes and keeps its journal in memory.
type memory struct {
	side    *side // for what it grants
	saved   *Record
	saves   int
	fail    error         // of the next Save
	full    atomic.Bool   // every Save and Forget fails
	hold    chan struct{} // if set, Save waits for it
	notices []string
}

func (m *memory) Save(r *Record) error {
	if m.hold != nil {
		<-m.hold
	}
	if m.full.Load() {
		return errFull
	}
	if err := m.fail; err != nil {
		m.fail = nil
		return err
	}
	m.saved, m.saves = r, m.saves+1
	return nil
}

func (m *memory) Forget() error {
	if m.full.Load() {
		return errFull
	}
	m.saved = nil
	return nil
}

func (m *memory) Authorize(AskAuthorize) *wire.Result    { return nil }
func (m *memory) Grant(AskSession) (Grant, *wire.Result) { return m.side.grant(), nil }
func (m *memory) SetUp(Session) *wire.Result             { return nil }
func (m *memory) Sign(a AskSign) ([]byte, *wire.Result)  { return []byte("signed"), nil }
func (m *memory) Notify(a Action)                        { m.notices = append(m.notices, brief(a)) }

var errFull = errors.New("disk is full")

// end is one running Conn.
type end struct {
	*Conn
	h      *memory
	cancel context.CancelCauseFunc
	result chan error
}

func startEnd(t *testing.T, role Role) *end {
	s := newSide(t, role)
	return startSide(t, s, New(s.cfg))
}

func startSide(t *testing.T, s *side, m *Machine) *end {
	e := &end{h: &memory{side: s}, result: make(chan error, 1)}
	e.Conn = NewConn(m, e.h, slog.New(slog.NewTextHandler(t.Output(), nil)))
	e.run(t)
	return e
}

func (e *end) run(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	e.cancel = cancel
	go func() { e.result <- e.Run(ctx) }()
	t.Cleanup(func() { cancel(errStop) })
}

var errStop = errors.New("daemon stops")

// tap is one direction of the wire between two ends.
type tap struct {
	mu    sync.Mutex
	seen  []string
	mute  bool          // what is read goes nowhere
	stall chan struct{} // if set, nothing is read until it is closed
	slow  time.Duration // between one message read and the next
}

func (w *tap) set(f func(*tap)) { w.mu.Lock(); f(w); w.mu.Unlock() }

func (w *tap) count(message string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.seen {
		if s == message {
			n++
		}
	}
	return n
}

// relay, in a bubble, carries messages from one pipe to the other and writes
// down which.
func (w *tap) relay(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	br := bufio.NewReader(from)
	for {
		w.mu.Lock()
		stall, slow := w.stall, w.slow
		w.mu.Unlock()
		time.Sleep(slow)
		if stall != nil {
			<-stall
		}
		raw, err := wire.ReadPacket(br, wire.MaxMessage)
		if err != nil {
			return
		}
		p, err := wire.Parse(raw)
		if err != nil {
			return
		}
		w.mu.Lock()
		w.seen = append(w.seen, p.Message.Type().String())
		mute := w.mute
		w.mu.Unlock()
		if !mute {
			if _, err := to.Write(raw); err != nil {
				return
			}
		}
	}
}

// ends is a node and a gateway that run, with a wire between them.
type ends struct {
	t             *testing.T
	node, gateway *end
	up, down      *tap // from the node, to the node
	fixtures      *pair
	transport     TransportID
	accepted      net.Conn // the gateway's end of the newest it was given
}

// inBubble runs test with two ends in a bubble of fake time, which also waits
// for every goroutine they started.
func inBubble(t *testing.T, test func(*testing.T, *ends)) {
	synctest.Test(t, func(t *testing.T) {
		e := &ends{t: t, node: startEnd(t, Initiator), gateway: startEnd(t, Responder), fixtures: newPair(t)}
		test(t, e)
	})
}

// connect gives both ends a new transport.
func (e *ends) connect() {
	e.t.Helper()
	e.dial()()
}

// dial gives the node a new transport; accept gives it to the gateway, which
// took it when the node did.
func (e *ends) dial() (accept func()) {
	e.t.Helper()
	e.transport++
	n1, n2 := net.Pipe()
	g1, g2 := net.Pipe()
	e.up, e.down = &tap{}, &tap{}
	taken := e.fixtures.binding(e.fixtures.gateway, e.transport)
	taken.Since = time.Now()
	go e.up.relay(n2, g2)
	go e.down.relay(g2, n2)
	if _, err := e.node.Attach(e.t.Context(), n1, bufio.NewReader(n1), e.fixtures.binding(e.fixtures.node, e.transport), nil); err != nil {
		e.t.Fatal(err)
	}
	return func() {
		e.t.Helper()
		br := bufio.NewReader(g1)
		raw, err := wire.ReadPacket(br, wire.MaxMessage)
		if err != nil {
			e.t.Fatal(err)
		}
		first, err := wire.Parse(raw)
		if err != nil {
			e.t.Fatal(err)
		}
		if _, err := e.gateway.Attach(e.t.Context(), g1, br, taken, first); err != nil {
			e.t.Fatal(err)
		}
		e.accepted = g1
		synctest.Wait()
	}
}

func (e *ends) open() {
	e.t.Helper()
	key, public := newKey(e.t)
	if err := e.node.Do(e.t.Context(), OpenSession{Network: "office", Label: "work", PrivateKey: key, PublicKey: public}); err != nil {
		e.t.Fatal(err)
	}
	synctest.Wait()
}

func (e *end) state() string {
	v := e.View()
	text := v.State.String()
	for _, s := range v.Sessions {
		text += " " + s.State.String()
	}
	return text
}

func (e *ends) want(node, gateway string) {
	e.t.Helper()
	synctest.Wait()
	if n, g := e.node.state(), e.gateway.state(); n != node || g != gateway {
		e.t.Fatalf("node %q, gateway %q, want %q and %q; notices %v and %v", n, g, node, gateway, e.node.h.notices, e.gateway.h.notices)
	}
}

const bothUp = "established established"

func TestConnSetsUpASession(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.open()
		e.want(bothUp, bothUp)
		if v := e.gateway.View(); v.PeerID != nodeID || v.PeerName != "alice" || v.Pending != 0 {
			t.Errorf("View() = %+v", v)
		}
	})
}

func TestConnResumesOnANewTransport(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.open()
		e.connect() // beside the first
		e.want(bothUp, bothUp)
		if !slices.Contains(e.node.h.notices, "Resumed") || e.node.h.saved == nil || e.node.h.saved.Sessions[0].Resumes != 1 {
			t.Errorf("notices %v", e.node.h.notices)
		}
	})
}

// TestConnHelloAfterSilenceOnly: while there is other traffic there is no HELLO.
func TestConnHelloAfterSilenceOnly(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.open()
		id := e.gateway.View().Sessions[0].LocalID
		for range 10 {
			time.Sleep(4 * time.Second)
			if err := e.gateway.Do(t.Context(), news(id)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := e.up.count("HELLO") + e.down.count("HELLO"); n != 0 {
			t.Errorf("%d HELLOs while there was traffic", n)
		}
		time.Sleep(5*time.Second - time.Nanosecond)
		synctest.Wait()
		if n := e.up.count("HELLO") + e.down.count("HELLO"); n != 0 {
			t.Errorf("%d HELLOs one nanosecond early", n)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if n := e.up.count("HELLO") + e.down.count("HELLO"); n == 0 {
			t.Error("no HELLO after silence")
		}
		e.want(bothUp, bothUp)
	})
}

// TestConnSilentPeerIsSuspended: four intervals of five seconds are the
// network's; not one nanosecond less.
func TestConnSilentPeerIsSuspended(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.open()
		e.down.set(func(w *tap) { w.mute = true })
		e.up.set(func(w *tap) { w.mute = true })
		lost := time.Now().Add(20 * time.Second)
		time.Sleep(20*time.Second - time.Nanosecond)
		e.want(bothUp, bothUp)
		time.Sleep(time.Nanosecond)
		e.want("suspended suspended", "suspended suspended")
		if n := e.up.count("HELLO"); n != 3 {
			t.Errorf("%d HELLOs before the end, want 3", n)
		}
		if at := e.node.h.saved.SuspendedAt; !at.Equal(lost) {
			t.Errorf("suspended at %v on disk, want %v", at, lost)
		}
		e.connect()
		e.want(bothUp, bothUp)
		if at := e.node.h.saved.SuspendedAt; !at.IsZero() {
			t.Errorf("suspended at %v on disk after the resume", at)
		}
	})
}

func TestConnGraceEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.open()
		e.up.set(func(w *tap) { w.mute = true })
		e.down.set(func(w *tap) { w.mute = true })
		time.Sleep(20*time.Second + time.Hour - time.Nanosecond)
		e.want("suspended suspended", "suspended suspended")
		time.Sleep(time.Nanosecond)
		e.want("closed", "closed")
		for _, c := range []*end{e.node, e.gateway} {
			if err := <-c.result; err != nil || c.h.saved != nil {
				t.Errorf("Run = %v, record %v, want nil and none", err, c.h.saved)
			}
		}
	})
}

func TestConnSetUpTimeout(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		n1, n2 := net.Pipe()
		gone, err := e.node.Attach(t.Context(), n1, bufio.NewReader(n1), e.fixtures.binding(e.fixtures.node, 1), nil)
		if err != nil {
			t.Fatal(err)
		}
		heard := make(chan int64, 1)
		go func() { n, _ := io.Copy(io.Discard, n2); heard <- n }()
		time.Sleep(10*time.Second - time.Nanosecond)
		synctest.Wait()
		if got := e.node.state(); got != "wait-ctl-reply" {
			t.Fatalf("one nanosecond early: %s", got)
		}
		time.Sleep(time.Nanosecond)
		<-gone
		if err := <-e.node.result; err != nil || e.node.state() != "closed" || <-heard == 0 {
			t.Errorf("Run = %v in state %s, want nil and closed", err, e.node.state())
		}
	})
}

// TestConnSlowPeer: one that does not read is dropped when the queue is full,
// and holds nobody up.
func TestConnSlowPeer(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.open()
		release := make(chan struct{})
		e.up.set(func(w *tap) { w.stall = release })
		start := time.Now()
		for range sendQueue + maxWrite/32 { // the first write is taken, of messages larger than that
			if err := e.node.Do(t.Context(), RenewCertificate{session.NewID(), []byte("csr")}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if got := e.node.state(); got != "suspended suspended" || time.Since(start) != 0 {
			t.Errorf("after %v: %s, want suspended at once", time.Since(start), got)
		}
		close(release)
	})
}

// TestConnEndsThoughThePeerTrickles: a peer that reads a message now and then
// does not keep a daemon from stopping.
func TestConnEndsThoughThePeerTrickles(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.up.set(func(w *tap) { w.slow = writeTimeout - time.Second })
		for range 10 { // too large to leave together
			if err := e.node.Do(t.Context(), RenewCertificate{session.NewID(), make([]byte, maxWrite)}); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		e.node.cancel(errStop)
		if err := <-e.node.result; err != errStop || time.Since(start) > writeTimeout {
			t.Errorf("Run = %v after %v, want %v within %v", err, time.Since(start), errStop, writeTimeout)
		}
		time.Sleep(writeTimeout) // the wire ends too
	})
}

// TestConnMessagesLeaveTogether: what waits while the network takes a message
// is written at once, all of it and in order.
func TestConnMessagesLeaveTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		o := &outbox{nc: near, spawn: func(fn func()) { go fn() }, ended: func() {}}
		for n := range uint16(5) {
			o.push(&wire.Packet{Ns: n, Message: &wire.Hello{}})
		}
		synctest.Wait()
		o.push(&wire.Packet{Ns: 5, Message: &wire.Hello{}})
		b, got := make([]byte, wire.MaxMessage), []byte(nil)
		for range 2 {
			n, err := far.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, b[:n]...)
		}
		br := bufio.NewReader(bytes.NewReader(got))
		for n := range uint16(6) {
			raw, err := wire.ReadPacket(br, wire.MaxMessage)
			if err != nil {
				t.Fatalf("message %d: %v", n, err)
			}
			if p, err := wire.Parse(raw); err != nil || p.Ns != n {
				t.Fatalf("message %d: %v, %v", n, p, err)
			}
		}
		o.finish()
		synctest.Wait()
	})
}

// TestConnEnd: the end of the context suspends, saves when, closes transports;
// nothing runs afterwards.
func TestConnEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.open()
		time.Sleep(3 * time.Second)
		now := time.Now()
		e.node.cancel(errStop)
		if err := <-e.node.result; err != errStop {
			t.Errorf("Run = %v, want %v", err, errStop)
		}
		e.want("suspended suspended", "suspended suspended")
		if r := e.node.h.saved; !r.SuspendedAt.Equal(now) || len(r.Sessions) != 1 || r.Sessions[0].State != session.Established {
			t.Errorf("record = %+v, want suspended at %v with an established session", r, now)
		}
		<-e.node.Done()
		if err := e.node.Do(t.Context(), Stop{}); err != ErrClosed {
			t.Errorf("Do = %v, want ErrClosed", err)
		}
		nc, other := net.Pipe()
		if _, err := e.node.Attach(t.Context(), nc, bufio.NewReader(nc), Binding{}, nil); err != ErrClosed {
			t.Errorf("Attach = %v, want ErrClosed", err)
		}
		go nc.Write([]byte("still open"))
		if _, err := other.Read(make([]byte, 1)); err != nil {
			t.Errorf("the transport that came too late: %v, want it left to its owner", err)
		}
		nc.Close()
	})
}

func TestConnDoGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewConn(New(newSide(t, Initiator).cfg), &memory{}, slog.New(slog.DiscardHandler)) // nobody runs it
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errStop)
		defer cancel()
		if err := c.Do(ctx, Stop{}); err != errStop {
			t.Errorf("Do = %v, want the context's cause", err)
		}
	})
}

// TestConnWritesNothingBeforeItIsSaved: P3.
func TestConnWritesNothingBeforeItIsSaved(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		hold := make(chan struct{})
		e.node.h.hold = hold
		done := make(chan struct{})
		go func() { e.open(); close(done) }()
		time.Sleep(time.Second)
		synctest.Wait()
		if n := e.up.count("ICRQ"); n != 0 {
			t.Errorf("ICRQ was sent while its record was being written")
		}
		close(hold)
		<-done
		e.want(bothUp, bothUp)
	})
}

func TestConnSaveFails(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.open()
		e.gateway.h.fail = errors.New("disk is full")
		id := e.gateway.View().Sessions[0].LocalID
		if err := e.gateway.Do(t.Context(), news(id)); err != nil {
			t.Fatal(err)
		}
		e.want("suspended suspended", "suspended suspended")
		if n := e.down.count("SLI"); n != 0 {
			t.Error("SLI was sent though its record is not durable")
		}
		e.connect()
		e.want(bothUp, bothUp)
		if n := e.down.count("SLI"); n != 1 {
			t.Errorf("SLI was sent %d times after the resume, want once", n)
		}
	})
}

// TestConnGarbage: what cannot be parsed ends the connection with a reason.
func TestConnGarbage(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		n1, n2 := net.Pipe()
		if _, err := e.node.Attach(t.Context(), n1, bufio.NewReader(n1), e.fixtures.binding(e.fixtures.node, 1), nil); err != nil {
			t.Fatal(err)
		}
		br := bufio.NewReader(n2)
		if _, err := wire.ReadPacket(br, wire.MaxMessage); err != nil {
			t.Fatal(err)
		}
		p := &wire.Packet{ConnID: 1, Message: &wire.UnknownMessage{Vendor: wire.VendorID, Number: 99}}
		raw, err := p.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		raw[12] |= 0x80 // M: an unknown message that may not be ignored
		if _, err := n2.Write(raw); err != nil {
			t.Fatal(err)
		}
		raw, err = wire.ReadPacket(br, wire.MaxMessage)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := wire.Parse(raw); err != nil || p.Message.Type() != wire.TypeStopCCN {
			t.Errorf("answer = %v, %v, want StopCCN", p, err)
		}
		if err := <-e.node.result; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestRefuse(t *testing.T) {
	a, b := net.Pipe()
	res := wire.Result{Code: wire.StopError, Error: wire.ErrorNoConnection, Cause: wire.CauseUnknownResume}
	done := make(chan struct{})
	go func() { defer close(done); Refuse(a, &wire.SCCRQ{AssignedID: 77}, res) }()
	raw, err := wire.ReadPacket(bufio.NewReader(b), wire.MaxMessage)
	if err != nil {
		t.Fatal(err)
	}
	p, err := wire.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	stop, ok := p.Message.(*wire.StopCCN)
	if !ok || p.ConnID != 77 || p.Nr != 1 || stop.Result != res {
		t.Errorf("Refuse wrote %+v, %+v", p, p.Message)
	}
	if _, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the refusal: %v, want EOF", err)
	}
	<-done
}

// TestConnUsedByMany: events from many goroutines, with -race.
func TestConnUsedByMany(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				key, public := newKey(t)
				e.node.Do(t.Context(), OpenSession{Network: fmt.Sprint("n", i), PrivateKey: key, PublicKey: public})
				e.node.View()
				e.gateway.View()
			})
		}
		wg.Wait()
		want := "established" + strings.Repeat(" established", 20)
		e.want(want, want)
	})
}
