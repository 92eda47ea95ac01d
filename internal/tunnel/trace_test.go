package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
)

// blocks takes what a trace writes, one block a call; it fails after a while if
// room is not negative.
type blocks struct {
	mu   sync.Mutex
	all  [][]byte
	room int
}

var errNoRoom = errors.New("no space left")

func (b *blocks) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.room--; b.room == -1 {
		return 0, errNoRoom
	}
	b.all = append(b.all, bytes.Clone(p))
	return len(p), nil
}

// messages are those in the file, with "<" for received and ">" for sent; an
// enhanced packet block has its flags behind the packet, where the header of an
// option says so.
func (b *blocks) messages(t *testing.T) (all []string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, block := range b.all[2:] {
		n := binary.LittleEndian.Uint32(block[20:])
		datagram, options := block[28:28+n], block[28+(n+3)/4*4:]
		p, err := wire.Parse(datagram[28:])
		if err != nil {
			t.Fatalf("%x: %v", datagram, err)
		}
		direction := map[byte]string{1: "<", 2: ">"}[options[4]]
		all = append(all, direction+p.Message.Type().String())
	}
	return all
}

func newTracer(t *testing.T, w io.Writer, log io.Writer) *tracer {
	t.Helper()
	trace, err := wire.NewTrace(w)
	if err != nil {
		t.Fatal(err)
	}
	return &tracer{log: slog.New(slog.NewTextHandler(log, nil)), trace: trace}
}

// ends are a transport that a tracer looks at, and its other end.
func ends(t *testing.T, tr *tracer) (traced, other net.Conn) {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	return tr.conn(a, true), b
}

func octets(t *testing.T, messages ...wire.Message) (all []byte) {
	t.Helper()
	for _, m := range messages {
		b, err := (&wire.Packet{ConnID: 1, Message: m}).Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return all
}

func TestTracedConn(t *testing.T) {
	file := &blocks{room: -1}
	traced, other := ends(t, newTracer(t, file, t.Output()))
	in, out := octets(t, &wire.Hello{}, &wire.FSQ{}, &wire.ACK{}), octets(t, &wire.FSR{})
	go func() {
		for len(in) > 0 { // in pieces that know nothing of messages
			n := min(7, len(in))
			other.Write(in[:n])
			in = in[n:]
		}
		io.ReadFull(other, make([]byte, len(out)))
		other.Close()
	}()
	want := bytes.Clone(in)
	got := make([]byte, len(in))
	if _, err := io.ReadFull(traced, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %x, %v; want %x", got, err, want)
	}
	if n, err := traced.Write(out); n != len(out) || err != nil {
		t.Errorf("Write = %d, %v; want %d, nil", n, err, len(out))
	}
	if n, err := traced.Read(got); n != 0 || err != io.EOF {
		t.Errorf("Read at the end = %d, %v; want 0, EOF", n, err)
	}
	if got := strings.Join(file.messages(t), " "); got != "<HELLO <FSQ <ACK >FSR" {
		t.Errorf("the trace has %s", got)
	}
}

// A file that is full ends the trace with one line in the log, and what is said
// goes on.
func TestTraceEnds(t *testing.T) {
	file, log := &blocks{room: 3}, new(bytes.Buffer)
	tr := newTracer(t, file, log)
	traced, other := ends(t, tr)
	second, rest := ends(t, tr)
	for _, c := range []net.Conn{other, rest} {
		go io.Copy(io.Discard, c)
	}
	for range 3 {
		for _, c := range []net.Conn{traced, second} {
			if _, err := c.Write(octets(t, &wire.Hello{})); err != nil {
				t.Errorf("a message is not sent because it is not traced: %v", err)
			}
		}
	}
	if got := file.messages(t); len(got) != 1 {
		t.Errorf("the trace has %q, want one message", got)
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "trace ended") || !strings.Contains(got, errNoRoom.Error()) {
		t.Errorf("log = %q, want one line with %q", got, errNoRoom)
	}
}

func TestNoTracer(t *testing.T) {
	var none *tracer
	c, _ := net.Pipe()
	defer c.Close()
	if got := none.conn(c, true); got != c {
		t.Errorf("without a trace the transport is %v, want it as it is", got)
	}
	if _, err := New(Options{Trace: &blocks{room: 1}}); !errors.Is(err, errNoRoom) {
		t.Errorf("New = %v, want %v", err, errNoRoom)
	}
}

// TestTraceOfASession is what both ends of a session write; when they
// acknowledge in between is their own affair.
func TestTraceOfASession(t *testing.T) {
	gw, node := newGatewayDaemon(t), newNodeDaemon(t, "alice")
	atGateway, atNode := &blocks{room: -1}, &blocks{room: -1}
	gw.trace, node.trace = atGateway, atNode
	gw.run()
	defer gw.end()
	node.run()
	defer node.end()
	node.join(gw)
	for want, file := range map[string]*blocks{
		">SCCRQ <SCCRP >SCCCN >ICRQ <ICRP >ICCN": atNode,
		"<SCCRQ >SCCRP <SCCCN <ICRQ >ICRP <ICCN": atGateway,
	} {
		var got string
		wait(t, "trace of "+want, func() bool {
			said := slices.DeleteFunc(file.messages(t), func(m string) bool { return m[1:] == "ACK" })
			got = strings.Join(said, " ")
			return len(got) >= len(want)
		})
		if !strings.HasPrefix(got, want) {
			t.Errorf("the trace has %s, want %s first", got, want)
		}
	}
}

// A request that no connection takes is there with its refusal.
func TestTraceOfARefusal(t *testing.T) {
	gw, node := pair(t)
	established(t, gw, node)
	gw.end()
	saved, err := gw.m.journal.connectionsOf(control.Responder)
	if err != nil || len(saved) != 1 {
		t.Fatalf("the gateway remembers %v, %v; want one connection", saved, err)
	}
	if err := gw.m.journal.forgetConnection(saved[0].record.LocalID); err != nil {
		t.Fatal(err)
	}
	file := &blocks{room: -1}
	gw.trace = file
	gw.run()
	var got string
	wait(t, "another connection", func() bool {
		got = strings.Join(file.messages(t), " ")
		return strings.Contains(got, ">SCCRP")
	})
	if !strings.HasPrefix(got, "<SCCRQ >StopCCN") {
		t.Errorf("the trace has %s, want the resume and its refusal first", got)
	}
}
