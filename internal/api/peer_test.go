package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Numbers that no host of a test is likely to have given out.
const (
	testGroup      = 59001
	testAdminGroup = 59002
	testUser       = 59003
	testOwn        = 59004
)

func testGuard() guard {
	return guard{own: testOwn, lookup: func(name string) (uint32, bool) {
		switch name {
		case Group:
			return testGroup, true
		case AdminGroup:
			return testAdminGroup, true
		}
		return 0, false
	}}
}

func TestGuard(t *testing.T) {
	for _, tt := range []struct {
		name                  string
		peer                  peer
		look, use, administer bool
	}{
		{"root", peer{uid: 0}, true, true, true},
		{"the daemon's user", peer{uid: testOwn}, true, true, true},
		{"a stranger", peer{uid: testUser, groups: []uint32{testUser}}, false, false, false},
		{"group root is nothing", peer{uid: testUser, groups: []uint32{0}}, false, false, false},
		{"group tunneld", peer{uid: testUser, groups: []uint32{testUser, testGroup}}, true, true, false},
		{"group tunneld-admin", peer{uid: testUser, groups: []uint32{testAdminGroup}}, true, true, true},
		{"nobody", peer{uid: overflowID}, false, false, false},
		{"nobody in both groups", peer{uid: overflowID, groups: []uint32{testGroup, testAdminGroup}}, false, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := testGuard()
			for c, want := range map[class]bool{look: tt.look, use: tt.use, administer: tt.administer} {
				if got := g.permit(tt.peer, c); got != want {
					t.Errorf("permit(%+v, %d) = %v, want %v", tt.peer, c, got, want)
				}
			}
		})
	}
}

func TestGuardWithoutGroups(t *testing.T) {
	g := guard{own: overflowID, lookup: func(string) (uint32, bool) { return overflowID, false }}
	if g.permit(peer{uid: testUser, groups: []uint32{0, overflowID}}, look) {
		t.Error("a host without the groups lets a stranger look")
	}
	if g.permit(peer{uid: overflowID}, look) {
		t.Error("a daemon that runs as nobody lets every unmapped user look")
	}
	g.lookup = func(string) (uint32, bool) { return overflowID, true }
	if g.permit(peer{uid: testUser, groups: []uint32{overflowID}}, look) {
		t.Error("an unmapped group counts as the group of that number")
	}
}

func TestRefusalNamesVerbAndAllowed(t *testing.T) {
	g := testGuard()
	e := g.refusal(peer{uid: testUser}, "invite", administer)
	if e.Code != NotAllowed {
		t.Errorf("code = %q, want %q", e.Code, NotAllowed)
	}
	want := "invite is not allowed for user 59003; allowed are: root, user 59004, members of group tunneld-admin"
	if e.Message != want {
		t.Errorf("message = %q, want %q", e.Message, want)
	}
	if !strings.Contains(e.Hint, "tunneld-admin") {
		t.Errorf("hint = %q, want the group in it", e.Hint)
	}
	if e := g.refusal(nobody, "status", look); strings.Contains(e.Hint, "group") {
		t.Errorf("hint for nobody = %q, but no group would help", e.Hint)
	}
}

// verdicts is what the client process reports: the code of each verb, "" for
// an answer, or "socket" where it could not even connect.
type verdicts struct{ Status, Down, Kill Code }

func clientMain(path string) int {
	ctx := context.Background()
	c := Dial(path)
	_, err := c.Status(ctx)
	v := verdicts{verdict(err), verdict(c.Down(ctx, "home")), verdict(c.KillSession(ctx, "x", ""))}
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		return 1
	}
	return 0
}

func verdict(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	if errors.Is(err, ErrNotPermitted) {
		return "socket"
	}
	if err != nil {
		return Code(err.Error())
	}
	return ""
}

// TestPeerCredentials connects as other users of this host. What they may is
// decided by the kernel's word about them alone.
func TestPeerCredentials(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be other users")
	}
	path := serveForAll(t)
	none := verdicts{}
	for _, tt := range []struct {
		name string
		cred syscall.Credential
		want verdicts
	}{
		{"root", syscall.Credential{}, none},
		{"the daemon's user", syscall.Credential{Uid: testOwn, Gid: testOwn}, none},
		{"a stranger", syscall.Credential{Uid: testUser, Gid: testUser}, verdicts{NotAllowed, NotAllowed, NotAllowed}},
		{"primary group tunneld", syscall.Credential{Uid: testUser, Gid: testGroup}, verdicts{"", "", NotAllowed}},
		{"supplementary group tunneld", syscall.Credential{Uid: testUser, Gid: testUser, Groups: []uint32{7, testGroup}}, verdicts{"", "", NotAllowed}},
		{"supplementary group tunneld-admin", syscall.Credential{Uid: testUser, Gid: testUser, Groups: []uint32{testAdminGroup}}, none},
		{"the last of many groups", syscall.Credential{Uid: testUser, Gid: testUser, Groups: append(manyGroups(200), testAdminGroup)}, none},
		{"nobody with every group", syscall.Credential{Uid: overflowID, Gid: testGroup, Groups: []uint32{testAdminGroup}}, verdicts{NotAllowed, NotAllowed, NotAllowed}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := askAs(t, path, &tt.cred); got != tt.want {
				t.Errorf("verdicts = %+v, want %+v", got, tt.want)
			}
		})
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("a socket that is not theirs", func(t *testing.T) {
		cred := &syscall.Credential{Uid: testUser, Gid: testGroup}
		if got, want := askAs(t, path, cred), (verdicts{"socket", "socket", "socket"}); got != want {
			t.Errorf("verdicts = %+v, want %+v", got, want)
		}
	})
}

// manyGroups has more groups than peerGroups has room for at first.
func manyGroups(n int) []uint32 {
	groups := make([]uint32, n)
	for i := range groups {
		groups[i] = uint32(60000 + i)
	}
	return groups
}

// serveForAll serves a fake with the guard of testGuard at a socket that
// everybody can reach, so that the guard alone is in the way.
func serveForAll(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{dir: 0o755, path: 0o666} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	s := newServer(&fake{}, testLog(t))
	s.guard = testGuard()
	start(t, s, l)
	return path
}

// askAs runs this binary as another user. It is executed by descriptor, since
// that user cannot reach the directory it lies in.
func askAs(t *testing.T, path string, cred *syscall.Credential) (v verdicts) {
	t.Helper()
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{self}
	cmd.Dir = "/"
	cmd.Env = []string{clientEnv + "=" + path, "GORACE=atexit_sleep_ms=0"}
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("client as %+v: %v", cred, err)
	}
	if err := json.Unmarshal(out, &v); err != nil {
		t.Fatalf("client as %+v printed %q: %v", cred, out, err)
	}
	return v
}

func TestPeerOfStrangeConnection(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	p, err := peerOf(a)
	if err == nil || p.uid != overflowID {
		t.Errorf("peerOf(pipe) = %+v, %v, want nobody and an error", p, err)
	}
	if fmt.Sprint(peerFrom(context.Background())) != fmt.Sprint(nobody) {
		t.Error("a request without a connection of ours is not nobody's")
	}
}
