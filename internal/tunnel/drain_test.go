package tunnel

import (
	"testing"
	"time"

	"tunneld/internal/control/wire"
)

// TestSlots: nodes leave in order, within the time that the drain may take.
func TestSlots(t *testing.T) {
	for _, n := range []int{0, 1, 2, 7, 1000} {
		last := time.Duration(0)
		for i := range n {
			at := slot(time.Minute, i, n)
			if at < last || at > time.Minute {
				t.Fatalf("node %d of %d leaves at %v, the one before at %v, all within %v", i, n, at, last, time.Minute)
			}
			last = at
		}
	}
	if got := slot(0, 3, 5); got != 0 {
		t.Errorf("slot of a drain that takes no time = %v, want 0", got)
	}
}

// TestElsewhere: other gateways are spoken of only where some are named.
func TestElsewhere(t *testing.T) {
	d := &draining{}
	if r := d.elsewhere(wire.StopError); r.Error != wire.ErrorTryAnother || r.Cause != wire.CauseDraining {
		t.Errorf("without a name: %+v", r)
	}
	d.to = []string{"gw-2.example:443"}
	if r := d.elsewhere(wire.StopError); r.Error != wire.ErrorTryNamed || r.Cause.Advice() != wire.RetryLater {
		t.Errorf("with a name: %+v", r)
	}
}
