package api

import (
	"net/http"
	"testing"
)

// classes is the expectation, by hand: who may use which verb.
var classes = map[string]class{
	"version":         look,
	"status":          look,
	"sessions":        look,
	"session show":    look,
	"node list":       look,
	"events":          look,
	"up":              use,
	"down":            use,
	"suspend":         use,
	"extend":          use,
	"resume":          use,
	"session kill":    administer,
	"session release": administer,
	"invite":          administer,
	"node revoke":     administer,
	"drain":           administer,
	"join":            administer,
	"leave":           administer,
}

func TestEveryRouteHasAClass(t *testing.T) {
	paths := make(map[string]bool)
	verbs := make(map[string]bool)
	for _, rt := range routes() {
		if rt.class == unclassified || rt.class >= numClasses {
			t.Errorf("%s has no class", rt.verb)
		}
		if want := classes[rt.verb]; rt.class != want {
			t.Errorf("class of %s = %d, want %d; is it in the table of this test?", rt.verb, rt.class, want)
		}
		if wantGet := rt.class == look; (rt.method == http.MethodGet) != wantGet {
			t.Errorf("method of %s = %s: verbs that only look are GET, the others are not", rt.verb, rt.method)
		}
		if paths[rt.path] || verbs[rt.verb] {
			t.Errorf("%s or its path %s is there twice", rt.verb, rt.path)
		}
		paths[rt.path], verbs[rt.verb] = true, true
	}
	if len(verbs) != len(classes) {
		t.Errorf("%d verbs, want %d", len(verbs), len(classes))
	}
}

func TestAForgottenClassIsRefused(t *testing.T) {
	g := newGuard()
	for _, c := range []class{unclassified, numClasses, numClasses + 1} {
		if g.permit(peer{uid: 0}, c) {
			t.Errorf("permit(root, %d) = true, want false", c)
		}
	}
}
