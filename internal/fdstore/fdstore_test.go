package fdstore

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func environment(kv ...string) func(string) string {
	return func(key string) string {
		for i := 0; i < len(kv); i += 2 {
			if kv[i] == key {
				return kv[i+1]
			}
		}
		return ""
	}
}

func TestGiven(t *testing.T) {
	for _, c := range []struct {
		name string
		env  []string
		want []File
		bad  bool
	}{
		{"none", nil, nil, false},
		{"another process's", []string{"LISTEN_PID", "6", "LISTEN_FDS", "1"}, nil, false},
		{"named", []string{"LISTEN_PID", "7", "LISTEN_FDS", "2", "LISTEN_FDNAMES", "memory:tun-tnl0"}, []File{{"memory", 3}, {"tun-tnl0", 4}}, false},
		{"fewer names", []string{"LISTEN_PID", "7", "LISTEN_FDS", "2", "LISTEN_FDNAMES", "memory"}, []File{{"memory", 3}, {"unknown", 4}}, false},
		{"no number", []string{"LISTEN_PID", "7", "LISTEN_FDS", "x"}, nil, true},
		{"a negative number", []string{"LISTEN_PID", "7", "LISTEN_FDS", "-1"}, nil, true},
	} {
		got, err := Given(environment(c.env...), 7)
		if !slices.Equal(got, c.want) || (err != nil) != c.bad {
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		}
	}
}

// TestStore has a socket in the manager's place.
func TestStore(t *testing.T) {
	for _, env := range [][]string{nil, {"FDSTORE", "8"}, {"NOTIFY_SOCKET", "/x"}, {"FDSTORE", "0", "NOTIFY_SOCKET", "/x"}} {
		if s := Open(environment(env...)); s != nil {
			t.Errorf("with %v: %v, want no store", env, s)
		}
	}
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(manager)
	s := Open(environment("FDSTORE", "8", "NOTIFY_SOCKET", path))
	if err := s.Forget("memory"); err == nil {
		t.Error("no error without anybody at the socket")
	}
	if err := unix.Bind(manager, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := s.Keep("memory", int(file.Fd()), int(file.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := s.Forget("memory"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		message string
		fds     int
	}{{"FDSTORE=1\nFDNAME=memory\nFDPOLL=0", 2}, {"FDSTOREREMOVE=1\nFDNAME=memory", 0}} {
		b, control := make([]byte, 4096), make([]byte, 4096)
		n, c, _, _, err := unix.Recvmsg(manager, b, control, unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		var fds []int
		if messages, err := unix.ParseSocketControlMessage(control[:c]); err == nil && len(messages) > 0 {
			fds, _ = unix.ParseUnixRights(&messages[0])
		}
		if string(b[:n]) != want.message || len(fds) != want.fds {
			t.Errorf("the manager got %q and %d descriptors, want %q and %d", b[:n], len(fds), want.message, want.fds)
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}
