package host

import (
	"bytes"
	"fmt"
	"os"
)

// Swap implements [Host].
func (*Linux) Swap() (on bool, err error) {
	b, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return false, fmt.Errorf("host: swaps: %w", err)
	}
	return anySwap(b), nil
}

// anySwap reads /proc/swaps: a line of headings, then one for each.
func anySwap(b []byte) bool { return bytes.Count(bytes.TrimSpace(b), []byte("\n")) > 0 }
