package enginetest

import (
	"errors"
	"testing"
	"time"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

func TestFakeRemembersDeadlines(t *testing.T) {
	var f Fake
	d := opened(t, &f)
	id, first, then := session.NewID(), time.Unix(1e9, 0), time.Unix(2e9, 0)
	if err := d.Add(engine.Session{ID: id, PeerKey: engine.PublicKey{1}, Deadline: first}); err != nil {
		t.Fatal(err)
	}
	if s, _ := d.Session(id); !s.Deadline.Equal(first) {
		t.Errorf("deadline = %v, want %v", s.Deadline, first)
	}
	if err := d.SetDeadline(id, then); err != nil {
		t.Fatal(err)
	}
	if s, _ := d.Session(id); !s.Deadline.Equal(then) {
		t.Errorf("deadline = %v, want %v", s.Deadline, then)
	}
	if err := d.SetDeadline(session.NewID(), then); !errors.Is(err, engine.ErrUnknownSession) {
		t.Errorf("SetDeadline of nobody = %v, want %v", err, engine.ErrUnknownSession)
	}
}
