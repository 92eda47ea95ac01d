package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// module is the module's path, as go.mod says.
const module = "tunneld"

// root is the directory of go.mod: tests run in their package's directory.
var root = func() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}()

// A pkg is what `go list -json` says of a package.
type pkg struct {
	Dir          string
	ImportPath   string
	Name         string
	Doc          string
	Export       string // file with export data
	Standard     bool
	GoFiles      []string
	CgoFiles     []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	Module       *struct{ Path string }
}

// room is the package's path in the tree: "internal/control/wire".
func (p pkg) room() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

// list runs `go list -json` with args.
func list(args ...string) ([]pkg, error) {
	cmd := exec.Command("go", append([]string{"list", "-json"}, args...)...)
	cmd.Dir = root
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.New(strings.Join(cmd.Args, " ") + ": " + errs.String())
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			return pkgs, nil
		} else if err != nil {
			return nil, err
		}
		pkgs = append(pkgs, p)
	}
}

var listTree = sync.OnceValues(func() ([]pkg, error) { return list("-e", "./...") })

// tree lists the packages of the module.
func tree(t *testing.T) []pkg {
	t.Helper()
	pkgs, err := listTree()
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) < 10 {
		t.Fatalf("go list ./... = %d packages, want the whole tree", len(pkgs))
	}
	return pkgs
}

// parse reads the named files of p, with comments.
func parse(t *testing.T, fset *token.FileSet, p pkg, names []string) []*ast.File {
	t.Helper()
	var files []*ast.File
	for _, name := range names {
		f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

// at names a place in the tree, relative to its root.
func at(fset *token.FileSet, pos token.Pos) string {
	p := fset.Position(pos)
	if rel, err := filepath.Rel(root, p.Filename); err == nil {
		p.Filename = rel
	}
	p.Column = 0
	return p.String()
}

// texts calls fn for every file of the tree that people write.
func texts(t *testing.T, fn func(path string, content []byte)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() {
			if rel == ".git" || rel == "bin" || rel == "dist" {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil // an editor's
		}
		if err == nil {
			fn(filepath.ToSlash(rel), b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
