package session

import (
	"bytes"
	"testing"
)

func TestIDRoundTrip(t *testing.T) {
	id, err := ReadID(bytes.NewReader([]byte("0123456789abcdef")))
	if err != nil {
		t.Fatal(err)
	}
	const want = "30313233-3435-4637-b839-616263646566"
	if id.String() != want {
		t.Errorf("String() = %v, want %v", id, want)
	}
	got, err := ParseID(want)
	if err != nil || got != id {
		t.Errorf("ParseID(%q) = %v, %v, want %v", want, got, err, id)
	}
	if a, b := NewID(), NewID(); a == b {
		t.Error("two new IDs are equal")
	}
}

func TestParseIDRefuses(t *testing.T) {
	for _, s := range []string{"", "30313233", "30313233-3435-4637-b839-61626364656", "30313233-3435-4637-b839-6162636465zz", "303132330-435-4637-b839-616263646566"} {
		if id, err := ParseID(s); err == nil {
			t.Errorf("ParseID(%q) = %v, want an error", s, id)
		}
	}
}

func TestStateText(t *testing.T) {
	for s := Idle; s < numStates; s++ {
		b, _ := s.MarshalText()
		var got State
		if err := got.UnmarshalText(b); err != nil || got != s {
			t.Errorf("state %d read back from %q as %v, %v", s, b, got, err)
		}
	}
	var s State
	if err := s.UnmarshalText([]byte("running")); err == nil {
		t.Error(`a state named "running" was accepted`)
	}
}
