package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// A Problem is one thing that is wrong with a file.
type Problem struct {
	File      string // empty for a Config made by hand
	Line, Col int    // from 1; 0 where the file has no place for it
	Key       string // network[1].pools[2]; empty for the file as a whole
	Text      string // what is wrong with the value, and the way out
}

// Error is FILE:LINE:COL: KEY: TEXT.
func (p *Problem) Error() string {
	place := p.File
	if p.Line > 0 {
		place += fmt.Sprintf(":%d:%d", p.Line, p.Col)
	}
	var parts []string
	for _, part := range []string{place, p.Key, p.Text} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, ": ")
}

// position is a place in the file; columns count octets, as go-toml's do.
type position struct{ line, col int }

// A decoder turns a file into a Config. go-toml checks the grammar and gives
// the values; a second pass with its parser gives the place of each, which the
// values have lost; the keys and types are checked here, because go-toml would
// stop at the first and name our Go types.
type decoder struct {
	file     string
	places   map[string]position // by path; an item of a list by its own
	reported map[string]bool     // paths
	problems []*Problem
}

func newDecoder(name string, b []byte) (*decoder, *table, error) {
	d := &decoder{file: name, places: map[string]position{}}
	values := map[string]any{}
	if err := toml.Unmarshal(b, &values); err != nil {
		p := &Problem{File: name, Text: "this is not TOML: " + strings.TrimPrefix(err.Error(), "toml: ")}
		if at, ok := errors.AsType[*toml.DecodeError](err); ok {
			p.Line, p.Col = at.Position()
			p.Key = strings.Join(at.Key(), ".")
		}
		return nil, nil, p
	}
	if err := d.locate(b); err != nil {
		return nil, nil, &Problem{File: name, Text: "this is not TOML: " + err.Error()}
	}
	return d, &table{d: d, values: values}, nil
}

// locate notes where every key, table and list item stands.
func (d *decoder) locate(b []byte) error {
	var p unstable.Parser
	p.Reset(b)
	w := &walker{p: &p, places: d.places, counts: map[string]int{}}
	for p.NextExpression() {
		switch n := p.Expression(); n.Kind {
		case unstable.Table:
			w.prefix = w.key("", n.Key())
		case unstable.ArrayTable:
			path := w.key("", n.Key())
			w.counts[path]++
			w.prefix = item(path, w.counts[path])
			w.note(w.prefix, w.last)
		case unstable.KeyValue:
			w.pair(w.prefix, n)
		}
	}
	return p.Error()
}

type walker struct {
	p      *unstable.Parser
	places map[string]position
	counts map[string]int // tables so far of each [[array]]
	prefix string         // of the table that keys belong to
	last   *unstable.Node // part of the latest key
}

// key appends a dotted key to a path, noting the place of each part. A part
// that is an array of tables means its latest.
func (w *walker) key(path string, parts unstable.Iterator) string {
	for parts.Next() {
		if n := w.counts[path]; n > 0 {
			path = item(path, n)
		}
		path = join(path, string(parts.Node().Data))
		w.last = parts.Node()
		w.note(path, w.last)
	}
	return path
}

// note notes a place; the first of a path counts.
func (w *walker) note(path string, n *unstable.Node) {
	if _, noted := w.places[path]; !noted && n.Raw.Length > 0 {
		start := w.p.Shape(n.Raw).Start
		w.places[path] = position{start.Line, start.Column}
	}
}

func (w *walker) pair(prefix string, n *unstable.Node) {
	w.value(w.key(prefix, n.Key()), n.Value())
}

func (w *walker) value(path string, n *unstable.Node) {
	switch n.Kind {
	case unstable.InlineTable:
		for it := n.Children(); it.Next(); {
			w.pair(path, it.Node())
		}
	case unstable.Array:
		i := 0
		for it := n.Children(); it.Next(); {
			if it.Node().Kind == unstable.Comment {
				continue
			}
			i++
			w.note(item(path, i), it.Node())
			w.value(item(path, i), it.Node())
		}
	}
}

func item(path string, n int) string { return fmt.Sprintf("%s[%d]", path, n) }

