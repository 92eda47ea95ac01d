package memfile

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine/noise"
)

// holdVariable has this test binary adopt descriptor 3 and hold it until its
// standard input ends.
const holdVariable = "TUNNELD_MEMFILE_HOLD"

var journal = session.ID{7}

func TestMain(m *testing.M) {
	if what := os.Getenv(stepVariable); what != "" {
		fmt.Println(act(what))
		return
	}
	if os.Getenv(holdVariable) == "" {
		os.Exit(m.Run())
	}
	_, err := Adopt(3, journal)
	fmt.Println(err)
	bufio.NewReader(os.Stdin).ReadString(0)
}

const now = noise.Instant(1000 * time.Second)

// create makes a file that ends with the test.
func newFile(t *testing.T) *File {
	t.Helper()
	f, err := Create(journal, [2]uint32{3, 4})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// again gives up f and returns another descriptor of the file.
func again(t *testing.T, f *File) int {
	t.Helper()
	fd, err := unix.Dup(f.fd)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return fd
}

// adopt goes on with f as a new process would.
func adopt(t *testing.T, f *File) *File {
	t.Helper()
	f, err := Adopt(again(t, f), journal)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// keys are those of a keypair with that index here.
func keys(index uint32, created noise.Instant) *noise.Keys {
	return &noise.Keys{Send: [32]byte{1, byte(index)}, Receive: [32]byte{2, byte(index)}, Local: index, Remote: index + 100, Created: created, Initiator: true, Crossed: 9}
}

func aboutOf(n byte) About {
	return About{Session: session.ID{n}, Peer: [32]byte{n, 1}, Local: [32]byte{n, 2}, Stamp: noise.Stamp{n}}
}

func TestLayout(t *testing.T) {
	if n := unsafe.Sizeof(Slot{}); n%64 != 0 {
		t.Errorf("a slot has %d octets, want whole cache lines", n)
	}
	if n := unsafe.Sizeof(header{}); n != headerSize {
		t.Errorf("the header has %d octets, want %d", n, headerSize)
	}
	var s noise.Slot
	if unsafe.Offsetof(s.Counter)/64 == unsafe.Offsetof(s.Keys)/64 || unsafe.Offsetof(s.Counter)/64 == unsafe.Offsetof(s.Window)/64 {
		t.Error("the send counter shares a cache line with what receivers read")
	}
}

// TestAdopt: another process goes on with everything that is in the file.
func TestAdopt(t *testing.T) {
	f := newFile(t)
	pair, slot := f.Keypair(keys(5, now), aboutOf(1))
	place := Place{Dst: netip.MustParseAddrPort("[fe80::1%7]:443"), Source: netip.MustParseAddr("192.0.2.1"), Ifindex: 3, Proved: true}
	slot.SetPlace(Place{Dst: netip.MustParseAddrPort("192.0.2.9:1")})
	slot.SetPlace(place)
	for range 10 {
		pair.NextCounters(1)
	}
	f.Hand().Holds(3)
	f.Hand().Holds(4)
	f = adopt(t, f)
	if f.Mixing() != [2]uint32{3, 4} {
		t.Errorf("Mixing = %v", f.Mixing())
	}
	if n := f.TakeLost(); n != 7 {
		t.Errorf("TakeLost = %d, want 7", n)
	}
	finds, torn := f.TakeFinds(now.Add(time.Second))
	if len(finds) != 1 || torn != 0 {
		t.Fatalf("%d keypairs, %d torn, want 1 and 0", len(finds), torn)
	}
	got := finds[0]
	if p, ok := got.Slot.Place(); !ok || p != place {
		t.Errorf("Place = %+v, %v, want %+v", p, ok, place)
	}
	if *got.Slot.About() != aboutOf(1) || got.Slot.Keys != *keys(5, now) || got.Pair.Local != 5 || got.Pair.Created != now {
		t.Errorf("found %+v of %+v", got.Slot.Keys, got.Slot.About())
	}
	if n, ok := got.Pair.NextCounters(1); !ok || n != 10 {
		t.Errorf("the counter goes on at %d, %v, want 10", n, ok)
	}
	got.Pair.Retire()
	if got.Slot.ID.Load() != 0 || got.Slot.Keys != (noise.Keys{}) || *got.Slot.About() != (About{}) {
		t.Error("a keypair that ended is still in the file")
	}
	if _, s := f.Keypair(keys(6, now), aboutOf(1)); s != got.Slot {
		t.Error("the slot of a keypair that ended is not used again")
	}
}

// TestWiped: what may not be used again does not stay in the file.
func TestWiped(t *testing.T) {
	for name, change := range map[string]func(*Slot){
		"torn: a key":      func(s *Slot) { s.Keys.Send[31] ^= 1 },
		"torn: a session":  func(s *Slot) { s.about.Session[0] ^= 1 },
		"torn: no index":   func(s *Slot) { s.Keys.Local = 0; s.check = s.sum() },
		"torn: index used": func(s *Slot) { s.Keys.Local = 5; s.check = s.sum() },
		"not published":    func(s *Slot) { s.ID.Store(0) },
		"too old":          func(s *Slot) { s.Keys.Created = now.Add(-noise.RejectAfterTime); s.check = s.sum() },
		"of the future":    func(s *Slot) { s.Keys.Created = now + 1; s.check = s.sum() },
	} {
		f := newFile(t)
		f.Keypair(keys(5, now), aboutOf(1))
		_, s := f.Keypair(keys(6, now), aboutOf(2))
		change(s)
		f = adopt(t, f)
		finds, torn := f.TakeFinds(now)
		want := 0
		if strings.HasPrefix(name, "torn") {
			want = 1
		}
		if len(finds) != 1 || finds[0].Pair.Local != 5 || torn != want {
			t.Errorf("%s: %d keypairs, %d torn, want 1 and %d", name, len(finds), torn, want)
		}
		if s := &f.slots[1]; s.ID.Load() != 0 || s.Keys != (noise.Keys{}) || s.about != (About{}) {
			t.Errorf("%s: the slot was not wiped", name)
		}
		f.Close()
	}
}

func TestTornPlace(t *testing.T) {
	f := newFile(t)
	defer f.Close()
	_, s := f.Keypair(keys(5, now), aboutOf(1))
	if _, ok := s.Place(); ok {
		t.Error("a slot has a place before it was set")
	}
	s.SetPlace(Place{Dst: netip.MustParseAddrPort("192.0.2.9:1")})
	s.place.turn.Add(1) // as if cut off in the middle
	if _, ok := s.Place(); ok {
		t.Error("half a place is believed")
	}
	want := Place{Dst: netip.MustParseAddrPort("192.0.2.9:2")}
	s.SetPlace(want)
	if got, ok := s.Place(); !ok || got != want {
		t.Errorf("Place = %v, %v, want %v", got, ok, want)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*File)
		want   error
	}{
		{"another program's", func(f *File) { f.head.magic[0]++ }, ErrForeign},
		{"another version", func(f *File) { f.head.version++ }, ErrVersion},
		{"another size of slots", func(f *File) { f.head.slotSize++ }, ErrForeign},
		{"a mark beyond the end", func(f *File) { f.head.high.Store(capacity + 1) }, ErrForeign},
		{"another start of the machine", func(f *File) { f.head.boot[0]++ }, ErrBoot},
		{"another journal", func(f *File) { f.head.journal[0]++ }, ErrJournal},
	} {
		f := newFile(t)
		c.change(f)
		fd := again(t, f)
		if _, err := Adopt(fd, journal); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		unix.Close(fd)
	}
	for name, flags := range map[string]int{"not sealed": unix.MFD_ALLOW_SEALING, "without seals": 0} {
		fd, err := unix.MemfdCreate("other", flags)
		if err != nil {
			t.Fatal(err)
		}
		unix.Ftruncate(fd, int64(fileSize))
		if _, err := Adopt(fd, journal); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v, want %v", name, err, ErrForeign)
		}
		unix.Close(fd)
	}
	plain, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := Adopt(int(plain.Fd()), journal); !errors.Is(err, ErrForeign) {
		t.Errorf("no file of memory: %v, want %v", err, ErrForeign)
	}
}

