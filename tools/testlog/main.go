// Command testlog reads what `go test -json` writes and prints it as `go test`
// would, one line a package and the whole output of what failed. At the end it
// names every test that was skipped, with the reason, and counts the rest.
//
//	go test -json ./... | testlog [-noskip]
//
// With -noskip a skipped test is a failure: where everything is at hand (as
// root, in CI) a test that does not run guards nothing.
//
// Exit status: 0 all passed, 1 something failed or was skipped under -noskip,
// 2 usage. The exit status of `go test` itself is for the shell (pipefail).
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// event is one line of `go test -json`, see `go doc test2json`.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// name identifies a test, or with an empty Test the package as a whole.
type name struct{ pkg, test string }

type skipped struct {
	name
	reason string
}

type report struct {
	out    io.Writer
	held   map[name]*strings.Builder // output of what has not ended yet
	order  map[string][]name         // of a package, in order of first output
	skips  []skipped
	passed int
	failed int
	okPkgs int
	badPkg int
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("testlog", flag.ContinueOnError)
	flags.SetOutput(stderr)
	noSkip := flags.Bool("noskip", false, "fail if a test was skipped")
	if flags.Parse(args) != nil || flags.NArg() > 0 {
		return 2
	}
	r := &report{out: stdout, held: map[name]*strings.Builder{}, order: map[string][]name{}}
	in := bufio.NewReader(stdin)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			r.line(line)
		}
		if err != nil {
			break
		}
	}
	return r.close(*noSkip)
}

// line takes one line. What is no JSON comes from the go command itself and is
// passed on.
func (r *report) line(line string) {
	var e event
	if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &e) != nil {
		fmt.Fprint(r.out, line)
		return
	}
	n := name{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		r.output(n, e.Output)
	case "pass", "skip", "fail":
		r.end(n, e.Action)
	}
}

// output holds back what a test says until its end is known; a package's own
// lines ("ok …", "FAIL …") are held as well so that they follow their tests.
func (r *report) output(n name, text string) {
	b, ok := r.held[n]
	if !ok {
		b = &strings.Builder{}
		r.held[n] = b
		r.order[n.pkg] = append(r.order[n.pkg], n)
	}
	b.WriteString(text)
}

func (r *report) end(n name, action string) {
	if n.test == "" {
		r.endPackage(n.pkg, action)
		return
	}
	switch action {
	case "pass":
		r.passed++
		delete(r.held, n)
	case "skip":
		r.skips = append(r.skips, skipped{n, reason(r.held[n])})
		delete(r.held, n)
	case "fail":
		r.failed++ // its output is kept for the end of the package
	}
}

// endPackage prints what is left of a package: after a failure the output of
// the tests that failed or never ended, then the package's verdict.
func (r *report) endPackage(pkg, action string) {
	for _, n := range r.order[pkg] {
		b, ok := r.held[n]
		if ok && n.test != "" && action == "fail" {
			fmt.Fprint(r.out, b.String())
			delete(r.held, n)
		}
	}
	if b, ok := r.held[name{pkg, ""}]; ok {
		fmt.Fprint(r.out, verdict(b.String(), action))
		delete(r.held, name{pkg, ""})
	}
	delete(r.order, pkg)
	if action == "fail" {
		r.badPkg++
	} else {
		r.okPkgs++
	}
}

// verdict is a package's own output; when all went well only its last line
// matters.
func verdict(text, action string) string {
	if action == "fail" {
		return text
	}
	lines := strings.SplitAfter(strings.TrimSuffix(text, "\n"), "\n")
	return lines[len(lines)-1] + "\n"
}

// reason is what a skipped test gave as its reason: its output without the
// lines the test runner frames it with.
func reason(b *strings.Builder) string {
	if b == nil {
		return "no reason given"
	}
	var why []string
	for line := range strings.Lines(b.String()) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			why = append(why, line)
		}
	}
	if len(why) == 0 {
		return "no reason given"
	}
	return strings.Join(why, " ")
}

func (r *report) close(noSkip bool) int {
	for _, s := range r.skips {
		fmt.Fprintf(r.out, "not run: %s %s: %s\n", s.pkg, s.test, s.reason)
	}
	fmt.Fprintf(r.out, "packages: %d ok, %d failed; tests: %d passed, %d failed, %d not run\n",
		r.okPkgs, r.badPkg, r.passed, r.failed, len(r.skips))
	switch {
	case r.failed > 0 || r.badPkg > 0:
		return 1
	case noSkip && len(r.skips) > 0:
		fmt.Fprintln(r.out, "FAIL: a test was not run, although everything it needs should be here")
		return 1
	}
	return 0
}
