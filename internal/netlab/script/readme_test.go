package script

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"tunneld/internal/netlab"
)

// prompted are the lines of README.md that show commands on one of two
// machines.
var prompted = regexp.MustCompile(`(?m)^(gateway|laptop)# +(.+)$`)

// TestREADME takes the five commands from README.md that lead to a working
// tunnel between two machines, and runs them on two hosts. They are run by a
// shell as they stand, but for these words, which name what a laboratory does
// not have:
//
//	vpn.example.com                 192.0.2.1, there is no DNS
//	tunneld init                    with --dir, instead of the machine's own /etc and /var
//	tunnelctl                       with the socket in that directory
//	&& systemctl enable --now X     is what the laboratory does itself: it starts the daemon
//	&& ping A                       likewise: it pings
//
// "the last command runs on the laptop and reads the code that the third has
// printed" holds for `join -`: it gets the output of the command before it.
func TestREADME(t *testing.T) {
	netlab.Require(t)
	t.Parallel()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	text, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := prompted.FindAllStringSubmatch(string(text), -1)
	if len(commands) != 5 {
		t.Fatalf("README.md has %d commands of the two machines, want five", len(commands))
	}
	lab := netlab.ForTest(t)
	stage, err := lab.Build("gateway.eth0 192.0.2.1/24 -- laptop.eth0 192.0.2.2/24")
	if err != nil {
		t.Fatal(err)
	}
	daemons := map[string]*netlab.Daemon{}
	for name, host := range stage.Hosts {
		daemons[name] = host.Daemon(bin, "node")
		if err := os.MkdirAll(filepath.Dir(daemons[name].Dir()), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	said := ""
	for _, c := range commands {
		said = playLine(t, daemons[c[1]], c[2], said)
	}
}

// playLine runs what a line says before the words that the laboratory stands
// in for, and then does those. It returns what was printed.
func playLine(t *testing.T, d *netlab.Daemon, line, stdin string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	line = strings.NewReplacer(
		"vpn.example.com", "192.0.2.1",
		"tunneld init", bin.Tunneld+" init --dir "+d.Dir(),
		"tunnelctl", bin.Tunnelctl+" --socket "+filepath.Join(d.Dir(), "tunneld.sock"),
	).Replace(line)
	line, starts := strings.CutSuffix(line, " && systemctl enable --now tunneld")
	line, to, pings := strings.Cut(line, " && ping ")
	said, err := d.Host().Run(ctx, stdin, "sh", "-c", line)
	if err != nil {
		t.Fatal(err)
	}
	if starts {
		if err := d.Start(); err != nil {
			t.Fatal(err)
		}
		if err := d.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if pings {
		if _, err := d.Host().Ping(ctx, netip.MustParseAddr(to)); err != nil {
			t.Fatal(err)
		}
	}
	return said
}
