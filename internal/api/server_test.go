package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func testLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// start serves s on l until the test ends, and fails it if that does not go well.
func start(t *testing.T, s *server, l net.Listener) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// serveFake serves m at a socket of its own.
func serveFake(t *testing.T, m Manager) (path string, stop func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, start(t, newServer(m, testLog(t)), l)
}

// exchangeRaw sends a request as it stands and returns status and body.
func exchangeRaw(t *testing.T, path, request string) (int, string) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	go io.WriteString(conn, request) // the server may answer before it has read all
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("no answer to %.40q…: %v", request, err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body) // cut short where the server closes upon what it did not read
	return resp.StatusCode, string(body)
}

func request(method, target, body string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", method, target, len(body), body)
}

func TestBadRequests(t *testing.T) {
	path, _ := serveFake(t, &fake{})
	long := `{"tunnel":"` + strings.Repeat("x", maxBody) + `"}`
	for _, tt := range []struct {
		name, request string
		status        int
		want          string // in the body
	}{
		{"unknown verb", request("GET", "/v1/frob", ""), 404, "older or newer"},
		{"unknown version", request("GET", "/v2/status", ""), 404, `"code":"no-such"`},
		{"path that is not clean", request("GET", "/v1/../v1/status", ""), 404, "older or newer"},
		{"wrong method", request("GET", "/v1/down", ""), 400, "/v1/down wants POST, not GET"},
		{"wrong method for a look", request("POST", "/v1/status", ""), 400, "wants GET"},
		{"unknown key", request("POST", "/v1/down", `{"tunnel":"home","force":true}`), 400, `unknown field \"force\"`},
		{"wrong type", request("POST", "/v1/down", `{"tunnel":7}`), 400, "not understood"},
		{"no JSON", request("POST", "/v1/down", `tunnel=home`), 400, "not understood"},
		{"no body", request("POST", "/v1/down", ""), 400, "not understood"},
		{"two values", request("POST", "/v1/down", `{"tunnel":"home"}{"tunnel":"office"}`), 400, "more than one"},
		{"rubbish behind", request("POST", "/v1/down", `{"tunnel":"home"}}`), 400, "not understood"},
		{"body too large", request("POST", "/v1/down", long), 400, "more than 65536 octets"},
		{"body too large behind a value", request("POST", "/v1/down", `{"tunnel":"home"}`+strings.Repeat(" ", maxBody)), 400, "more than 65536 octets"},
		{"body of a look", request("GET", "/v1/status", "{}"), 400, "takes no body"},
		{"body of events", request("GET", "/v1/events", "{}"), 400, "takes no body"},
		{"unknown query", request("GET", "/v1/status?full=true", ""), 400, `unknown key \"full\"`},
		{"query of a change", request("POST", "/v1/down?tunnel=home", `{"tunnel":"home"}`), 400, `unknown key \"tunnel\"`},
		{"bad query", request("GET", "/v1/session/show?id=%zz", ""), 400, "query"},
		{"bad follow", request("GET", "/v1/events?follow=maybe", ""), 400, "want true or false"},
		{"no id", request("GET", "/v1/session/show", ""), 400, `has no \"id\"`},
		{"no tunnel", request("POST", "/v1/up", `{}`), 400, `has no \"tunnel\"`},
		{"no tunnel to stop", request("POST", "/v1/down", `{}`), 400, `has no \"tunnel\"`},
		{"no tunnel to leave", request("POST", "/v1/leave", `{}`), 400, `has no \"tunnel\"`},
		{"no session", request("POST", "/v1/session/kill", `{}`), 400, `has no \"session\"`},
		{"no node", request("POST", "/v1/node/revoke", `{}`), 400, `has no \"node\"`},
		{"no node to invite", request("POST", "/v1/invite", `{"ttl_ms":1000}`), 400, `has no \"node\"`},
		{"no code", request("POST", "/v1/join", `{}`), 400, `has no \"code\"`},
		{"negative wait", request("POST", "/v1/up", `{"tunnel":"home","wait_ms":-1}`), 400, "wait_ms is -1"},
		{"endless wait", request("POST", "/v1/up", `{"tunnel":"home","wait_ms":99999999}`), 400, "want 0 to 3600000"},
		{"no time to live", request("POST", "/v1/invite", `{"node":"a"}`), 400, "ttl_ms is 0"},
		{"prefix that is none", request("POST", "/v1/invite", `{"node":"a","ttl_ms":1,"advertise":["10.0.0.0"]}`), 400, "not understood"},
		{"empty prefix", request("POST", "/v1/invite", `{"node":"a","ttl_ms":1,"advertise":[""]}`), 400, "advertise: empty prefix"},
		{"prefix with bits beyond", request("POST", "/v1/invite", `{"node":"a","ttl_ms":1,"advertise":["10.20.0.1/16"]}`), 400, "the prefix is 10.20.0.0/16"},
		{"header too large", "GET /v1/status HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", 431, ""},
		{"no HTTP", "hello\r\n\r\n", 400, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, body := exchangeRaw(t, path, tt.request)
			if status != tt.status || !strings.Contains(body, tt.want) {
				t.Errorf("answer = %d %s, want %d with %q", status, body, tt.status, tt.want)
			}
		})
	}
}

