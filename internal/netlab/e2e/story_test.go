package e2e

import (
	"encoding/json"
	"slices"
	"testing"

	"tunneld/internal/netlab"
)

// told is what `session show` tells of a session.
type told struct {
	State   string
	History []struct {
		Event, Cause, Request, From string
		RxBytes                     *uint64 `json:"rx_bytes"`
	}
}

func (w *world) story(d *netlab.Daemon, id string) (s told) {
	w.t.Helper()
	w.check(json.Unmarshal([]byte(w.ctl(d, "--json", "session", "show", id)), &s))
	return s
}

// kinds are the events of a story, in their order.
func (s told) kinds() (all []string) {
	for _, e := range s.History {
		all = append(all, e.Event)
	}
	return all
}

// TestStory: a session is extended, its gateway killed, and it is closed; both
// ends tell that by the same requests, and what they have told they still tell
// when they have been killed since.
func TestStory(t *testing.T) {
	w := newTimedOffice(t, "absolute = \"1h\"\nextend = \"1h\"")
	alice := w.node("alice")
	before, _ := w.established(alice)
	w.ctl(alice, "extend", office, "--by", "30m")
	w.refused(alice, 4, "extend", "nowhere")
	w.check(w.hq.Process().Kill9())
	w.start(w.hq)
	w.resumed(alice, 1)
	w.ctl(w.hq, "session", "kill", before.Session, "--reason", "maintenance")
	w.eventually("the end at the node", func() bool { return w.recorded(alice, "session-closed", before.Session, "") })
	w.story(w.hq, before.Session)
	w.story(alice, before.Session)
	w.check(w.hq.Process().Kill9(), alice.Process().Kill9())
	w.start(w.hq)
	w.start(alice)
	want := []string{"session-established", "session-extended", "session-suspended", "session-resumed", "session-closed"}
	gateway, node := w.story(w.hq, before.Session), w.story(alice, before.Session)
	for name, s := range map[string]told{"the gateway": gateway, "the node": node} {
		if got := s.kinds(); s.State != "closed" || !slices.Equal(got, want) {
			t.Fatalf("%s tells of a %s session: %v, want %v", name, s.State, got, want)
		}
		if s.History[3].From == "" || s.History[4].RxBytes == nil {
			t.Errorf("%s does not tell from where it was resumed, or what passed: %+v", name, s.History)
		}
	}
	for _, i := range []int{0, 1, 4} {
		if g, n := gateway.History[i].Request, node.History[i].Request; g == "" || g != n {
			t.Errorf("%s: request %q at the gateway, %q at the node", want[i], g, n)
		}
	}
}
