package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

// TestLogRule shows that the rule for log calls bites.
func TestLogRule(t *testing.T) {
	tests := []struct{ call, want string }{
		{`l.Info("session established", event.KeySession, 1)`, ""},
		{`l.Info("session established", "session", 1)`, `attribute key "session"`},
		{`l.Info("session established", event.KeySession, 1, own, 2)`, "attribute key own"},
		{`l.Info("session "+s)`, "the message varies"},
		{`l.Info(string(kind))`, ""},
		{`l.Info("Session established")`, "want lower case"},
		{`l.Info("session established.")`, "no final punctuation"},
		{`l.With(event.KeyNode, s).Warn("peer is silent")`, ""},
		{`l.With("node", s).Warn("peer is silent")`, `attribute key "node"`},
		{`l.InfoContext(nil, "peer is silent", slog.String(event.KeyNode, s))`, ""},
		{`l.InfoContext(nil, "peer is silent", slog.String("n", s))`, "the key is no constant"},
		{`l.Log(nil, slog.LevelInfo, "peer is silent", "n", s)`, `attribute key "n"`},
		{`l.Info("peer is silent", any...)`, "cannot be checked"},
		{`warn(l, "peer is silent", event.KeyNode, s)`, ""},
		{`warn(l, "peer is silent", "n", s)`, `attribute key "n"`},
		{`warn(l, s)`, "the message varies"},
		{`slog.Info("peer is silent", "n", s)`, `attribute key "n"`},
	}
	fset := token.NewFileSet()
	imp := exports(t, fset, "log/slog", keyPackage)
	for _, tt := range tests {
		src := "package p\nimport (\"log/slog\"; \"tunneld/internal/event\")\nconst own = \"own\"\n" +
			"var _ = event.KeyNode\nfunc warn(l *slog.Logger, msg string, args ...any) { l.Warn(msg, args...) }\n" +
			"func f(l *slog.Logger, s string, kind event.Kind, any []any) { " + tt.call + " }\n"
		file, err := parser.ParseFile(fset, "p.go", src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatalf("%s: %v", tt.call, err)
		}
		info := typed(t, fset, imp, "p", []*ast.File{file})
		got := strings.Join(checkLogs(fset, info, []*ast.File{file}), "; ")
		if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
			t.Errorf("checkLogs(%s) = %q, want %q", tt.call, got, tt.want)
		}
	}
}
