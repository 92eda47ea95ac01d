package memfile

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine/noise"
)

// These tests stop a process after every single machine instruction of sending
// and receiving. What is in the memory file then is what a kill at that
// instruction would leave, and each time it is looked at what a new process
// would do with it.

// stepVariable has this test binary send or receive with the keypair in
// descriptor 3, over the stage in descriptor 4.
const stepVariable = "TUNNELD_MEMFILE_STEP"

const maxSteps = 24

// A stage is memory that both processes see.
type stage struct {
	begin, end atomic.Bool
	n          atomic.Int64              // datagrams that are done with
	counters   [maxSteps]uint64          // of them, in that order
	datagrams  [maxSteps][keepalive]byte // to be received
	count      int64                     // of datagrams
}

const keepalive = noise.KeepaliveSize

func mapStage(fd int) (*stage, error) {
	b, err := unix.Mmap(fd, 0, int(unsafe.Sizeof(stage{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*stage)(unsafe.Pointer(&b[0])), nil
}

// act is the other process.
func act(what string) error {
	runtime.LockOSThread()
	f, err := Adopt(3, journal)
	if err != nil {
		return err
	}
	s, err := mapStage(4)
	if err != nil {
		return err
	}
	finds, _ := f.TakeFinds(now)
	if len(finds) != 1 {
		return fmt.Errorf("%d keypairs", len(finds))
	}
	pair := finds[0].Pair
	buf := make([]byte, 0, 2*keepalive)
	fmt.Println("thread", unix.Gettid())
	for !s.begin.Load() {
	}
	if what == "send" {
		for i := range maxSteps {
			counter, _ := pair.NextCounters(1 + i%2)
			pair.Seal(buf, counter, nil, 0) // on the wire
			s.counters[i] = counter
			s.n.Add(1)
		}
	} else {
		for i := range s.count {
			if _, err := pair.Open(append(buf, s.datagrams[i][:]...), now); err == nil {
				s.counters[s.n.Load()] = uint64(i) // in the TUN device
				s.n.Add(1)
			}
		}
	}
	s.end.Store(true)
	select {}
}

// A stepped process is act in another process, stopped.
type stepped struct {
	t     *testing.T
	tid   int
	stage *stage
	slot  *Slot // as the other process sees it
}

// newStepped starts one with the keypair that make puts into a new file.
func newStepped(t *testing.T, what string, prepare func(*noise.Keypair, *stage)) *stepped {
	t.Helper()
	f := newFile(t)
	pair, slot := f.Keypair(keys(5, now), aboutOf(1))
	fd, err := unix.MemfdCreate("stage", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, int64(unsafe.Sizeof(stage{}))); err != nil {
		t.Fatal(err)
	}
	s := &stepped{t: t, slot: slot}
	if s.stage, err = mapStage(fd); err != nil {
		t.Fatal(err)
	}
	prepare(pair, s.stage)
	cmd := exec.Command(os.Args[0])
	// The runtime is kept from interfering with the thread.
	cmd.Env = append(os.Environ(), stepVariable+"="+what, "GODEBUG=asyncpreemptoff=1", "GOGC=off")
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(again(t, f)), "memory"), os.NewFile(uintptr(fd), "stage")}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		for _, f := range cmd.ExtraFiles {
			f.Close()
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if s.tid, err = strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "thread "))); err != nil {
		t.Fatalf("the other process says %q", line)
	}
	return s
}

// run steps to the end, and calls look whenever an instruction has changed
// something. The calling goroutine is the tracer.
func (s *stepped) run(look func()) {
	s.t.Helper()
	if err := unix.PtraceSeize(s.tid); err != nil {
		s.t.Fatalf("ptrace: %v", err)
	}
	if err := unix.PtraceInterrupt(s.tid); err != nil {
		s.t.Fatalf("ptrace: %v", err)
	}
	s.await()
	s.stage.begin.Store(true)
	seen, before := -1, make([]byte, unsafe.Sizeof(noise.Slot{}))
	steps, looks := 0, 0
	for ; !s.stage.end.Load(); steps++ {
		if err := unix.PtraceSingleStep(s.tid); err != nil {
			s.t.Fatalf("ptrace: %v", err)
		}
		s.await()
		if after := s.octets(); seen != int(s.stage.n.Load()) || !bytes.Equal(before, after) {
			copy(before, after)
			seen = int(s.stage.n.Load())
			looks++
			look()
		}
	}
	s.t.Logf("%d instructions, %d of them changed something", steps, looks)
}

// await waits until the thread has stopped.
func (s *stepped) await() {
	s.t.Helper()
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(s.tid, &status, unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || !status.Stopped() {
			s.t.Fatalf("the thread has not stopped: %v, %#x", err, status)
		}
		return
	}
}

// octets are the keypair as it lies in the file.
func (s *stepped) octets() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&s.slot.Slot)), unsafe.Sizeof(noise.Slot{}))
}

// heir is what a new process would have now: a keypair over a copy.
func (s *stepped) heir() *noise.Keypair {
	slot := new(noise.Slot)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(slot)), unsafe.Sizeof(*slot)), s.octets())
	return noise.AdoptKeypair(slot, nil)
}

// TestEveryInstructionOfSending: wherever a sender is killed, nobody who goes on
// uses a nonce that was used.
func TestEveryInstructionOfSending(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	s := newStepped(t, "send", func(*noise.Keypair, *stage) {})
	s.run(func() {
		next := s.slot.Counter.Load()
		for i := range s.stage.n.Load() {
			if used := s.stage.counters[i]; used >= next {
				t.Fatalf("after %d datagrams: the next process begins at %d, but %d was used", s.stage.n.Load(), next, used)
			}
		}
	})
}

// TestEveryInstructionOfReceiving: wherever a receiver is killed, nothing that
// came out of the TUN device comes out again, and what follows in order does.
func TestEveryInstructionOfReceiving(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	counters := []uint64{8200, 8201, 8203, 8202, 8256, 8255, 8320, 8400, 8321, 9000, 8999, 30000, 29000, 30001}
	mirrored := keys(105, now) // the other end
	mirrored.Receive, mirrored.Send = keys(5, now).Send, keys(5, now).Receive
	peer := noise.NewKeypair(mirrored)
	datagram := func(counter uint64) []byte { return peer.Seal(nil, counter, nil, 0) }
	s := newStepped(t, "receive", func(pair *noise.Keypair, stage *stage) {
		for c := range uint64(8200) { // the whole window is full of bits
			if _, err := pair.Open(datagram(c), now); err != nil {
				t.Fatal(err)
			}
		}
		for i, c := range counters {
			copy(stage.datagrams[i][:], datagram(c))
		}
		stage.count = int64(len(counters))
	})
	s.run(func() {
		heir := s.heir()
		out := s.stage.n.Load()
		for i := range out {
			c := counters[s.stage.counters[i]]
			if _, err := heir.Open(datagram(c), now); err == nil {
				t.Fatalf("counter %d came out and opens again in the next process", c)
			}
		}
		for _, c := range []uint64{1, 8100, 8199} {
			if _, err := heir.Open(datagram(c), now); err == nil {
				t.Fatalf("counter %d of before opens again in the next process", c)
			}
		}
		next := heir.Newest() + 1
		if _, err := heir.Open(datagram(next), now); err != nil {
			t.Fatalf("counter %d, the next in order, is refused by the next process: %v", next, err)
		}
	})
	if got := s.stage.n.Load(); got != int64(len(counters)) {
		t.Errorf("%d of %d datagrams opened", got, len(counters))
	}
}
