package house

import (
	"bytes"
	"go/format"
	"path"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestFormat(t *testing.T) {
	texts(t, func(name string, content []byte) {
		if path.Ext(name) != ".go" {
			return
		}
		if want, err := format.Source(content); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !bytes.Equal(content, want) {
			t.Errorf("%s is not formatted: gofmt -w %s", name, name)
		}
	})
}

// unwanted is what stands in no file: paths of somebody's machine, notes about
// work that is not done, references to what a reader of the tree cannot see.
var unwanted = []struct {
	what *regexp.Regexp
	why  string
}{
	{regexp.MustCompile(`(^|[\s"'=(:` + "`" + `])/(home/[a-z]+|Users|work)/`), "a path of somebody's machine"},
	{regexp.MustCompile(`/root/(go|\.cache)`), "a path of somebody's machine"},
	{regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b`), "work that is not done: do it, or leave it out"},
	{regexp.MustCompile(`(?i)\bnot (yet )?implemented\b`), "what does not exist is not mentioned"},
	{regexp.MustCompile(`(?i)\bsee issue \d+|\bissues? #\d+\b`), "an issue that a reader of the tree cannot see"},
}

// wordsOf returns what is unwanted in a line.
func wordsOf(line string) string {
	for _, u := range unwanted {
		if m := u.what.FindString(line); m != "" {
			return strings.TrimSpace(m) + ": " + u.why
		}
	}
	return ""
}

func TestWords(t *testing.T) {
	texts(t, func(name string, content []byte) {
		if !utf8.Valid(content) || strings.HasPrefix(name, "internal/house/text") || strings.Contains(name, "/testdata/fuzz/") {
			return
		}
		for i, line := range strings.Split(string(content), "\n") {
			if w := wordsOf(line); w != "" {
				t.Errorf("%s:%d: %s", name, i+1, w)
			}
		}
	})
}

func TestWordsRule(t *testing.T) {
	tests := []struct {
		line string
		ok   bool
	}{
		{"state lies in /var/lib/tunneld", true},
		{"the same session goes on: /etc/tunneld/tunneld.toml", true},
		{`cd "/Users/alice/tunneld"`, false},
		{"see /home/alice/tunneld", false},
		{"// TODO: later", false},
		{"return errors.New(\"not implemented\")", false},
		{"hashicorp/yamux issue #149", false},
		{"golang.org/issue/75804", true},
	}
	for _, tt := range tests {
		if got := wordsOf(tt.line); (got == "") != tt.ok {
			t.Errorf("wordsOf(%q) = %q, want allowed = %v", tt.line, got, tt.ok)
		}
	}
}
