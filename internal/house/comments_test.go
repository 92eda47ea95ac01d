package house

import (
	"go/ast"
	"go/token"
	"strings"
	"testing"
)

// obvious are methods whose contract is that of the interface they are for.
var obvious = map[string]bool{
	"Error": true, "Unwrap": true, "Is": true, "String": true, "Format": true, "LogValue": true, "MarshalText": true,
	"UnmarshalText": true, "MarshalJSON": true, "UnmarshalJSON": true, "Len": true, "Less": true, "Swap": true, "Type": true,
}

func TestPackageComments(t *testing.T) {
	for _, p := range tree(t) {
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command " + p.ImportPath[strings.LastIndexByte(p.ImportPath, '/')+1:] + " "
		}
		// go list gives the first sentence only, which is what we look at.
		if !strings.HasPrefix(p.Doc, want) {
			t.Errorf("%s: package comment begins %q, want %q", p.room(), p.Doc, want)
		}
	}
}

func TestExportedNamesHaveComments(t *testing.T) {
	fset := token.NewFileSet()
	for _, p := range tree(t) {
		if p.Name == "main" {
			continue
		}
		for _, f := range parse(t, fset, p, p.GoFiles) {
			for _, d := range f.Decls {
				for _, id := range bare(d) {
					t.Errorf("%s: exported %s has no comment", at(fset, id.Pos()), id.Name)
				}
			}
		}
	}
}

// bare returns the exported names that d declares without a comment. A comment
// over a group of constants or variables counts for all of them.
func bare(d ast.Decl) (names []*ast.Ident) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && !obvious[d.Name.Name] && exportedReceiver(d) {
			names = append(names, d.Name)
		}
	case *ast.GenDecl:
		if d.Doc != nil {
			return nil
		}
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && s.Doc == nil {
					names = append(names, s.Name)
				}
			case *ast.ValueSpec:
				for _, id := range s.Names {
					if id.IsExported() && s.Doc == nil && s.Comment == nil {
						names = append(names, id)
					}
				}
			}
		}
	}
	return names
}

// exportedReceiver reports whether d is a function, or a method of a type that
// others can name.
func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}