func TestBadRequestsDoNotReachTheManager(t *testing.T) {
	m := &fake{}
	path, _ := serveFake(t, m)
	for _, r := range []string{
		request("POST", "/v1/down", `{"tunnel":"home","force":true}`),
		request("POST", "/v1/down", `{"tunnel":"home"} {}`),
		request("GET", "/v1/down", ""),
	} {
		exchangeRaw(t, path, r)
	}
	if asked := m.heard(); len(asked) != 0 {
		t.Errorf("the manager was asked %q, want nothing", asked)
	}
}

func TestRefusedAreNotHeard(t *testing.T) {
	m := &fake{}
	s := newServer(m, testLog(t))
	s.guard = testGuard()
	s.identify = func(net.Conn) (peer, error) { return peer{uid: testUser, groups: []uint32{testGroup}}, nil }
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	start(t, s, l)
	for _, rt := range routes() {
		if rt.class != administer {
			continue
		}
		status, body := exchangeRaw(t, path, request(rt.method, rt.path, `{}`))
		if status != http.StatusForbidden || !strings.Contains(body, rt.verb+" is not allowed") {
			t.Errorf("%s by a member of group tunneld: %d %s, want 403 that names it", rt.verb, status, body)
		}
	}
	if asked := m.heard(); len(asked) != 0 {
		t.Errorf("the manager was asked %q, want nothing", asked)
	}
}

// pipes is a listener whose connections are made by its own dial, so that a
// server can run in a synctest bubble.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (p *pipes) dial() net.Conn {
	a, b := net.Pipe()
	p.conns <- b
	return a
}

// inBubble runs f with a server for root over pipes, and fake time.
func inBubble(t *testing.T, m *fake, f func(t *testing.T, p *pipes, stop func())) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m.next = make(chan Event)
		p := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		s := newServer(m, slog.New(slog.DiscardHandler))
		s.identify = func(net.Conn) (peer, error) { return peer{uid: 0}, nil }
		stop := start(t, s, p)
		defer stop()
		f(t, p, stop)
	})
}

// closedAfter reads conn to its end and says how long that took.
func closedAfter(conn net.Conn) time.Duration {
	began := time.Now()
	io.Copy(io.Discard, conn)
	return time.Since(began)
}

func TestSlowCallersAreCut(t *testing.T) {
	for _, tt := range []struct {
		name, sends string
		want        time.Duration
	}{
		{"says nothing", "", idleTimeout},
		{"half a header", "GET /v1/status HT", headerTimeout},
		{"half a body", "POST /v1/down HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"tun", bodyTimeout},
		{"idle after an answer", "GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n", idleTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, &fake{}, func(t *testing.T, p *pipes, _ func()) {
				conn := p.dial()
				defer conn.Close()
				go io.WriteString(conn, tt.sends)
				if got := closedAfter(conn); got > tt.want {
					t.Errorf("cut after %v, want %v at most", got, tt.want)
				}
			})
		})
	}
}

func TestCallerWhoDoesNotReadIsCut(t *testing.T) {
	inBubble(t, &fake{}, func(t *testing.T, p *pipes, _ func()) {
		conn := p.dial()
		defer conn.Close()
		io.WriteString(conn, "GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
		time.Sleep(writeTimeout + time.Second)
		synctest.Wait()
		if _, err := io.WriteString(conn, "GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"); err == nil {
			t.Error("a caller who did not read his answer is still heard")
		}
	})
}

func TestLongWaitIsNotCut(t *testing.T) {
	inBubble(t, &fake{upTakes: 10 * bodyTimeout}, func(t *testing.T, p *pipes, _ func()) {
		conn := p.dial()
		defer conn.Close()
		io.WriteString(conn, request("POST", "/v1/up", `{"tunnel":"home","wait_ms":1000000}`))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("no answer: %v", err)
		}
		defer resp.Body.Close()
		if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || !strings.Contains(string(body), "established") {
			t.Errorf("answer = %d %s, want 200 established", resp.StatusCode, body)
		}
	})
}

func TestCallerWhoLeavesEndsHisWait(t *testing.T) {
	inBubble(t, &fake{upTakes: MaxWait}, func(t *testing.T, p *pipes, stop func()) {
		conn := p.dial()
		io.WriteString(conn, request("POST", "/v1/up", `{"tunnel":"home","wait_ms":1000000}`))
		synctest.Wait()
		conn.Close()
		began := time.Now()
		stop()
		if took := time.Since(began); took >= stopTimeout {
			t.Errorf("the server waited %v for a caller who had left", took)
		}
	})
}