// hold starts a process that adopts the file, and returns what came of it.
func hold(t *testing.T, fd int) (said string, end func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdVariable+"=1")
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(dup), "memory")
	defer file.Close() // which frees a lock of this process, see the callers
	cmd.ExtraFiles = []*os.File{file}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(said), func() {
		cmd.Process.Kill()
		cmd.Wait()
		in.Close()
	}
}

// TestOneOwner: of two processes with one file the second is refused, until
// the first has ended.
func TestOneOwner(t *testing.T) {
	fd := again(t, newFile(t))
	said, end := hold(t, fd)
	defer end()
	if said != "<nil>" {
		t.Fatalf("the first process: %s", said)
	}
	if said, end := hold(t, fd); said == "<nil>" || !strings.Contains(said, "another process") {
		end()
		t.Errorf("the second process: %s, want it to be refused", said)
	}
	if _, err := Adopt(fd, journal); !errors.Is(err, ErrInUse) {
		t.Errorf("this process: %v, want %v", err, ErrInUse)
	}
	end()
	f, err := Adopt(fd, journal)
	if err != nil {
		t.Errorf("when the first has ended: %v", err)
	} else {
		f.Close()
	}
}

func TestSwap(t *testing.T) {
	const heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	unlocked := &File{unlock: unix.EPERM}
	if err := unlocked.refuse([]byte(heading)); err != nil {
		t.Errorf("without a swap: %v", err)
	}
	if err := unlocked.refuse([]byte(heading + "/dev/sda2 partition 8388604 0 -2\n")); !errors.Is(err, ErrSwap) || !errors.Is(err, unix.EPERM) {
		t.Errorf("with a swap: %v, want %v and why the memory is not locked", err, ErrSwap)
	}
	if err := (&File{}).CheckSwap(false); err != nil {
		t.Errorf("locked memory is refused: %v", err)
	}
	if err := (&File{unlock: unix.EPERM}).CheckSwap(true); err != nil {
		t.Errorf("with allow_swap: %v", err)
	}
}

// TestFull fills a file; it takes memory for what was used only.
func TestFull(t *testing.T) {
	f := newFile(t)
	defer f.Close()
	f.head.high.Store(capacity - 1)
	if p, _ := f.Keypair(keys(1, now), aboutOf(1)); p == nil {
		t.Error("the last slot is not used")
	}
	if p, _ := f.Keypair(keys(2, now), aboutOf(1)); p != nil {
		t.Error("there is a slot behind the last")
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("two pages in use take %d octets, %v", st.Blocks*512, err)
	}
}
