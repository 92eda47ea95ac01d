package main

import (
	"bufio"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The manual page, the usage texts and the commands say the same.
func TestManualPage(t *testing.T) {
	b, err := os.ReadFile("../../packaging/man/tunnelctl.1")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	c := &cli{out: bufio.NewWriter(io.Discard), stderr: io.Discard}
	root := newRoot(c, func(string) string { return "" })
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		verb := strings.TrimPrefix(cmd.CommandPath(), "tunnelctl ")
		if cmd != root && !cmd.HasSubCommands() && !strings.Contains(page, "\n.It Cm "+verb) {
			t.Errorf("the page has no verb %s", verb)
		}
		if cmd.Long == "" || cmd.Short == "" || !strings.Contains(cmd.Long, "usage: "+strings.TrimSuffix(cmd.CommandPath(), " ")) {
			t.Errorf("%s has no usage text of its own", cmd.CommandPath())
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !strings.Contains(page, "Fl -"+f.Name) {
				t.Errorf("the page has no --%s of %s", f.Name, cmd.CommandPath())
			}
			if !strings.Contains(cmd.Long, "--"+f.Name) {
				t.Errorf("the usage text of %s has no --%s", cmd.CommandPath(), f.Name)
			}
		})
		for _, sub := range cmd.Commands() {
			walk(sub)
			if !strings.Contains(cmd.Long, sub.Name()) {
				t.Errorf("the usage text of %s has no %s", cmd.CommandPath(), sub.Name())
			}
		}
	}
	walk(root)
	for _, want := range []string{"TUNNELD_SOCKET", defaultSocket} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not mention %s", want)
		}
	}
}
