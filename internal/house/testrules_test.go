package house

import (
	"go/parser"
	"go/token"
	"testing"
)

// TestTestRules shows that the rules for tests bite.
func TestTestRules(t *testing.T) {
	tests := []struct {
		src           string
		sleeps, skips int
	}{
		{"func TestA(t *testing.T) { time.Sleep(1) }", 1, 0},
		{"func TestA(t *testing.T) { go func() { time.Sleep(1) }() }", 1, 0},
		{"func TestA(t *testing.T) { synctest.Test(t, func(t *testing.T) { time.Sleep(1) }) }", 0, 0},
		{"// pass runs in a bubble.\nfunc pass() { time.Sleep(1) }", 0, 0},
		{"// pass waits.\nfunc pass() { time.Sleep(1) }", 1, 0},
		{"func TestA(t *testing.T) { inBubble(t, func() { time.Sleep(1) }) }", 0, 0},
		{"func TestA(t *testing.T) { time.Sleep(1); inBubble(t, func() {}) }", 1, 0},
		{"func TestA(t *testing.T) { late := func() { time.Sleep(1) }; inBubble(t, late) }", 0, 0},
		{"func wait() { for time.Now().Before(end) { time.Sleep(1) } }", 0, 0},
		{"func wait() { for !ready() { time.Sleep(1) } }", 1, 0},
		{"func TestA(t *testing.T) { t.Skip() }", 0, 1},
		{"func TestA(t *testing.T) { if testing.Short() { t.Skipf(\"slow\") } }", 0, 1},
		{"func own(t *testing.T) { if errors.Is(err, unix.EPERM) { t.Skip(\"needs root\") } }", 0, 0},
		{"func TestA(t *testing.T) { if os.Geteuid() != 0 { t.Skip(\"needs root\") } }", 0, 0},
	}
	for _, tt := range tests {
		f, err := parser.ParseFile(token.NewFileSet(), "a_test.go", "package p\n"+tt.src, parser.ParseComments)
		if err != nil {
			t.Fatalf("%s: %v", tt.src, err)
		}
		if got := len(sleeps(f)); got != tt.sleeps {
			t.Errorf("sleeps(%s) = %d, want %d", tt.src, got, tt.sleeps)
		}
		if got := len(skips(f)); got != tt.skips {
			t.Errorf("skips(%s) = %d, want %d", tt.src, got, tt.skips)
		}
	}
}
