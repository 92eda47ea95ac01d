package house

import (
	"go/ast"
	"go/token"
	"regexp"
	"slices"
	"testing"
)

// A reader is a function that reads octets somebody else wrote, with the fuzz
// target, in a test of the same room, that feeds it.
type reader struct {
	room, function, target string
}

// readers are the parsers that a peer, an invited stranger or a local user can
// reach. TestParsersAreFuzzed finds those that are missing here.
var readers = []reader{
	{"internal/api", "decode", "FuzzRequest"},
	{"internal/api", "parseQuery", "FuzzRequest"},
	{"internal/auth", "Enrol", "FuzzEnrolReply"},
	{"internal/auth", "InviteID.UnmarshalText", "FuzzServeEnrol"},
	{"internal/auth", "ParseCode", "FuzzParseCode"},
	{"internal/auth", "Registry.ServeEnrol", "FuzzServeEnrol"},
	{"internal/auth", "Tickets.Open", "FuzzTicket"},
	{"internal/auth", "checkCSR", "FuzzCheckCSR"},
	{"internal/auth", "parseCodeBody", "FuzzParseCodeBody"},
	{"internal/auth", "parseSubject", "FuzzParseSubject"},
	{"internal/config", "Parse", "FuzzParse"},
	{"internal/control", "DecodeRecord", "FuzzRecord"},
	{"internal/control", "Machine.Step", "FuzzMachine"},
	{"internal/control/carrier", "frames.scan", "FuzzFrames"},
	{"internal/control/wire", "Parse", "FuzzParse"},
	{"internal/control/wire", "ReadPacket", "FuzzReadPacket"},
	{"internal/control/wire", "Splitter.Feed", "FuzzTrace"},
	{"internal/control/wire", "blank", "FuzzTrace"},
	{"internal/netlab", "parse", "FuzzParse"},
	{"internal/tunnel/engine/native", "coalescer.add", "FuzzJoin"},
	{"internal/tunnel/engine/native", "cutter.load", "FuzzCut"},
	{"internal/tunnel/engine/native", "inbound.message", "FuzzDatagram"},
	{"internal/tunnel/engine/noise", "Classify", "FuzzClassify"},
	{"internal/tunnel/engine/noise", "Handshake.ConsumeResponse", "FuzzConsumeResponse"},
	{"internal/tunnel/engine/noise", "Keypair.Open", "FuzzOpen"},
	{"internal/tunnel/engine/noise", "Peer.ConsumeCookieReply", "FuzzConsumeCookieReply"},
	{"internal/tunnel/engine/noise", "StaticKey.ConsumeInitiation", "FuzzConsumeInitiation"},
	{"internal/tunnel/engine/reference", "hub.sort", "FuzzSort"},
	{"internal/tunnel/engine/reference", "tally.find", "FuzzTally"},
	{"internal/tunnel/engine/udp", "ParseControl", "FuzzParseControl"},
}

// notReached are functions whose name looks like a parser's although nobody
// but ourselves feeds them, with the reason.
var notReached = map[string]string{
	"internal/auth UnmarshalAuthority":         "reads the journal, which is sealed",
	"internal/auth parseIdentity":              "reads the journal, which is sealed",
	"internal/auth parseKey":                   "reads the journal, which is sealed",
	"internal/control readID":                  "reads random numbers",
	"internal/control publicKey.UnmarshalJSON": "reads the journal, which is sealed",
}

// readerName is what functions are called that turn octets or text into
// something.
var readerName = regexp.MustCompile(`^(?i:parse|decode|read|unmarshal)`)

// strangers are the rooms that what others wrote comes into.
var strangers = []string{"internal/api", "internal/auth", "internal/control", "internal/control/carrier", "internal/control/wire"}

// fuzzOf returns the fuzz targets of a package.
func fuzzOf(t *testing.T, fset *token.FileSet, p pkg) (names []string) {
	t.Helper()
	for _, f := range parse(t, fset, p, append(append([]string(nil), p.TestGoFiles...), p.XTestGoFiles...)) {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fuzzName.MatchString(fn.Name.Name) {
				names = append(names, fn.Name.Name)
			}
		}
	}
	return names
}

var fuzzName = regexp.MustCompile(`^Fuzz[A-Z]`)

// functions returns the functions and methods of a package: Name or Type.Name.
func functions(t *testing.T, fset *token.FileSet, p pkg) map[string]*ast.FuncDecl {
	t.Helper()
	found := map[string]*ast.FuncDecl{}
	for _, f := range parse(t, fset, p, p.GoFiles) {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				found[funcName(fn)] = fn
			}
		}
	}
	return found
}

