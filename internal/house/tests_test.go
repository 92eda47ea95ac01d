package house

import (
	"go/ast"
	"go/token"
	"strings"
	"testing"
)

// TestHowTestsWait: outside a synctest bubble, where time is not real, a test
// does not sleep to let something happen: it waits for an event with a
// deadline. A helper that runs inside a bubble says so in its comment, one that
// enters a bubble in its name.
func TestHowTestsWait(t *testing.T) {
	eachTestFile(t, func(fset *token.FileSet, f *ast.File) {
		for _, pos := range sleeps(f) {
			t.Errorf("%s: time.Sleep outside a synctest bubble: wait for an event with a deadline", at(fset, pos))
		}
	})
}

// TestWhoMaySkip: as root everything is at hand, so only a test that looked
// whether it is root, or was told that it is not, may skip.
func TestWhoMaySkip(t *testing.T) {
	eachTestFile(t, func(fset *token.FileSet, f *ast.File) {
		for _, pos := range skips(f) {
			t.Errorf("%s: skips without asking os.Geteuid or for EPERM: as root nothing is skipped", at(fset, pos))
		}
	})
}

// eachTestFile calls fn for the test files of the tree and for what helps them
// (packages named …test).
func eachTestFile(t *testing.T, fn func(*token.FileSet, *ast.File)) {
	t.Helper()
	fset := token.NewFileSet()
	for _, p := range tree(t) {
		names := append(append([]string(nil), p.TestGoFiles...), p.XTestGoFiles...)
		if strings.HasSuffix(p.Name, "test") {
			names = append(names, p.GoFiles...)
		}
		for _, f := range parse(t, fset, p, names) {
			fn(fset, f)
		}
	}
}

// calls reports whether e is a call of pkg.name.
func calls(e ast.Node, pkg, name string) bool {
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != name {
		return false
	}
	id, ok := sel.X.(*ast.Ident)
	return ok && id.Name == pkg
}

// sleeps finds calls of time.Sleep that are in no bubble and in no loop that
// asks for an event until a deadline.
func sleeps(f *ast.File) (found []token.Pos) {
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || strings.Contains(fn.Doc.Text(), "bubble") {
			continue
		}
		entersBubble := has(fn, isBubble)
		ast.Inspect(fn, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncLit:
				return !entersBubble // it runs in there
			case *ast.CallExpr:
				if isBubble(n) {
					return false
				}
				if calls(n, "time", "Sleep") {
					found = append(found, n.Pos())
				}
			case *ast.ForStmt:
				return !has(n, looksAtClock)
			}
			return true
		})
	}
	return found
}

// isBubble reports whether n calls synctest.Test, or a helper with Bubble in
// its name.
func isBubble(n ast.Node) bool {
	if calls(n, "synctest", "Test") {
		return true
	}
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return false
	}
	id, ok := call.Fun.(*ast.Ident)
	return ok && strings.Contains(id.Name, "Bubble")
}

// looksAtClock reports whether n compares the time with a deadline.
func looksAtClock(n ast.Node) bool {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	return ok && (sel.Sel.Name == "Before" || sel.Sel.Name == "After" || sel.Sel.Name == "Since" || sel.Sel.Name == "Until") && len(call.Args) == 1
}

// has reports whether what is below n (or n itself) fulfils is.
func has(n ast.Node, is func(ast.Node) bool) (found bool) {
	ast.Inspect(n, func(m ast.Node) bool {
		found = found || m != nil && is(m)
		return !found
	})
	return found
}

// skips finds calls of Skip, Skipf and SkipNow in functions that never ask who
// they run as.
func skips(f *ast.File) (found []token.Pos) {
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || asksWho(fn) {
			continue
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
					switch sel.Sel.Name {
					case "Skip", "Skipf", "SkipNow":
						found = append(found, n.Pos())
					}
				}
			}
			return true
		})
	}
	return found
}

// asksWho reports whether fn asks who it runs as, or what was not permitted.
func asksWho(fn *ast.FuncDecl) bool {
	return has(fn, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && (sel.Sel.Name == "EPERM" || sel.Sel.Name == "EACCES" || sel.Sel.Name == "ErrPermission" || sel.Sel.Name == "ErrNotPermitted") {
			return true
		}
		return calls(n, "os", "Geteuid") || calls(n, "os", "Getuid")
	})
}
