package carrier

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

func TestCloseDeliversWhatWasWritten(t *testing.T) {
	g := startGateway(t, nil)
	for i := range 20 {
		node, gw := g.pair()
		from, to := node, gw
		if i%2 == 1 {
			from, to = gw, node
		}
		deadline(t, to)
		// The other end talks too: octets we never read must not turn our end
		// into a reset that overtakes the message.
		if _, err := to.Write([]byte("HELLO")); err != nil {
			t.Fatal(err)
		}
		msg := bytes.Repeat([]byte{byte(i)}, 40_000)
		if _, err := from.Write(msg); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		from.Close()
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("Close took %v", took)
		}
		got, err := io.ReadAll(to)
		if err != nil || !bytes.Equal(got, msg) {
			t.Fatalf("round %d: %d octets, %v, want %d and EOF", i, len(got), err, len(msg))
		}
	}
}

func TestCloseIsPromptWhenThePeerIsMute(t *testing.T) {
	g := startGateway(t, nil)
	relay := newRelay(t, g.addr)
	node, err := g.node().Dial(t.Context(), relay.addr)
	if err != nil {
		t.Fatal(err)
	}
	greet(t, node)
	gw := g.accept()
	greeted(t, gw)
	relay.freeze() // from here on octets go in and none come out
	var wg sync.WaitGroup
	for _, c := range []Conn{node, gw} {
		for range 3 { // from any goroutine, more than once
			wg.Go(func() {
				start := time.Now()
				c.Close()
				if took := time.Since(start); took > closeTimeout+2*time.Second {
					t.Errorf("Close took %v", took)
				}
			})
		}
	}
	wg.Wait()
	for _, c := range []Conn{node, gw} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read after Close = %v, want net.ErrClosed", err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Write after Close = %v, want net.ErrClosed", err)
		}
	}
}

func TestCloseEndsABlockedRead(t *testing.T) {
	g := startGateway(t, nil)
	node, _ := g.pair()
	done := make(chan error, 1)
	go func() {
		_, err := node.Read(make([]byte, 1))
		done <- err
	}()
	node.Close()
	select {
	case err := <-done:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read = %v, want net.ErrClosed", err)
		}
	case <-time.After(testTimeout):
		t.Error("Read outlives Close")
	}
}

func TestCutEndsBothEnds(t *testing.T) {
	g := startGateway(t, nil)
	relay := newRelay(t, g.addr)
	node, err := g.node().Dial(t.Context(), relay.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	greet(t, node)
	gw := g.accept()
	greeted(t, gw)
	relay.cut()
	for name, c := range map[string]Conn{"node": node, "gateway": gw} {
		deadline(t, c)
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF || isTimeout(err) {
			t.Errorf("%s: Read = %v, want what broke the transport", name, err)
		}
		if _, err := c.Write([]byte("x")); err == nil {
			t.Errorf("%s: Write after a cut succeeded", name)
		}
	}
}

func TestReadDeadline(t *testing.T) {
	g := startGateway(t, nil)
	node, gw := g.pair()
	node.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := node.Read(make([]byte, 1)); !isTimeout(err) {
		t.Fatalf("Read = %v, want a timeout", err)
	}
	deadline(t, node) // a deadline that passed leaves the transport as it was
	gw.Write([]byte("x"))
	if _, err := io.ReadFull(node, make([]byte, 1)); err != nil {
		t.Errorf("Read after a deadline = %v", err)
	}
}

// TestWriteToAPeerThatDoesNotRead: the window closes, and a deadline ends the
// wait for it.
func TestWriteToAPeerThatDoesNotRead(t *testing.T) {
	g := startGateway(t, nil)
	node, _ := g.pair()
	node.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	n, err := node.Write(make([]byte, 1<<20))
	if !isTimeout(err) || n < 256<<10-1 || n == 1<<20 {
		t.Errorf("Write = %d, %v, want a full window and a timeout", n, err)
	}
}

func TestServeEndsWithOpenTransports(t *testing.T) {
	g := startGateway(t, nil)
	node, _ := g.pair()
	half, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	g.stop()
	deadline(t, node)
	if _, err := node.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("Read after the server's end = %v", err)
	}
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// relay is a wire one can cut: it passes octets between a client and a server.
type relay struct {
	addr   string
	mu     sync.Mutex
	frozen bool // mu
	conns  []*net.TCPConn
	thaw   chan struct{}
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{addr: l.Addr().String(), thaw: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		a, err := l.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", to)
		if err != nil {
			a.Close()
			return
		}
		r.mu.Lock()
		r.conns = []*net.TCPConn{a.(*net.TCPConn), b.(*net.TCPConn)}
		r.mu.Unlock()
		wg.Go(func() { r.pass(a, b) })
		r.pass(b, a)
	})
	t.Cleanup(func() {
		l.Close()
		r.cut()
		close(r.thaw)
		wg.Wait()
	})
	return r
}

func (r *relay) pass(to, from net.Conn) {
	defer to.Close()
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		r.mu.Lock()
		frozen := r.frozen
		r.mu.Unlock()
		if frozen {
			<-r.thaw
			return
		}
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (r *relay) freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = true
}

// cut resets both connections.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.SetLinger(0)
		c.Close()
	}
}
