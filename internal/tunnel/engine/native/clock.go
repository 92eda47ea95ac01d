package native

import (
	"tunneld/internal/tunnel/engine/meter"
	"tunneld/internal/tunnel/engine/noise"
)

// now is the moment on the clock of keys, timers and deadlines.
func now() noise.Instant { return noise.Instant(meter.Now()) }
