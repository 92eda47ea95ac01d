package tunnel

import (
	"errors"
	"strings"
	"testing"

	"tunneld/internal/tunnel/engine"
)

func TestKeyMemory(t *testing.T) {
	low := errors.New("the limit is too low")
	for _, c := range []struct {
		name string
		k    engine.KeyMemory
		swap *bool
		mend string // "" for none
	}{
		{"locked", engine.KeyMemory{}, new(true), ""},
		{"too low a limit", engine.KeyMemory{Unlocked: low, Limited: true}, new(true), "LimitMEMLOCK=infinity"},
		{"too low a limit, no swap", engine.KeyMemory{Unlocked: low, Limited: true}, new(false), "LimitMEMLOCK=infinity"},
		{"ordinary memory and a swap", engine.KeyMemory{Unlocked: engine.ErrOrdinaryMemory}, new(true), "swapoff -a"},
		{"ordinary memory, no swap", engine.KeyMemory{Unlocked: engine.ErrOrdinaryMemory}, new(false), ""},
		{"nobody knows", engine.KeyMemory{Unlocked: engine.ErrOrdinaryMemory}, nil, "swapoff -a"},
	} {
		v := keyMemoryView(c.k, c.swap)
		if v.Locked != (c.k.Unlocked == nil) || (v.Why == nil) != v.Locked || (v.Mend == nil) != (c.mend == "") || v.Mend != nil && !strings.Contains(*v.Mend, c.mend) {
			t.Errorf("%s: %+v, want it mended by %q", c.name, v, c.mend)
		}
	}
}

// TestKeyMemoryInStatus: what engine and host say is what is shown.
func TestKeyMemoryInStatus(t *testing.T) {
	d := newNodeDaemon(t, "alice")
	d.run()
	defer d.end()
	d.host.SetSwap(true)
	d.engine.SetKeyMemory(engine.KeyMemory{Unlocked: engine.ErrOrdinaryMemory})
	if st, err := d.m.Status(t.Context()); err != nil || st.KeyMemory.Locked || st.KeyMemory.Swap == nil || !*st.KeyMemory.Swap || st.KeyMemory.Mend == nil {
		t.Errorf("status = %+v, %v, want keys that a swap could take in, and what mends it", st.KeyMemory, err)
	}
	d.engine.SetKeyMemory(engine.KeyMemory{})
	d.host.Fail("Swap", errors.New("no /proc"))
	if st, err := d.m.Status(t.Context()); err != nil || !st.KeyMemory.Locked || st.KeyMemory.Swap != nil {
		t.Errorf("status = %+v, %v, want locked keys, and nothing known of a swap", st.KeyMemory, err)
	}
}