func funcName(fn *ast.FuncDecl) string {
	if fn.Recv == nil {
		return fn.Name.Name
	}
	t := fn.Recv.List[0].Type
	if star, ok := t.(*ast.StarExpr); ok {
		t = star.X
	}
	if id, ok := t.(*ast.Ident); ok {
		return id.Name + "." + fn.Name.Name
	}
	return fn.Name.Name
}

// takesText reports whether fn has a parameter through which octets or text of
// others come in.
func takesText(fn *ast.FuncDecl) bool {
	for _, field := range fn.Type.Params.List {
		switch t := field.Type.(type) {
		case *ast.Ident:
			if t.Name == "string" {
				return true
			}
		case *ast.ArrayType:
			if id, ok := t.Elt.(*ast.Ident); ok && t.Len == nil && id.Name == "byte" {
				return true
			}
		case *ast.SelectorExpr:
			switch t.Sel.Name {
			case "Reader", "Conn", "EnrolConn":
				return true
			}
		case *ast.StarExpr:
			if sel, ok := t.X.(*ast.SelectorExpr); ok && sel.Sel.Name == "Request" {
				return true
			}
		}
	}
	return false
}

// TestReadersHaveTargets: what the table names exists.
func TestReadersHaveTargets(t *testing.T) {
	fset := token.NewFileSet()
	pkgs := map[string]pkg{}
	for _, p := range tree(t) {
		pkgs[p.room()] = p
	}
	for _, r := range readers {
		p, ok := pkgs[r.room]
		if !ok {
			t.Errorf("readers speak of %s, which is not in the tree", r.room)
			continue
		}
		if functions(t, fset, p)[r.function] == nil {
			t.Errorf("readers speak of %s in %s, which is not there", r.function, r.room)
		}
		if !slices.Contains(fuzzOf(t, fset, p), r.target) {
			t.Errorf("%s: %s is reached by a peer and has no fuzz target %s", r.room, r.function, r.target)
		}
	}
}

// TestParsersAreFuzzed: what looks like a parser, in a room that strangers
// reach, is in one of the two tables, or called by one that is fuzzed.
func TestParsersAreFuzzed(t *testing.T) {
	fset := token.NewFileSet()
	seen := map[string]bool{}
	for _, p := range tree(t) {
		if !slices.Contains(strangers, p.room()) {
			continue
		}
		all := functions(t, fset, p)
		fed := fedIn(t, fset, p, all)
		for name, fn := range all {
			key := p.room() + " " + name
			seen[key] = true
			if fed[fn.Name.Name] || notReached[key] != "" || !looksLikeReader(fn) {
				continue
			}
			t.Errorf("%s: %s looks like a parser: name its fuzz target in readers, or why it needs none in notReached", at(fset, fn.Pos()), key)
		}
	}
	for key := range notReached {
		if !seen[key] {
			t.Errorf("notReached speaks of %s, which is not in the tree", key)
		}
	}
}

// looksLikeReader goes by name and parameters. Read itself is io.Reader's.
func looksLikeReader(fn *ast.FuncDecl) bool {
	return readerName.MatchString(fn.Name.Name) && fn.Name.Name != "Read" && takesText(fn)
}

// fedIn returns the names that a fuzz target feeds in a room: functions of the
// table and whatever they name, directly or not, tables of functions included.
func fedIn(t *testing.T, fset *token.FileSet, p pkg, all map[string]*ast.FuncDecl) map[string]bool {
	t.Helper()
	declared := map[string][]ast.Node{}
	for _, fn := range all {
		declared[fn.Name.Name] = append(declared[fn.Name.Name], fn)
	}
	for _, f := range parse(t, fset, p, p.GoFiles) {
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
				for _, spec := range g.Specs {
					for _, id := range spec.(*ast.ValueSpec).Names {
						declared[id.Name] = append(declared[id.Name], spec)
					}
				}
			}
		}
	}
	fed := map[string]bool{}
	var feed func(name string)
	feed = func(name string) {
		if fed[name] || declared[name] == nil {
			return
		}
		fed[name] = true
		for _, n := range declared[name] {
			ast.Inspect(n, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok {
					feed(id.Name)
				}
				return true
			})
		}
	}
	for _, r := range readers {
		if fn := all[r.function]; r.room == p.room() && fn != nil {
			feed(fn.Name.Name)
		}
	}
	return fed
}

// TestTargetsAreNamed: a fuzz target that feeds nothing in the table is a
// parser forgotten, or a target that outlived its parser.
func TestTargetsAreNamed(t *testing.T) {
	fset := token.NewFileSet()
	for _, p := range tree(t) {
		for _, target := range fuzzOf(t, fset, p) {
			if !slices.ContainsFunc(readers, func(r reader) bool { return r.room == p.room() && r.target == target }) {
				t.Errorf("%s: %s feeds no function that readers names", p.room(), target)
			}
		}
	}
}
