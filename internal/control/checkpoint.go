package control

import (
	"fmt"

	"tunneld/internal/control/wire"
)

// Checkpoints: docs/protocol.md, "Checkpoints". The serial of a connection counts
// the changes that this end has committed: each numbered message, sent or
// received, is one. Ends between which nothing is under way have committed the
// same changes, so they stand at the same serial; where something is, what is
// under way says by how much they differ.

// firstSerial is where a connection begins: three messages set it up.
const firstSerial = 3

// count takes the next serial, for a numbered message that is about to be
// committed. What is not known is not counted.
func (m *Machine) count() {
	if m.rec.Serial != 0 {
		m.rec.Serial++
	}
}

// compare holds the serial that the peer stands at against ours. It has told of
// all that it sent before, so its serial is ours without what it has not
// received. Ends that disagree have lost what they journalled, and their
// connection is over: false.
func (m *Machine) compare(serial uint64) bool {
	waiting := uint64(len(m.rec.Unacked))
	switch {
	case serial == 0 && m.rec.Serial == 0 && m.cfg.Role == Responder: // both from before there were serials
		m.rec.Serial, m.dirty = uint64(m.rec.Ns)+uint64(m.rec.Nr), true
	case serial == 0: // its sender knows none yet
	case m.rec.Serial == 0:
		m.rec.Serial, m.dirty = serial+waiting, true
	case serial+waiting != m.rec.Serial:
		err := fmt.Errorf("the peer stands at checkpoint %d, should stand at %d", serial, m.rec.Serial-waiting)
		m.stop(wire.Result{Code: wire.StopError, Error: wire.ErrorVendor, Cause: wire.CauseCheckpoint, Text: err.Error()}, err)
		return false
	}
	if waiting == 0 && serial != 0 {
		m.rec.Major = m.rec.Serial // worth no write of its own
	}
	return true
}
