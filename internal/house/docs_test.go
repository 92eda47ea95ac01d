package house

import (
	"go/ast"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// documents returns the Markdown files of the tree by their path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	texts(t, func(name string, content []byte) {
		if path.Ext(name) == ".md" {
			docs[name] = string(content)
		}
	})
	for _, want := range []string{"README.md", "docs/architecture.md", "docs/operations.md", "docs/performance.md", "docs/protocol.md", "docs/security.md"} {
		if docs[want] == "" {
			t.Errorf("%s is missing", want)
		}
	}
	return docs
}

// document reads one of them.
func document(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// TestLinks: a link from one document to another, or to a place in it, leads
// somewhere.
func TestLinks(t *testing.T) {
	docs := documents(t)
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		for _, m := range link.FindAllStringSubmatch(docs[name], -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := name
			if file != "" {
				target = path.Join(path.Dir(name), file)
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s links to %s, which is not there", name, m[1])
			} else if anchor != "" && !slices.Contains(anchors(docs[target]), anchor) {
				t.Errorf("%s links to %s, but %s has no such heading", name, m[1], target)
			}
		}
	}
}

// anchors are the names under which the headings of a document are linked to.
func anchors(doc string) (names []string) {
	for line := range strings.Lines(doc) {
		heading := strings.TrimLeft(line, "#")
		if heading == line || !strings.HasPrefix(heading, " ") {
			continue
		}
		var b strings.Builder
		for _, r := range strings.ToLower(strings.TrimSpace(heading)) {
			switch {
			case r == ' ':
				b.WriteRune('-')
			case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r > 127:
				b.WriteRune(r)
			}
		}
		names = append(names, b.String())
	}
	return names
}

// A command is one that somebody may type from a document.
type command struct {
	doc  string
	line int
	argv []string // without sudo and prompt
}

// commands returns the lines of fenced blocks that call one of names.
func commands(docs map[string]string, names ...string) (found []command) {
	for doc, text := range docs {
		fenced := false
		for i, line := range strings.Split(text, "\n") {
			if strings.HasPrefix(strings.TrimSpace(line), "```") {
				fenced = !fenced
				continue
			}
			if !fenced {
				continue
			}
			for _, part := range separator.Split(line, -1) {
				argv := prompted(strings.Fields(part))
				if len(argv) > 0 && slices.Contains(names, path.Base(argv[0])) {
					argv[0] = path.Base(argv[0])
					found = append(found, command{doc, i + 1, argv})
				}
			}
		}
	}
	return found
}

// separator stands between two commands of a line, or begins a comment.
var separator = regexp.MustCompile(`&&|\|| # `)

// prompted takes prompts ("$", "gateway#") and sudo off a command line.
func prompted(argv []string) []string {
	for len(argv) > 0 && (argv[0] == "sudo" || strings.HasSuffix(argv[0], "$") || strings.HasSuffix(argv[0], "#")) {
		argv = argv[1:]
	}
	return argv
}

// build makes both commands and returns their directory.
func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", dir+"/", "./cmd/tunneld", "./cmd/tunnelctl")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return dir
}

var flagWord = regexp.MustCompile(`^--?[a-z][a-z-]*`)

// TestCommandsInDocuments: each tunneld and tunnelctl line of a document names
// a verb that exists and options that its help names.
func TestCommandsInDocuments(t *testing.T) {
	docs := documents(t)
	bin := build(t)
	help := map[string]string{}
	ask := func(name string, verb ...string) (string, bool) {
		key := name + " " + strings.Join(verb, " ")
		if text, ok := help[key]; ok {
			return text, text != ""
		}
		out, err := exec.Command(filepath.Join(bin, name), append(verb, "--help")...).CombinedOutput()
		if err != nil {
			out = nil
		}
		help[key] = string(out)
		return help[key], err == nil
	}
	for _, c := range commands(docs, "tunneld", "tunnelctl") {
		verb := verbOf(c.argv)
		text, ok := ask(c.argv[0], verb...)
		if !ok {
			t.Errorf("%s:%d: %s has no verb %q", c.doc, c.line, c.argv[0], strings.Join(verb, " "))
			continue
		}
		top, _ := ask(c.argv[0])
		for _, word := range c.argv[1:] {
			if f := flagWord.FindString(strings.Trim(word, "[]")); f != "" && !strings.Contains(text+top, f) {
				t.Errorf("%s:%d: the help of %s %s does not name %s", c.doc, c.line, c.argv[0], strings.Join(verb, " "), f)
			}
		}
	}
}

// verbOf returns the words of a command line that choose what is done: one, or
// two for "session show" and its like.
func verbOf(argv []string) (verb []string) {
	words := argv[1:]
	for len(words) > 0 && strings.HasPrefix(words[0], "-") {
		if words[0] == "--socket" || words[0] == "--config" {
			words = words[1:]
		}
		words = words[1:]
	}
	if len(words) == 0 {
		return nil
	}
	if (words[0] == "session" || words[0] == "node") && len(words) > 1 {
		return words[:2]
	}
	return words[:1]
}

// TestTargetsInDocuments: each `make X` of a document is in the Makefile.
func TestTargetsInDocuments(t *testing.T) {
	makefile := document(t, "Makefile")
	for _, c := range commands(documents(t), "make") {
		for _, target := range c.argv[1:] {
			if !strings.Contains(target, "=") && !strings.Contains(makefile, "\n"+target+":") {
				t.Errorf("%s:%d: the Makefile has no target %s", c.doc, c.line, target)
			}
		}
	}
}