func TestStopEndsEverything(t *testing.T) {
	inBubble(t, &fake{upTakes: MaxWait}, func(t *testing.T, p *pipes, stop func()) {
		idle, waiting, following := p.dial(), p.dial(), p.dial()
		defer idle.Close()
		io.WriteString(waiting, request("POST", "/v1/up", `{"tunnel":"home","wait_ms":1000000}`))
		io.WriteString(following, request("GET", "/v1/events?follow=true", ""))
		answers := make(chan string, 2)
		for _, conn := range []net.Conn{waiting, following} {
			go func() {
				b, _ := io.ReadAll(conn)
				conn.Close()
				answers <- string(b)
			}()
		}
		synctest.Wait()
		began := time.Now()
		stop()
		if took := time.Since(began); took > stopTimeout {
			t.Errorf("stop took %v, want %v at most", took, stopTimeout)
		}
		for range 2 {
			if got := <-answers; !strings.Contains(got, "the daemon is stopping") {
				t.Errorf("answer = %q, want to be told that the daemon is stopping", got)
			}
		}
	})
}

func TestConnectionsAreBounded(t *testing.T) {
	inBubble(t, &fake{}, func(t *testing.T, p *pipes, _ func()) {
		var conns []net.Conn
		for range maxConns {
			conns = append(conns, p.dial())
		}
		synctest.Wait()
		accepted := make(chan net.Conn, 1)
		go func() { accepted <- p.dial() }()
		synctest.Wait()
		select {
		case <-accepted:
			t.Fatalf("connection %d was accepted", maxConns+1)
		default:
		}
		conns[0].Close()
		conns[0] = <-accepted // or the bubble is deadlocked, which fails the test
		for _, c := range conns {
			c.Close()
		}
	})
}

func TestStopWhileFull(t *testing.T) {
	inBubble(t, &fake{}, func(t *testing.T, p *pipes, stop func()) {
		for range maxConns {
			defer p.dial().Close()
		}
		synctest.Wait()
		stop() // Accept waits for a slot meanwhile
	})
}

func TestReadersOfEventsAreBounded(t *testing.T) {
	inBubble(t, &fake{}, func(t *testing.T, p *pipes, _ func()) {
		for range maxStreams {
			conn := p.dial()
			defer conn.Close()
			io.WriteString(conn, request("GET", "/v1/events?follow=true", ""))
			go io.Copy(io.Discard, conn)
		}
		synctest.Wait()
		conn := p.dial()
		defer conn.Close()
		io.WriteString(conn, request("GET", "/v1/events?follow=true", ""))
		if b, _ := io.ReadAll(conn); !strings.Contains(string(b), "there are 32 readers of events already") {
			t.Errorf("answer = %q, want a refusal", b)
		}
		other := p.dial()
		defer other.Close()
		io.WriteString(other, request("GET", "/v1/version", ""))
		if b, _ := io.ReadAll(other); !strings.Contains(string(b), "v1.2.3") {
			t.Errorf("with all readers taken, version = %q, want an answer", b)
		}
	})
}

func TestReaderWhoStopsReadingIsCut(t *testing.T) {
	inBubble(t, &fake{}, func(t *testing.T, p *pipes, _ func()) {
		conn := p.dial()
		defer conn.Close()
		io.WriteString(conn, request("GET", "/v1/events?follow=true", ""))
		time.Sleep(3 * writeTimeout) // nothing is read
		synctest.Wait()
		if b, _ := io.ReadAll(conn); len(b) > 0 {
			t.Errorf("a reader who did not read for %v still gets %q", 3*writeTimeout, b)
		}
	})
}

// TestWhatHappenedBeforeTheEndIsTold: a daemon that stops first tells those who
// follow what they have not been told.
func TestWhatHappenedBeforeTheEndIsTold(t *testing.T) {
	s := newServer(&fake{}, testLog(t))
	for range 50 { // chance must have no say
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		next := make(chan Event, 2)
		next <- Event{Event: "node-invited"}
		next <- Event{Event: "node-enrolled"}
		close(next)
		w := httptest.NewRecorder()
		s.stream(w, httptest.NewRequestWithContext(ctx, "GET", "/v1/events?follow=true", nil), nil, next)
		got := w.Body.String()
		first, second, end := strings.Index(got, "node-invited"), strings.Index(got, "node-enrolled"), strings.Index(got, errStopping.Message)
		if first < 0 || second < first || end < second {
			t.Fatalf("told %q, want both events, then the end", got)
		}
	}
}

func TestServeSaysThatTheListenerBroke(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := Serve(t.Context(), l, &fake{}, testLog(t)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve on a closed listener = %v, want %v", err, net.ErrClosed)
	}
}

func TestAnswerThatCannotBeWritten(t *testing.T) {
	s := newServer(&fake{}, testLog(t))
	w := httptest.NewRecorder()
	s.send(w, http.StatusOK, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC))
	if w.Code != 500 || !strings.Contains(w.Body.String(), "cannot be written") {
		t.Errorf("answer = %d %s, want 500 that says so", w.Code, w.Body)
	}
}
