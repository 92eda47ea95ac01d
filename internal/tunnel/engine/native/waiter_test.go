package native

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A thread that lingers does so without the runtime's knowledge; still, nothing
// waits for it that wants to stop the world.
func TestLingeringStopsForTheWorld(t *testing.T) {
	b, err := newBell()
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	w := newWaiter(pipe[0], b)
	begun, ended := make(chan struct{}), make(chan bool)
	go func() {
		close(begun)
		ended <- w.linger(time.Hour)
	}()
	<-begun
	for over := false; !over; { // until a collection has met the thread in its call
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.GC()
		}()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatal("the world did not stop within a minute: a thread lingers")
		}
		select {
		case came := <-ended:
			over = true
			if came {
				t.Error("something came, says linger; nothing has")
			}
		default:
		}
	}
}

// What wakes a thread that waits, wakes it while it lingers and afterwards.
func TestWaiterHears(t *testing.T) {
	b, err := newBell()
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	w := newWaiter(pipe[0], b)
	if w.linger(time.Nanosecond) {
		t.Error("linger: something came; nothing has")
	}
	if _, err := unix.Write(pipe[1], []byte{0}); err != nil {
		t.Fatal(err)
	}
	if !w.linger(time.Hour) || !w.wait() {
		t.Error("a readable descriptor ends a wait, and it is not the end")
	}
	b.ring()
	if w.wait() || !w.rung() {
		t.Error("a bell that rings is the end")
	}
}
