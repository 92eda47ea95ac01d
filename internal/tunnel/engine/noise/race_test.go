//go:build race

package noise

// raceEnabled: under the race detector sync.Pool drops things at random.
const raceEnabled = true
