package netlab

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// waitToBeKilled is the program of TestKilledLaboratoryLeavesNothing: it makes
// a laboratory with a process, tells about it and waits.
func waitToBeKilled() int {
	lab, err := New(Options{Dir: os.Getenv(helperVar)})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	a, err := lab.Host("a")
	if err == nil {
		_, err = lab.Wire(a, "eth0", a, "eth1", Impairment{})
	}
	var p *Process
	if err == nil {
		p, err = a.Start("sleeper", "/bin/sleep", "1000")
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(p.PID())
	select {}
}

func TestKilledLaboratoryLeavesNothing(t *testing.T) {
	Require(t)
	self := must(os.Executable())(t)
	named := namedNamespaces()
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), helperVar+"="+t.TempDir())
	out := must(cmd.StdoutPipe())(t)
	check(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, convErr := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || convErr != nil {
		cmd.Process.Kill()
		t.Fatalf("the laboratory says %q, %v", line, err)
	}
	ns := must(os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)))(t)
	check(t, cmd.Process.Kill())
	cmd.Wait()

	// Its process is gone, and with it the last one in its namespace.
	check(t, Poll(within(t, 5*time.Second), ms(5), func() (bool, error) {
		state, err := procState(pid)
		return err != nil || state == 'Z', nil // a zombie waits for whoever adopts orphans here
	}))
	for _, dir := range procDirs(t) {
		if got, _ := os.Readlink(dir + "/ns/net"); got == ns {
			t.Errorf("%s lives in the laboratory's namespace", dir)
		}
	}
	if now := namedNamespaces(); now != named {
		t.Errorf("named namespaces: %s, before %s", now, named)
	}
}

func procDirs(t *testing.T) (dirs []string) {
	entries := must(os.ReadDir("/proc"))(t)
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			dirs = append(dirs, "/proc/"+e.Name())
		}
	}
	return dirs
}

func namedNamespaces() string {
	entries, _ := os.ReadDir("/run/netns") // none there, none named
	return fmt.Sprint(entries)
}
