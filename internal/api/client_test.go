package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	. "tunneld/internal/api"
	"tunneld/internal/api/apitest"
)

// serveFake serves m at a socket of its own until the test ends.
func serveFake(t *testing.T, m Manager) (path string, stop func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, m, slog.New(slog.NewTextHandler(t.Output(), nil))) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return path, stop
}

func TestClientMirrorsManager(t *testing.T) {
	m := &apitest.Manager{}
	path, _ := serveFake(t, m)
	c, ctx := Dial(path), t.Context()
	if v, err := c.Version(ctx); err != nil || v != m.Version() {
		t.Errorf("Version = %v, %v", v, err)
	}
	status, err := c.Status(ctx)
	if err != nil || status.BootID != apitest.BootID || len(status.Tunnels) != 2 || *status.Tunnels[0].KeyEpoch != 3 {
		t.Errorf("Status = %+v, %v", status, err)
	}
	if got, want := status.Tunnels[0].Addresses[1], netip.MustParseAddr("fd78::2"); got != want {
		t.Errorf("address = %v, want %v", got, want)
	}
	if s, err := c.Sessions(ctx); err != nil || len(s) != 1 || s[0].Session != apitest.BranchID {
		t.Errorf("Sessions = %+v, %v", s, err)
	}
	if d, err := c.Session(ctx, apitest.BranchID); err != nil || d.Session.Session != apitest.BranchID || len(d.History) != 5 {
		t.Errorf("Session = %+v, %v", d, err)
	}
	invite := InviteRequest{Node: "bob", Networks: []string{"office"}, Advertise: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")}, TTLMillis: 60000, Replace: true}
	if r, err := c.Invite(ctx, invite); err != nil || r.Code != "tnl1-code-of-bob" || !r.ExpiresAt.Equal(apitest.Start.Add(time.Minute)) {
		t.Errorf("Invite = %+v, %v", r, err)
	}
	if n, err := c.Nodes(ctx); err != nil || len(n) != 2 {
		t.Errorf("Nodes = %+v, %v", n, err)
	}
	if r, err := c.Join(ctx, JoinRequest{Code: "tnl1-x", As: "work", Interface: "tnl7"}); err != nil || r.Tunnels[0].Name != "work" {
		t.Errorf("Join = %+v, %v", r, err)
	}
	if u, err := c.Up(ctx, "home", time.Second); err != nil || u.Name != "home" {
		t.Errorf("Up = %+v, %v", u, err)
	}
	if x, err := c.Extend(ctx, "home", time.Minute); err != nil || x.Name != "home" {
		t.Errorf("Extend = %+v, %v", x, err)
	}
	for verb, err := range map[string]error{
		"down": c.Down(ctx, "home"), "leave": c.Leave(ctx, "home"), "suspend": c.Suspend(ctx, "home"), "resume": c.Resume(ctx, "home"), "revoke": c.RevokeNode(ctx, "branch"),
		"release": c.ReleaseSession(ctx, apitest.BranchID),
		"kill":    c.KillSession(ctx, apitest.BranchID, "audit & more <\x07>"),
	} {
		if err != nil {
			t.Errorf("%s: %v", verb, err)
		}
	}
	asked := strings.Join(m.Asked(), "\n")
	for _, want := range []string{
		"status", "sessions", "session " + apitest.BranchID, "invite bob [office] [10.20.0.0/16] 60000 true", "nodes",
		`join tnl1-x as "work" interface "tnl7"`, "up home 1s", "down home", "leave home", "suspend home", "resume home", "extend home 1m0s", "revoke branch", "release " + apitest.BranchID,
		`kill ` + apitest.BranchID + ` "audit & more <\a>"`,
	} {
		if !strings.Contains(asked, want) {
			t.Errorf("the manager was asked\n%s\nwant %q in it", asked, want)
		}
	}
}

func TestClientGetsEmptyLists(t *testing.T) {
	path, _ := serveFake(t, &apitest.Manager{Bare: true})
	c := Dial(path)
	status, err := c.Status(t.Context())
	if err != nil || status.Tunnels == nil || status.Networks == nil || status.Problems == nil {
		t.Errorf("Status = %+v, %v, want empty lists", status, err)
	}
	if s, err := c.Sessions(t.Context()); err != nil || s == nil {
		t.Errorf("Sessions = %v, %v, want an empty list", s, err)
	}
	if n, err := c.Nodes(t.Context()); err != nil || n == nil {
		t.Errorf("Nodes = %v, %v, want an empty list", n, err)
	}
}

func TestClientGetsErrorsAsTheyWere(t *testing.T) {
	path, _ := serveFake(t, &apitest.Manager{})
	c := Dial(path)
	for name, want := range map[string]Error{
		"nowhere":      {NoSuch, `no tunnel named "nowhere"`, "configured tunnels are: home, office"},
		apitest.Denied: {NotAllowed, `the gateway refuses down of "denied" by right`, ""},
		apitest.Broken: {Failed, "the journal: no space left on device", ""},
	} {
		err := c.Down(t.Context(), name)
		if e, ok := errors.AsType[*Error](err); !ok || *e != want {
			t.Errorf("Down(%q) = %#v, want %#v", name, err, want)
		}
	}
}

func TestEvents(t *testing.T) {
	m := &apitest.Manager{}
	path, stop := serveFake(t, m)
	c := Dial(path)
	var got []string
	collect := func(e Event) error { got = append(got, e.Event); return nil }
	if err := c.Events(t.Context(), false, collect); err != nil {
		t.Fatalf("Events: %v", err)
	}
	if want := "session-established session-suspended"; strings.Join(got, " ") != want {
		t.Errorf("events = %q, want %q", got, want)
	}

	events, ended := make(chan string, 16), make(chan error, 1)
	follow := func() {
		ended <- c.Events(t.Context(), true, func(e Event) error { events <- e.Event; return nil })
	}
	next := func(want string) {
		t.Helper()
		select {
		case got := <-events:
			if got != want {
				t.Errorf("event = %q, want %q", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("no event %q", want)
		}
	}
	go follow()
	next("session-established")
	next("session-suspended")
	if err := m.Happen(t.Context(), Event{Event: "node-revoked"}); err != nil {
		t.Fatal(err)
	}
	next("node-revoked") // flushed at once: nothing else is on its way
	if err := m.CutOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !strings.Contains(err.Error(), "fell behind") {
		t.Errorf("Events after the cut = %v, want to be told so", err)
	}

	go follow()
	next("session-established")
	next("session-suspended")
	stop()
	if err := <-ended; !strings.Contains(err.Error(), "the daemon is stopping") {
		t.Errorf("Events after the stop = %v, want to be told so", err)
	}
}

func TestEventsEndWithTheirContext(t *testing.T) {
	path, _ := serveFake(t, &apitest.Manager{})
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	err := Dial(path).Events(ctx, true, func(Event) error {
		if n++; n == 2 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Events = %v, want %v", err, context.Canceled)
	}
}

func TestEventsThatCannotBeRead(t *testing.T) {
	path, _ := serveFake(t, &apitest.Manager{Bare: true})
	err := Dial(path).Events(t.Context(), false, nil)
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != Failed || !strings.Contains(e.Message, "journal") {
		t.Errorf("Events = %v, want the manager's error", err)
	}
}

// FuzzRequest plays any local user who reached the socket: whatever he sends is
// answered with JSON, either a value or an Error, and does not panic.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "/v1/status", "", []byte(nil))
	f.Add("POST", "/v1/down", "", []byte(`{"tunnel":"home"}`))
	f.Add("POST", "/v1/join", "", []byte(`{"code":"tnl1-x","as":"","interface":""}`))
	f.Add("GET", "/v1/events", "follow=false", []byte(nil))
	f.Add("GET", "/v1/session/show", "id=x", []byte(nil))
	f.Add("POST", "/v1/invite", "", []byte(`{"node":"a","ttl_ms":1000,"networks":["office"],"advertise":["10.0.0.0/8"]}`))
	h := HandlerForTest(NewServerForTest(&apitest.Manager{}, slog.New(slog.DiscardHandler)))
	f.Fuzz(func(t *testing.T, method, path, query string, body []byte) {
		if method == "" || strings.Contains(query, "follow") || bytes.Contains(body, []byte(apitest.Slow)) || strings.Contains(query, apitest.Slow) {
			return // these wait, rightly
		}
		r, err := http.NewRequest(method, "http://x/", bytes.NewReader(body))
		if err != nil {
			return
		}
		r.URL.Path, r.URL.RawQuery = path, query
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		dec := json.NewDecoder(w.Body)
		for {
			var v any
			if err := dec.Decode(&v); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s %s: answer is no JSON: %v", method, path, err)
			}
			if e, _ := v.(map[string]any); w.Code != 200 && e["message"] == "" {
				t.Fatalf("%s %s: status %d without a message", method, path, w.Code)
			}
		}
	})
}
