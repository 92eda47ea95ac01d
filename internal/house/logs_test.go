package house

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
)

// keyPackage declares every attribute key of the log, as constants Key….
const keyPackage = module + "/internal/event"

// logCalls are the functions of log/slog that take attributes.
var logCalls = map[string]logCall{
	"Debug": {0, 1}, "Info": {0, 1}, "Warn": {0, 1}, "Error": {0, 1},
	"DebugContext": {1, 2}, "InfoContext": {1, 2}, "WarnContext": {1, 2}, "ErrorContext": {1, 2},
	"Log": {2, 3}, "LogAttrs": {2, 3}, "With": {-1, 0}, "Group": {-1, 0},
}

// attrMakers are functions of log/slog whose first argument is a key.
var attrMakers = map[string]bool{
	"String": true, "Int": true, "Int64": true, "Uint64": true, "Float64": true, "Bool": true,
	"Time": true, "Duration": true, "Any": true, "Group": true, "GroupAttrs": true,
}

// message is what a log message looks like: lower case, no punctuation at its
// end, nothing that varies in it.
var message = regexp.MustCompile(`^[a-z][A-Za-z0-9 ',/-]*[A-Za-z0-9]$`)

// A logCall says at which argument of a call the message stands (-1: none) and
// at which the attributes begin.
type logCall struct{ message, attrs int }

// A logChecker looks at the calls to log/slog in one package.
type logChecker struct {
	fset     *token.FileSet
	info     *types.Info
	wrappers map[types.Object]logCall // our functions that pass message and attributes on
	wrong    []string
}

// checkLogs returns what is wrong with the log calls of a package.
func checkLogs(fset *token.FileSet, info *types.Info, files []*ast.File) []string {
	c := &logChecker{fset: fset, info: info, wrappers: map[types.Object]logCall{}}
	for _, f := range files {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				c.findWrapper(fn)
			}
		}
	}
	for _, f := range files {
		for _, d := range f.Decls {
			fn, _ := d.(*ast.FuncDecl)
			ast.Inspect(d, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					c.check(call, fn)
				}
				return true
			})
		}
	}
	return c.wrong
}

func (c *logChecker) complain(n ast.Node, format string, args ...any) {
	c.wrong = append(c.wrong, at(c.fset, n.Pos())+": "+fmt.Sprintf(format, args...))
}

// findWrapper notes fn if it hands its own variadic parameter to log/slog: then
// its callers are looked at instead.
func (c *logChecker) findWrapper(fn *ast.FuncDecl) {
	ast.Inspect(fn, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if ok && slogFunc(c.info, call) != nil && c.passesOn(call, fn) {
			params := c.info.Defs[fn.Name].(*types.Func).Signature().Params()
			spec := logCall{message: -1, attrs: params.Len() - 1}
			for i := range spec.attrs {
				if b, ok := params.At(i).Type().(*types.Basic); ok && b.Kind() == types.String {
					spec.message = i
				}
			}
			c.wrappers[c.info.Defs[fn.Name]] = spec
		}
		return true
	})
}

// passesOn reports whether the call's last argument is fn's variadic parameter.
func (c *logChecker) passesOn(call *ast.CallExpr, fn *ast.FuncDecl) bool {
	if !call.Ellipsis.IsValid() || fn == nil || fn.Type.Params.NumFields() == 0 {
		return false
	}
	last := fn.Type.Params.List[len(fn.Type.Params.List)-1]
	_, variadic := last.Type.(*ast.Ellipsis)
	id, ok := call.Args[len(call.Args)-1].(*ast.Ident)
	return ok && variadic && len(last.Names) == 1 && c.info.Uses[id] == c.info.Defs[last.Names[0]]
}

// check looks at one call, within fn.
func (c *logChecker) check(call *ast.CallExpr, fn *ast.FuncDecl) {
	spec, ok := c.wrapper(call)
	if !ok {
		called := slogFunc(c.info, call)
		if called == nil || c.passesOn(call, fn) {
			return
		}
		if isPackageLevel(called) && attrMakers[called.Name()] {
			if !isKey(c.info, call.Args[0]) {
				c.complain(call, "slog.%s: the key is no constant of %s", called.Name(), keyPackage)
			}
			return
		}
		if spec, ok = logCalls[called.Name()]; !ok {
			return
		}
	}
	if spec.message >= 0 {
		c.checkMessage(call.Args[spec.message])
	}
	c.checkAttrs(call, spec.attrs)
}

