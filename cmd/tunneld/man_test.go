package main

import (
	"bufio"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"tunneld/internal/config"
)

// The manual page, the usage texts and the commands say the same.
func TestManualPage(t *testing.T) {
	b, err := os.ReadFile("../../packaging/man/tunneld.8")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	root := newRoot(&cli{out: bufio.NewWriter(io.Discard), stderr: io.Discard})
	for _, cmd := range append(root.Commands(), root) {
		checkManual(t, page, cmd)
		if !strings.Contains(rootUsage, cmd.Name()) {
			t.Errorf("the usage text has no verb %s", cmd.Name())
		}
	}
}

func checkManual(t *testing.T, page string, cmd *cobra.Command) {
	if cmd.HasParent() && !strings.Contains(page, "\n.It Cm "+cmd.Name()) {
		t.Errorf("the page has no verb %s", cmd.Name())
	}
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if !strings.Contains(page, "Fl -"+f.Name) {
			t.Errorf("the page has no --%s of %s", f.Name, cmd.Name())
		}
		if !strings.Contains(cmd.Long, "--"+f.Name) {
			t.Errorf("the usage text of %s has no --%s", cmd.Name(), f.Name)
		}
	})
}

// The manual page of the configuration has the keys that there are, each in
// its section, and no others.
func TestConfigManualPage(t *testing.T) {
	b, err := os.ReadFile("../../packaging/man/tunneld.toml.5")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"[node]":           keysOf(config.Node{}),
		"[gateway]":        keysOf(config.Gateway{}),
		"[[network]]":      keysOf(config.Network{}),
		"[network.timers]": keysOf(config.Timers{}),
		"[[tunnel]]":       keysOf(config.Tunnel{}),
		"[data]":           keysOf(config.Data{}),
	}
	sections := strings.Split(string(b), "\n.Ss ")[1:]
	if len(sections) != len(want) {
		t.Errorf("the page has %d sections, want %d", len(sections), len(want))
	}
	for _, section := range sections {
		name, text, _ := strings.Cut(section, "\n")
		text, _, _ = strings.Cut(text, "\n.Sh ")
		var got []string
		for _, m := range regexp.MustCompile(`(?m)^\.It Ic (\w+)$`).FindAllStringSubmatch(text, -1) {
			got = append(got, m[1])
		}
		if !slices.Equal(got, want[name]) {
			t.Errorf("keys of %s in the page = %q, want %q", name, got, want[name])
		}
	}
}

// keysOf are the keys of a section, in the order of its struct; tables that
// are sections of their own are left out.
func keysOf(section any) (keys []string) {
	typ := reflect.TypeOf(section)
	for i := range typ.NumField() {
		f := typ.Field(i)
		if !f.IsExported() || f.Type.Kind() == reflect.Struct {
			continue
		}
		if f.Name == strings.ToUpper(f.Name) { // MTU
			keys = append(keys, strings.ToLower(f.Name))
			continue
		}
		words := regexp.MustCompile(`[A-Z][a-z]*`).FindAllString(f.Name, -1)
		keys = append(keys, strings.ToLower(strings.Join(words, "_")))
	}
	return keys
}

// The example in the page is one that tunneld accepts.
func TestConfigManualExamples(t *testing.T) {
	b, err := os.ReadFile("../../packaging/man/tunneld.toml.5")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile(`(?s)\.Bd -literal -offset indent\n(.*?)\n\.Ed`).FindAllStringSubmatch(string(b), -1)
	if len(examples) != 2 {
		t.Fatalf("the page has %d examples, want 2", len(examples))
	}
	for _, example := range examples {
		if _, err := config.Parse("example", []byte(example[1]+"\n")); err != nil {
			t.Errorf("example\n%s\nis refused: %v", example[1], err)
		}
	}
}
