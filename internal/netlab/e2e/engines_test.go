package e2e

import (
	"os"
	"strings"
	"testing"
)

// engines are the data planes of the gateway and of the nodes; empty is the
// default.
type engines struct{ gateway, nodes string }

// chosen is what every story runs with: $TUNNELD_ENGINES, GATEWAY/NODES, for
// the whole matrix by night.
var chosen = func() (e engines) {
	e.gateway, e.nodes, _ = strings.Cut(os.Getenv("TUNNELD_ENGINES"), "/")
	return e
}()

// mixed runs a story with the chosen engines, and then a short form of it with
// one of each engine at the two ends.
func mixed(t *testing.T, story func(t *testing.T, e engines, short bool)) {
	t.Run("chosen engines", func(t *testing.T) { story(t, chosen, false) })
	for _, e := range []engines{{"native", "reference"}, {"reference", "native"}} {
		if e != chosen {
			t.Run(e.gateway+" gateway, "+e.nodes+" node", func(t *testing.T) { story(t, e, true) })
		}
	}
}

// dataSection is the [data] of a daemon with that engine and more keys.
func dataSection(engine, more string) string {
	if engine != "" {
		more = "engine = \"" + engine + "\"\n" + more
	}
	return "[data]\n" + more
}
