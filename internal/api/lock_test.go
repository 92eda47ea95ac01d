package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"tunneld/internal/session"
)

// slow is a daemon whose Down goes on until it is let go.
type slow struct {
	fake
	begun, end chan struct{}
}

func (m *slow) Down(context.Context, string) error {
	m.note("down")
	m.begun <- struct{}{}
	<-m.end
	return nil
}

func (m *slow) Suspend(context.Context, string) error { m.note("suspend"); return nil }

// tunnelRequest asks verb of a tunnel under an id.
func tunnelRequest(verb, tunnel, id, epoch string) string {
	body := fmt.Sprintf(`{"tunnel":%q}`, tunnel)
	return fmt.Sprintf("POST /v1/%s HTTP/1.1\r\nHost: tunneld\r\nContent-Type: application/json\r\n%s: %s\r\n%s: %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
		verb, headerRequest, id, headerEpoch, epoch, len(body), body)
}

// TestChangesDoNotInterleave: while one caller changes a tunnel another is told
// who does; another tunnel is free, and so is this one afterwards.
func TestChangesDoNotInterleave(t *testing.T) {
	m := &slow{begun: make(chan struct{}), end: make(chan struct{})}
	path, stop := serveFake(t, m)
	defer stop()
	epoch := epochOf(t, path)
	first := session.NewID().String()
	type answer struct {
		status int
		body   string
	}
	answers := make(chan answer, 2)
	ask := func() {
		status, body := exchangeRaw(t, path, tunnelRequest("down", "home", first, epoch))
		answers <- answer{status, body}
	}
	go ask()
	<-m.begun
	status, body := exchangeRaw(t, path, tunnelRequest("suspend", "home", session.NewID().String(), epoch))
	var e Error
	if err := json.Unmarshal([]byte(body), &e); err != nil || status == http.StatusOK || e.Code != Failed {
		t.Fatalf("a change during another = %d %s, want it refused", status, body)
	}
	for _, says := range []string{`tunnel "home"`, "down", "request " + first} {
		if !strings.Contains(e.Message, says) {
			t.Errorf("the refusal %q does not say %q", e.Message, says)
		}
	}
	if status, body := exchangeRaw(t, path, tunnelRequest("suspend", "office", session.NewID().String(), epoch)); status != http.StatusOK {
		t.Errorf("a change of another tunnel = %d %s", status, body)
	}
	go ask() // the same request again is no second change
	close(m.end)
	for range 2 {
		if a := <-answers; a.status != http.StatusOK {
			t.Errorf("the first change = %d %s", a.status, a.body)
		}
	}
	if status, body := exchangeRaw(t, path, tunnelRequest("suspend", "home", session.NewID().String(), epoch)); status != http.StatusOK {
		t.Errorf("a change afterwards = %d %s", status, body)
	}
	if got := strings.Join(m.heard(), " "); got != "down suspend suspend" {
		t.Errorf("the daemon heard %q", got)
	}
}
