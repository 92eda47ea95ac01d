package netlab

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fakes are two shell scripts in place of the commands: the daemon answers
// when its file "ready" exists, with what its file "answer" holds.
func fakes(t *testing.T) Binaries {
	t.Helper()
	dir := t.TempDir()
	b := Binaries{Tunneld: filepath.Join(dir, "tunneld"), Tunnelctl: filepath.Join(dir, "tunnelctl")}
	check(t,
		os.WriteFile(b.Tunneld, []byte(`#!/bin/sh
case $1 in
init) mkdir -p "$3" && echo "$@" >"$3/tunneld.toml";;
run) cd "${3%/*}" && if grep -q broken tunneld.toml; then exit 1; fi
	touch ready && exec sleep 1000;;
esac
`), 0o755),
		os.WriteFile(b.Tunnelctl, []byte(`#!/bin/sh
cd "${2%/*}"
shift 2
case $* in
"--json status"|"--json sessions") if [ ! -e ready ]; then echo "no daemon" >&2; exit 3; fi; cat answer;;
"join -") cat;;
*) echo "tunnelctl: error: $*" >&2; exit 4;;
esac
`), 0o755))
	return b
}

func TestDaemon(t *testing.T) {
	lab := ForTest(t)
	h := must(lab.Host("h"))(t)
	d := h.Daemon(fakes(t), "node")
	check(t, d.Init(t.Context(), "--name", "h"))
	check(t, d.Configure("more = 1\n"))
	file := string(must(os.ReadFile(filepath.Join(d.Dir(), "tunneld.toml")))(t))
	if want := "init --dir " + d.Dir() + " --name h\n\nmore = 1\n"; file != want {
		t.Errorf("configuration = %q, want %q", file, want)
	}

	_, err := d.Status(t.Context())
	if exit, ok := errors.AsType[*ExitError](err); !ok || exit.Status != 3 || exit.Stderr != "no daemon\n" {
		t.Errorf("Status without a daemon = %v, want exit status 3", err)
	}
	answer := filepath.Join(d.Dir(), "answer")
	check(t, os.WriteFile(answer, []byte(`{"node":"h","boot_id":"b","tunnels":[{"name":"office","state":"idle","session":null,"addresses":[],"mtu":null}]}`), 0o644))
	check(t, d.Start(), d.WaitReady(within(t, 10*time.Second)))
	if err := d.Start(); err == nil {
		t.Error("a daemon that runs can be started")
	}
	s := must(d.Status(t.Context()))(t)
	if tunnel := s.Tunnel("office"); s.Node != "h" || tunnel.State != "idle" || tunnel.Session != "" || s.Tunnel("lab").Name != "" {
		t.Errorf("Status = %+v", s)
	}
	if out := must(d.CtlInput(t.Context(), "CODE\n", "join", "-"))(t); out != "CODE\n" {
		t.Errorf("CtlInput = %q, want what was put in", out)
	}
	if _, err := d.Ctl(t.Context(), "up", "nowhere"); err == nil || !strings.Contains(err.Error(), `h: tunnelctl ["--socket" `) || !strings.Contains(err.Error(), "exit status 4: tunnelctl: error: up nowhere") {
		t.Errorf("Ctl = %v, want host, command, status and stderr", err)
	}
	_, err = d.WaitTunnel(within(t, ms(200)), "office", Established, func(s TunnelStatus) bool { return s.State == Established })
	if err == nil || !strings.Contains(err.Error(), "h: tunnel office is not established: ") || !strings.Contains(err.Error(), "State:idle") {
		t.Errorf("WaitTunnel = %v, want what was waited for and what is", err)
	}
	check(t, os.WriteFile(answer, []byte(`[{"session":"x","node":"h","state":"suspended","addresses":["10.0.0.1"]}]`), 0o644))
	list := must(d.WaitSessions(within(t, 10*time.Second), "there", func(l []SessionStatus) bool { return len(l) == 1 }))(t)
	if list[0].State != "suspended" || list[0].Addresses[0] != "10.0.0.1" {
		t.Errorf("WaitSessions = %+v", list)
	}
	if _, err := d.Status(t.Context()); err == nil { // a list where an object should be
		t.Error("Status of something else = nil")
	}
}

func TestDaemonThatEndsAtOnce(t *testing.T) {
	lab := ForTest(t)
	d := must(lab.Host("h"))(t).Daemon(fakes(t), "node")
	check(t, d.Init(t.Context()), d.Configure("broken"), d.Start())
	if err := d.WaitReady(within(t, 10*time.Second)); err == nil || !strings.Contains(err.Error(), "has ended, see its log") {
		t.Errorf("WaitReady = %v, want that it has ended", err)
	}
}

func TestBuildTakesWhatTheEnvironmentNames(t *testing.T) {
	t.Setenv(TunneldVar, "/x/tunneld")
	t.Setenv(TunnelctlVar, "/x/tunnelctl")
	b, err := Build(t.Context(), t.TempDir())
	if want := (Binaries{"/x/tunneld", "/x/tunnelctl"}); err != nil || b != want {
		t.Errorf("Build = %v, %v, want %v", b, err, want)
	}
}