// tags returns the names in the struct tags of key that the types named of a
// room carry.
func tags(t *testing.T, room, key string, types ...string) (names []string) {
	t.Helper()
	fset := token.NewFileSet()
	for _, p := range tree(t) {
		if p.room() != room {
			continue
		}
		for _, f := range parse(t, fset, p, p.GoFiles) {
			ast.Inspect(f, func(n ast.Node) bool {
				if spec, ok := n.(*ast.TypeSpec); ok {
					return slices.Contains(types, spec.Name.Name)
				}
				field, ok := n.(*ast.Field)
				if !ok || field.Tag == nil {
					return true
				}
				tag, _ := strconv.Unquote(field.Tag.Value)
				name, _, _ := strings.Cut(reflect.StructTag(tag).Get(key), ",")
				if name != "" && name != "-" {
					names = append(names, name)
				}
				return true
			})
		}
	}
	if len(names) == 0 {
		t.Errorf("no %s tags in %s", key, room)
	}
	return names
}

// constants returns the string constants of a type in a room.
func constants(t *testing.T, room, typeName string) (values []string) {
	t.Helper()
	fset := token.NewFileSet()
	for _, p := range tree(t) {
		if p.room() != room {
			continue
		}
		for _, f := range parse(t, fset, p, p.GoFiles) {
			ast.Inspect(f, func(n ast.Node) bool {
				spec, ok := n.(*ast.ValueSpec)
				if !ok {
					return true
				}
				if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != typeName {
					return true
				}
				for _, v := range spec.Values {
					if lit, ok := v.(*ast.BasicLit); ok {
						s, _ := strconv.Unquote(lit.Value)
						values = append(values, s)
					}
				}
				return true
			})
		}
	}
	if len(values) == 0 {
		t.Errorf("no constants of %s in %s", typeName, room)
	}
	return values
}

// configKeys returns the keys of the configuration, from the table that config
// gives hints from. Names of sections are no keys.
func configKeys(t *testing.T) (keys []string) {
	t.Helper()
	fset := token.NewFileSet()
	table := regexp.MustCompile(`^\[+(?:[a-z]+\.)?([a-z]+)\]+$`)
	var words, sections []string
	for _, p := range tree(t) {
		if p.room() != "internal/config" {
			continue
		}
		for _, f := range parse(t, fset, p, p.GoFiles) {
			ast.Inspect(f, func(n ast.Node) bool {
				spec, ok := n.(*ast.ValueSpec)
				if !ok || spec.Names[0].Name != "sections" {
					return true
				}
				ast.Inspect(spec, func(n ast.Node) bool {
					if lit, ok := n.(*ast.BasicLit); ok {
						word, _ := strconv.Unquote(lit.Value)
						if m := table.FindStringSubmatch(word); m != nil {
							sections = append(sections, m[1])
						} else if !strings.Contains(word, " ") {
							words = append(words, word)
						}
					}
					return true
				})
				return false
			})
		}
	}
	for _, w := range words {
		if !slices.Contains(sections, w) || w == "network" { // also a key of [[tunnel]]
			keys = append(keys, w)
		}
	}
	if len(keys) < 20 {
		t.Errorf("the configuration has the keys %q, want more", keys)
	}
	return keys
}

// TestOperations: everything an administrator or a script meets is in
// docs/operations.md: verbs, keys of the configuration, fields of the JSON
// answers, names of events.
func TestOperations(t *testing.T) {
	text := document(t, "docs/operations.md")
	demand := func(kind string, names []string) {
		for _, n := range names {
			if !strings.Contains(text, "`"+n+"`") {
				t.Errorf("docs/operations.md does not explain the %s `%s`", kind, n)
			}
		}
	}
	demand("configuration key", configKeys(t))
	demand("JSON field", tags(t, "internal/api", "json",
		"Status", "Tunnel", "Network", "Problem", "Session", "SessionDetail", "Event", "Node", "InviteReply", "JoinReply", "JoinedTunnel", "Version", "Error"))
	demand("event", constants(t, "internal/event", "Kind"))

	bin := build(t)
	for _, name := range []string{"tunneld", "tunnelctl"} {
		for _, verb := range verbs(t, filepath.Join(bin, name)) {
			if !strings.Contains(text, name+" "+verb) {
				t.Errorf("docs/operations.md does not explain %s %s", name, verb)
			}
		}
	}
}

var usageLine = regexp.MustCompile(`(?m)^  ([a-z]+(?: (?:show|kill|list|revoke))?)\b`)

// verbs reads the verbs a command has from its help: they stand at the head of
// lines indented by two.
func verbs(t *testing.T, bin string) (names []string) {
	t.Helper()
	out, err := exec.Command(bin, "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("%s --help: %v\n%s", bin, err, out)
	}
	for _, m := range usageLine.FindAllStringSubmatch(string(out), -1) {
		if m[1] != "help" && !slices.Contains(names, m[1]) {
			names = append(names, m[1])
		}
	}
	if len(names) < 3 {
		t.Errorf("%s --help names the verbs %q, want more", bin, names)
	}
	return names
}

// TestDependencies: each library that go.mod requires directly has a line in
// docs/architecture.md: why, and who imports it.
func TestDependencies(t *testing.T) {
	text := document(t, "docs/architecture.md")
	direct := regexp.MustCompile(`(?m)^(?:require )?\t?([a-z][^\s]*\.[a-z]+/[^\s]+) v[^\s]+$`)
	found := direct.FindAllStringSubmatch(document(t, "go.mod"), -1)
	if len(found) < 5 {
		t.Errorf("go.mod requires %d modules directly, want at least 5", len(found))
	}
	for _, m := range found {
		if !strings.Contains(text, "`"+m[1]+"`") {
			t.Errorf("docs/architecture.md has no line for %s: why, and who imports it", m[1])
		}
	}
	for room := range arrows {
		if !strings.Contains(text, strings.TrimPrefix(room, "internal/")) {
			t.Errorf("docs/architecture.md does not speak of %s", room)
		}
	}
}