// wrapper finds the wrapper that is called.
func (c *logChecker) wrapper(call *ast.CallExpr) (logCall, bool) {
	var id *ast.Ident
	switch f := ast.Unparen(call.Fun).(type) {
	case *ast.Ident:
		id = f
	case *ast.SelectorExpr:
		id = f.Sel
	default:
		return logCall{}, false
	}
	spec, ok := c.wrappers[c.info.Uses[id]]
	return spec, ok
}

func (c *logChecker) checkMessage(arg ast.Expr) {
	m := c.info.Types[arg].Value
	if m == nil && c.isEventName(arg) {
		return
	}
	if m == nil {
		c.complain(arg, "the message varies: it is a constant or the name of an event, what varies is an attribute")
	} else if text := constant.StringVal(m); !message.MatchString(text) {
		c.complain(arg, "message %q: want lower case and no final punctuation", text)
	}
}

// isEventName reports whether arg is string(k) of an event.Kind, all of which
// are constants.
func (c *logChecker) isEventName(arg ast.Expr) bool {
	call, ok := arg.(*ast.CallExpr)
	return ok && len(call.Args) == 1 && c.info.Types[call.Fun].IsType() && isNamed(c.info.TypeOf(call.Args[0]), keyPackage, "Kind")
}

func (c *logChecker) checkAttrs(call *ast.CallExpr, first int) {
	if call.Ellipsis.IsValid() {
		c.complain(call, "attributes in a slice cannot be checked: write them out")
		return
	}
	for i := first; i < len(call.Args); i++ {
		arg := call.Args[i]
		if isNamed(c.info.TypeOf(arg), "log/slog", "Attr") {
			continue // checked where it is made
		}
		if !isKey(c.info, arg) {
			c.complain(arg, "attribute key %s is no constant of %s", types.ExprString(arg), keyPackage)
		}
		i++ // its value
	}
}

// slogFunc returns the function or method of log/slog that call calls.
func slogFunc(info *types.Info, call *ast.CallExpr) *types.Func {
	sel, ok := ast.Unparen(call.Fun).(*ast.SelectorExpr)
	if !ok {
		return nil
	}
	fn, ok := info.Uses[sel.Sel].(*types.Func)
	if !ok || fn.Pkg() == nil || fn.Pkg().Path() != "log/slog" {
		return nil
	}
	return fn
}

func isPackageLevel(fn *types.Func) bool { return fn.Signature().Recv() == nil }

func isNamed(t types.Type, pkg, name string) bool {
	n, ok := types.Unalias(t).(*types.Named)
	return ok && n.Obj().Pkg() != nil && n.Obj().Pkg().Path() == pkg && n.Obj().Name() == name
}

// isKey reports whether e is one of the constants that event declares.
func isKey(info *types.Info, e ast.Expr) bool {
	var id *ast.Ident
	switch e := ast.Unparen(e).(type) {
	case *ast.Ident:
		id = e
	case *ast.SelectorExpr:
		id = e.Sel
	default:
		return false
	}
	c, ok := info.Uses[id].(*types.Const)
	return ok && c.Pkg() != nil && c.Pkg().Path() == keyPackage && strings.HasPrefix(c.Name(), "Key")
}

// exports returns an importer that reads the export data of packages and of all
// they depend on, as the build left it.
func exports(t *testing.T, fset *token.FileSet, packages ...string) types.Importer {
	t.Helper()
	deps, err := list(append([]string{"-deps", "-export"}, packages...)...)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, p := range deps {
		files[p.ImportPath] = p.Export
	}
	return importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		if files[path] == "" {
			return nil, fmt.Errorf("no export data of %q", path)
		}
		return os.Open(files[path])
	})
}

// typed checks the types of files as those of the package path.
func typed(t *testing.T, fset *token.FileSet, imp types.Importer, path string, files []*ast.File) *types.Info {
	t.Helper()
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}
	if _, err := (&types.Config{Importer: imp}).Check(path, fset, files, info); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return info
}

func TestLogVocabulary(t *testing.T) {
	fset := token.NewFileSet()
	imp := exports(t, fset, "./...")
	for _, p := range tree(t) {
		files := parse(t, fset, p, p.GoFiles)
		info := typed(t, fset, imp, p.ImportPath, files)
		for _, w := range checkLogs(fset, info, files) {
			t.Error(w)
		}
	}
}
