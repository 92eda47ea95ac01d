package api

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"tunneld/internal/session"
)

// onceRequest is a kill of session abcd with an id, for the epoch given.
func onceRequest(id, epoch string) string {
	const body = `{"session":"abcd","reason":"x"}`
	return fmt.Sprintf("POST /v1/session/kill HTTP/1.1\r\nHost: tunneld\r\nContent-Type: application/json\r\n%s: %s\r\n%s: %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
		headerRequest, id, headerEpoch, epoch, len(body), body)
}

// cutAfter sends the first n octets of a request and leaves.
func cutAfter(t *testing.T, path, request string, n int) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, request[:n]); err != nil {
		t.Fatal(err)
	}
}

func epochOf(t *testing.T, path string) string {
	t.Helper()
	epoch, err := Dial(path).epoch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return epoch
}

// TestOneEffectWhereverItIsCut cuts the connection after each octet of a request,
// repeats the request, and wants one effect and the same answer as without a cut.
func TestOneEffectWhereverItIsCut(t *testing.T) {
	m := &fake{}
	path, stop := serveFake(t, m)
	defer stop()
	epoch := epochOf(t, path)
	whole := onceRequest(session.NewID().String(), epoch)
	for n := range len(whole) + 1 {
		id := session.NewID().String()
		request := onceRequest(id, epoch)
		before := len(m.heard())
		cutAfter(t, path, request, n)
		status, body := exchangeRaw(t, path, request)
		if status != http.StatusOK {
			t.Fatalf("cut after %d of %d octets: %d %s", n, len(request), status, body)
		}
		if status2, body2 := exchangeRaw(t, path, request); status2 != status || body2 != body {
			t.Fatalf("asked a third time: %d %q, want %d %q", status2, body2, status, body)
		}
		if got := len(m.heard()) - before; got != 1 {
			t.Fatalf("cut after %d of %d octets: %d effects, want 1", n, len(request), got)
		}
	}
}

func TestOnceRefusals(t *testing.T) {
	m := &fake{}
	path, stop := serveFake(t, m)
	defer stop()
	epoch := epochOf(t, path)
	id := session.NewID().String()
	if status, body := exchangeRaw(t, path, onceRequest(id, epoch)); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	for _, c := range []struct{ what, request, want string }{
		{"another epoch", onceRequest(session.NewID().String(), session.NewID().String()), "was restarted"},
		{"no epoch", onceRequest(session.NewID().String(), ""), "was restarted"},
		{"no id", onceRequest("seven", epoch), "is no UUID"},
		{"the id of another request", strings.Replace(onceRequest(id, epoch), "abcd", "abce", 1), "another one before"},
	} {
		if status, body := exchangeRaw(t, path, c.request); status == http.StatusOK || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %q, want a refusal with %q", c.what, status, body, c.want)
		}
	}
	if got := len(m.heard()); got != 1 {
		t.Errorf("%d effects, want 1", got)
	}
}

func TestAnswersAreBounded(t *testing.T) {
	a := newAnswers()
	for range 3 * maxAnswers {
		e, first, err := a.begin(session.NewID(), [32]byte{})
		if err != nil || !first {
			t.Fatalf("begin = %v, %v", first, err)
		}
		close(e.done)
	}
	if len(a.byID) > maxAnswers || len(a.order) > maxAnswers {
		t.Errorf("%d answers kept, want at most %d", len(a.byID), maxAnswers)
	}
}

// TestClientAsksAgain has a daemon whose first answer is cut.
func TestClientAsksAgain(t *testing.T) {
	m := &fake{}
	path, stop := serveFake(t, m)
	defer stop()
	front := t.TempDir() + "/front.sock"
	l, err := net.Listen("unix", front)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cut := 0
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			relay(c, path, &cut)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := Dial(front).KillSession(ctx, "abcd", "x"); err != nil {
		t.Errorf("KillSession through a cut = %v", err)
	}
	if got := m.heard(); len(got) != 1 || cut != 1 {
		t.Errorf("%d effects and %d cuts, want 1 and 1", len(got), cut)
	}
	l.Close()
	<-ended
}

// relay carries one request to the daemon and its answer back, but keeps the
// first answer to a POST for itself.
func relay(c net.Conn, path string, cut *int) {
	defer c.Close()
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	r.URL.Scheme, r.URL.Host, r.RequestURI = "http", "tunneld", ""
	resp, err := Dial(path).http.Do(r)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if r.Method == http.MethodPost && *cut == 0 {
		*cut++
		return
	}
	_ = resp.Write(c)
}
