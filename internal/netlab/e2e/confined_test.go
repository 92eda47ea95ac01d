package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"tunneld/internal/netlab"
)

// triesVariable makes this test binary a program that tries what a service must
// not do, and says in JSON what came of it.
const triesVariable = "TUNNELD_TRIES"

// tries are things that the unit takes from the daemon, or leaves it (0), each with
// what the kernel answers under the unit; root outside may all of them.
var tries = []struct {
	directive string
	answer    syscall.Errno
	try       func() error
}{
	{"ProtectSystem", unix.EROFS, func() error { return os.WriteFile("/srv/open/new", nil, 0o666) }},
	{"ProtectHome", unix.EACCES, func() error { return opens("/home/file", unix.O_RDONLY) }},
	{"PrivateTmp", unix.ENOENT, func() error { return opens("/tmp/file", unix.O_RDONLY) }},
	{"ProtectProc", unix.ENOENT, func() error { return opens("/proc/1/comm", unix.O_RDONLY) }},
	{"ProtectControlGroups", unix.EROFS, func() error { return writable("/sys/fs/cgroup") }},
	{"DevicePolicy", unix.EPERM, func() error { return opens("/dev/other", unix.O_RDWR) }},
	{"DeviceAllow", 0, func() error { return opens("/dev/net/tun", unix.O_RDWR) }},
	{"kernel tunables of the network", 0, func() error { return opens("/proc/sys/net/ipv4/conf/all/src_valid_mark", unix.O_WRONLY) }},
	{"StateDirectory", 0, func() error { return os.WriteFile("/var/lib/tunneld/new", nil, 0o666) }},
	{"RestrictAddressFamilies", unix.EAFNOSUPPORT, func() error { return socket(unix.AF_PACKET, unix.SOCK_DGRAM) }},
	{"RestrictAddressFamilies, those of ours", 0, func() error {
		return errors.Join(socket(unix.AF_INET6, unix.SOCK_DGRAM), socket(unix.AF_NETLINK, unix.SOCK_RAW), socket(unix.AF_UNIX, unix.SOCK_STREAM))
	}},
	{"RestrictNamespaces", unix.EPERM, func() error { return unix.Unshare(unix.CLONE_NEWUTS) }},
	{"RestrictRealtime", unix.EPERM, func() error {
		return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}, 0)
	}},
	{"RestrictSUIDSGID", unix.EPERM, setUserID},
	{"LockPersonality", unix.EPERM, setPersonality},
	{"MemoryDenyWriteExecute", unix.EPERM, func() error {
		_, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	}},
	{"SystemCallFilter", unix.EPERM, takeDescriptor},
}

func opens(name string, how int) error {
	fd, err := unix.Open(name, how|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		unix.Close(fd)
	}
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) { // it was allowed, and nothing is there
		return nil
	}
	return err
}

func socket(family, kind int) error {
	fd, err := unix.Socket(family, kind, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func writable(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return unix.EROFS
	}
	return nil
}

func setUserID() error {
	f, err := os.CreateTemp("", "")
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fchmod(int(f.Fd()), 0o4755)
}

func setPersonality() error {
	const linux32 = 0x0008
	if _, _, errno := unix.Syscall(unix.SYS_PERSONALITY, linux32, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// takeDescriptor does what debuggers do (systemd's group @debug).
func takeDescriptor() error {
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return err
	}
	defer unix.Close(self)
	fd, err := unix.PidfdGetfd(self, 0, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// tell tries everything, each on a thread of its own that ends with it.
func tell() {
	told := map[string]syscall.Errno{}
	for _, t := range tries {
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			done <- t.try()
		}()
		if err := <-done; err != nil {
			errno, _ := errors.AsType[syscall.Errno](err)
			told[t.directive] = errno
		} else {
			told[t.directive] = 0
		}
	}
	json.NewEncoder(os.Stdout).Encode(told)
}

// confined runs a program that tries what it must not do under the unit of the
// service, and again outside of it, where it may: so it is the unit that refuses.
func (s *service) confined() {
	w := s.w
	w.t.Helper()
	program, err := os.Executable()
	w.check(err)
	b, err := os.ReadFile(program)
	w.check(err, os.WriteFile(s.m.Path("/usr/local/sbin/tries"), b, 0o755))
	for _, command := range []string{
		"mkdir -p /home /srv/open && chmod 777 /home /srv/open", "echo x >/home/file", "echo x >/tmp/file", "mknod -m 666 /dev/other c 10 223",
	} {
		_, err := s.m.Run(w.patience(), "sh", "-c", command)
		w.check(err)
	}
	unit, err := s.m.Unit()
	w.check(err)
	unit = strings.NewReplacer("Type=notify", "Type=oneshot", "Restart=always", "Restart=no", "tunneld run", "tries").Replace(unit)
	w.check(s.m.Install(w.patience(), "tries", unit+"\n[Service]\nEnvironment="+triesVariable+"=1\n"))
	_, err = s.m.Systemctl(w.patience(), "start", "tries.service")
	w.check(err)
	inside, err := os.ReadFile(s.m.Path("/var/log/tries.log"))
	w.check(err)
	outside, err := s.m.Run(w.patience(), "env", triesVariable+"=1", "/usr/local/sbin/tries")
	w.check(err)
	var under, free map[string]syscall.Errno
	w.check(json.Unmarshal(inside, &under), json.Unmarshal([]byte(outside), &free))
	for _, t := range tries {
		if got, ok := under[t.directive]; got != t.answer || !ok {
			w.t.Errorf("%s: under the unit the kernel answers %d (%v), want %d (%v)", t.directive, got, got, t.answer, t.answer)
		}
		if got, ok := free[t.directive]; got != 0 || !ok {
			w.t.Errorf("%s: outside the unit the kernel answers %d (%v), want yes", t.directive, got, got)
		}
	}
}

// rights looks at what the kernel says of the process that runs.
func (s *service) rights() {
	t := s.w.t
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid(0)))
	s.w.check(err)
	const capabilities = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_BIND_SERVICE
	for name, want := range map[string]string{
		"CapBnd": fmt.Sprintf("%016x", capabilities), "CapEff": fmt.Sprintf("%016x", capabilities), "NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got := field(string(status), name); got != want {
			t.Errorf("%s of the service is %q, want %q", name, got, want)
		}
	}
	if uid := strings.Fields(field(string(status), "Uid")); len(uid) == 0 || uid[0] == "0" {
		t.Errorf("the service runs as user %v", uid)
	}
}

// field is a line of proc(5)'s status.
func field(status, name string) string {
	_, rest, _ := strings.Cut("\n"+status, "\n"+name+":")
	value, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(value)
}

// TestServiceIsConfined: each directive of the unit that takes something away does
// so under a real systemd, and the daemon runs all the same.
func TestServiceIsConfined(t *testing.T) {
	netlab.RequireMachine(t)
	w := newStage(t, "hq.eth0 203.0.113.1/24 -- inet.hq 203.0.113.254/24")
	s := w.service("hq", "", officeInit...)
	s.rights()
	s.confined()
}
