package control

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestRequirementsHaveTests: the table at the end of docs/protocol.md names
// files and tests that exist, and each row names both.
func TestRequirementsHaveTests(t *testing.T) {
	doc, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(doc), "\n## Requirements, code, tests\n")
	if !ok {
		t.Fatal("docs/protocol.md has no table of requirements")
	}
	tests := testNames(t, ".", "wire", "carrier", "../auth")
	row := regexp.MustCompile(`(?m)^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$`)
	quoted := regexp.MustCompile("`([^`]+)`")
	n := 0
	for _, m := range row.FindAllStringSubmatch(table, -1) {
		if m[1] == "requirement" {
			continue
		}
		n++
		files, names := quoted.FindAllStringSubmatch(m[2], -1), quoted.FindAllStringSubmatch(m[3], -1)
		if len(files) == 0 || len(names) == 0 {
			t.Errorf("%q names no code or no test", m[1])
		}
		for _, f := range files {
			if _, err := os.Stat(f[1]); err != nil {
				t.Errorf("%q: %v", m[1], err)
			}
		}
		for _, name := range names {
			if !tests[name[1]] {
				t.Errorf("%q: there is no test %s", m[1], name[1])
			}
		}
	}
	if n < 20 {
		t.Errorf("the table has %d requirements; is its form still | requirement | code | test |?", n)
	}
}

// testNames are the tests and fuzz targets in some directories.
func testNames(t *testing.T, dirs ...string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range function.FindAllSubmatch(b, -1) {
				names[string(m[1])] = true
			}
		}
	}
	return names
}

// TestDocumentSaysTheKeys: the vectors of docs/protocol.md are those tested here.
func TestDocumentSaysTheKeys(t *testing.T) {
	doc, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{vectorRatchet, vectorResume, vectorKeyProof, vectorNextKey, labelBinding, labelResume, labelPSK} {
		if !strings.Contains(string(doc), want) {
			t.Errorf("docs/protocol.md does not say %q", want)
		}
	}
}