func join(path, key string) string {
	if !bare(key) {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// bare reports whether TOML needs no quotes around key.
func bare(key string) bool {
	return key != "" && !strings.ContainsFunc(key, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-')
	})
}

// problem notes what is wrong with path. The first about a path counts: what is
// found later about a value that could not be read, or inside it, follows from
// that.
func (d *decoder) problem(path, format string, args ...any) {
	for up := path; up != ""; up = parent(up) {
		if d.reported[up] {
			return
		}
	}
	if d.reported == nil {
		d.reported = map[string]bool{}
	}
	d.reported[path] = true
	at := d.place(path)
	d.problems = append(d.problems, &Problem{File: d.file, Line: at.line, Col: at.col, Key: path, Text: fmt.Sprintf(format, args...)})
}

// place is where path stands, or else what holds it.
func (d *decoder) place(path string) position {
	for ; path != ""; path = parent(path) {
		if at, ok := d.places[path]; ok {
			return at
		}
	}
	return position{}
}

// parent is what holds path.
func parent(path string) string { return path[:max(0, strings.LastIndexAny(path, ".["))] }

// err joins the problems in the order of the file, those without a place last.
func (d *decoder) err() error {
	slices.SortStableFunc(d.problems, func(a, b *Problem) int {
		if (a.Line == 0) != (b.Line == 0) {
			return cmp.Compare(b.Line, a.Line)
		}
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
	var errs []error
	for _, p := range d.problems {
		errs = append(errs, p)
	}
	return errors.Join(errs...)
}

// A table is one table of the file while it is read. Each method reads one key
// if it is there, else leaves the default; end complains of keys nobody read.
type table struct {
	d      *decoder
	path   string
	values map[string]any
	known  []string
}

func (t *table) get(key string) (value any, path string, ok bool) {
	t.known = append(t.known, key)
	value, ok = t.values[key]
	return value, join(t.path, key), ok
}

func (t *table) text(key string, to *string) {
	if v, path, ok := t.get(key); ok {
		if *to, ok = v.(string); !ok {
			t.d.wrong(path, v, "text in quotes")
		}
	}
}

func (t *table) boolean(key string, to *bool) {
	if v, path, ok := t.get(key); ok {
		if *to, ok = v.(bool); !ok {
			t.d.wrong(path, v, "true or false, without quotes")
		}
	}
}

func (t *table) integer(key string, to *int) {
	if v, path, ok := t.get(key); ok {
		n, ok := v.(int64)
		if *to = int(n); !ok {
			t.d.wrong(path, v, "a whole number, without quotes")
		}
	}
}

func (t *table) duration(key string, to *time.Duration) {
	v, path, ok := t.get(key)
	if !ok {
		return
	}
	text, ok := v.(string)
	if !ok {
		t.d.wrong(path, v, `a number and a unit in quotes, as in "20s", "15m" or "24h"`)
		return
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.d.problem(path, `%q is no duration: write a number and a unit, as in "20s", "15m" or "24h"`, text)
		return
	}
	*to = d
}

// list calls each for every item, with "" for one that is no text, and reports
// whether the key is there.
func (t *table) list(key, want string, each func(path, text string)) (there bool) {
	v, path, ok := t.get(key)
	if !ok {
		return false
	}
	items, ok := v.([]any)
	if !ok {
		t.d.wrong(path, v, want)
		return true
	}
	for i, v := range items {
		if text, ok := v.(string); ok {
			each(item(path, i+1), text)
		} else {
			t.d.wrong(item(path, i+1), v, "text in quotes")
			each(item(path, i+1), "") // keeps its number
		}
	}
	return true
}

func (t *table) texts(key string, to *[]string) {
	t.list(key, `a list, as in ["one", "two"]`, func(_, text string) { *to = append(*to, text) })
}

func (t *table) prefixes(key string, to *[]netip.Prefix) {
	there := t.list(key, `a list of prefixes, as in ["10.0.0.0/16", "fd77::/64"]`, func(path, text string) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			t.d.problem(path, "%q is no prefix: %s", text, prefixHint(text))
		}
		*to = append(*to, p) // a zero prefix keeps the numbers of the others
	})
	if there && *to == nil {
		*to = []netip.Prefix{} // an empty list was asked for
	}
}

func prefixHint(text string) string {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		usual := 64
		if a.Is4() {
			usual = 24
		}
		p, _ := a.Prefix(usual) // an address has that many bits
		return fmt.Sprintf("write its length too, as in \"%v\"", p)
	}
	return `write an address and a length, as in "10.0.0.0/16" or "fd77::/64"`
}

// table returns a table inside this one, nil if it is not there.
func (t *table) table(key string) *table {
	v, path, ok := t.get(key)
	if !ok {
		return nil
	}
	values, ok := v.(map[string]any)
	if _, many := v.([]any); many {
		t.d.problem(path, "there can be one only: write [%s]", path)
		return nil
	} else if !ok {
		t.d.wrong(path, v, "a section")
		return nil
	}
	return &table{d: t.d, path: path, values: values}
}

// tables returns the tables of an array.
func (t *table) tables(key string) (out []*table) {
	v, path, ok := t.get(key)
	if !ok {
		return nil
	}
	if _, one := v.(map[string]any); one {
		t.d.problem(path, "there can be several, so its heading has two brackets on each side: write [[%s]]", path)
		return nil
	}
	items, ok := v.([]any)
	if !ok {
		t.d.wrong(path, v, "a section with the heading [["+path+"]]")
	}
	for i, v := range items {
		if values, ok := v.(map[string]any); ok {
			out = append(out, &table{d: t.d, path: item(path, i+1), values: values})
		} else {
			t.d.wrong(item(path, i+1), v, "a section with the heading [["+path+"]]")
			out = append(out, &table{d: t.d, path: item(path, i+1)})
		}
	}
	return out
}

// end reports the keys that nobody asked for.
func (t *table) end() {
	for _, key := range slices.Sorted(maps.Keys(t.values)) {
		if slices.Contains(t.known, key) {
			continue
		}
		text := "unknown key"
		if near := nearest(key, t.known); near != "" {
			text += fmt.Sprintf(": did you mean %q?", near)
		} else if section, ok := home(key); ok {
			text += ": it belongs in " + section
		} else {
			text += fmt.Sprintf(": known here are %s", strings.Join(t.known, ", "))
		}
		t.d.problem(join(t.path, key), "%s", text)
	}
}

// wrong reports a value of another type than the key has.
func (d *decoder) wrong(path string, v any, want string) {
	d.problem(path, "%s: write %s", describe(v), want)
}

// describe names a value and its type in the file's words.
func describe(v any) string {
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("%q is text", v)
	case int64, float64:
		return fmt.Sprintf("%v is a number", v)
	case bool:
		return fmt.Sprintf("%v is no text, number or list", v)
	case []any:
		return "this is a list"
	case map[string]any:
		return "this is a section"
	}
	return "this is a date or time"
}
