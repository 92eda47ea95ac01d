package tunnel

import "testing"

// TestHandOver: interfaces and what hangs on them stay at the end if the next
// process goes on with them, and go otherwise. In both cases the engine is told
// when all sessions were added.
func TestHandOver(t *testing.T) {
	for _, leaves := range []bool{false, true} {
		d := newGatewayDaemon(t)
		d.leaves = leaves
		d.run()
		if !d.engine.HasSettled() {
			t.Errorf("hand-over %v: the engine does not know that all sessions were added", leaves)
		}
		name := d.m.gateway.networks[0].ifname
		d.end()
		if stays := d.engine.Device(name) != nil; stays != leaves {
			t.Errorf("hand-over %v: interface %s stays is %v", leaves, name, stays)
		}
	}
}
