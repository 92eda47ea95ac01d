package control

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

func TestPaceAfterALoss(t *testing.T) {
	reset := &net.OpError{Op: "read", Err: syscall.ECONNRESET}
	tests := []struct {
		err    error
		spread time.Duration
		waits  bool
	}{
		{fmt.Errorf("transport lost: %w", io.EOF), time.Hour, true},
		{fmt.Errorf("transport lost: %w", reset), time.Hour, true},
		{ErrPeerSilent, time.Hour, false},
		{errors.New("replaced"), time.Hour, false},
		{io.EOF, 0, false},
	}
	for _, tt := range tests {
		var p Pace
		p.Told(tt.spread)
		longest := time.Duration(0)
		for range 20 {
			d := p.Lost(tt.err)
			if d < 0 || d > tt.spread {
				t.Errorf("Lost(%v) = %v with a spread of %v", tt.err, d, tt.spread)
			}
			longest = max(longest, d)
		}
		if waits := longest > 0; waits != tt.waits {
			t.Errorf("Lost(%v) = %v at most with a spread of %v, want waits = %v", tt.err, longest, tt.spread, tt.waits)
		}
	}
}

func TestPaceAfterAFailure(t *testing.T) {
	var quick, spread Pace
	spread.Told(8 * time.Second)
	for n := range 100 {
		if d := quick.Failed(); d > backoffMax || n == 0 && d > backoffFirst || quick.Failures() != n+1 {
			t.Errorf("failure %d: %v, %d failures", n+1, d, quick.Failures())
		}
		if d := spread.Failed(); d < 2*time.Second {
			t.Errorf("failure %d with a spread of 8 s: %v, want 2 s or more", n+1, d)
		}
	}
	quick.Forget()
	if d := quick.Failed(); d > backoffFirst {
		t.Errorf("the first failure after Forget: %v", d)
	}
}
