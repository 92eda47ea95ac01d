package tunnel

import "runtime/debug"

// manyCame is after how many transports, in a row without a quiet moment, memory
// is given back.
const manyCame = 256

// slack notices when many nodes have come, or come back, and it is quiet again.
// What their handshakes have left behind is as much as they hold, and the
// runtime keeps it for the next ones, which may never come.
type slack struct {
	last  int64 // how many transports had come at the last look
	given int64 // and when memory was last given back
}

// due reports, at regular looks, whether it is time to give memory back; came is
// how many transports have come in all.
func (s *slack) due(came int64) bool {
	quiet := came == s.last
	s.last = came
	if !quiet || came-s.given < manyCame {
		return false
	}
	s.given = came
	return true
}

// giveBack gives memory back to the host if it is time.
func (s *slack) giveBack(g *gateway) {
	if g != nil && s.due(g.came.Load()) {
		debug.FreeOSMemory()
	}
}
