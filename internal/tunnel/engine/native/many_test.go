package native

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

// idle makes n sessions that never do anything; with adds each of them.
func (l *loop) idle(n int, with func(add func())) {
	for i := range n {
		s := engine.Session{ID: session.NewID(), Gate: engine.Open, Responder: true, AllowedIPs: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 32)}}
		binary.BigEndian.PutUint32(s.PeerKey[4:], uint32(i+1))
		with(func() {
			if err := l.device.Add(s); err != nil {
				l.t.Fatal(err)
			}
		})
	}
}

// BenchmarkAmongSessions is what a packet costs both ends where the receiving one
// has many sessions, against one. Compare cpu-ns/op: the rate is the machine's.
func BenchmarkAmongSessions(b *testing.B) {
	for _, n := range []int{1, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			from, to := newLoop(b), newLoop(b)
			sessions(from, to, to.addr())
			to.idle(n-1, func(add func()) { add() })
			passesOn(b, from, to, 1, 2, "first")
			held := resident(b)
			p, in := append(make([]byte, vnetLen), packet(1, 2, string(bytes.Repeat([]byte{7}, 1200)))...), make([]byte, 1<<17)
			const window = 64 // packets under way at once: none is lost
			b.SetBytes(int64(len(p)))
			b.ResetTimer()
			before := processorTime(b)
			for sent := 0; sent < b.N; {
				burst := min(window, b.N-sent)
				for range burst {
					from.sendForm(p)
				}
				for range burst {
					if to.receiveInto(in, patience) == nil {
						b.Fatalf("a packet of %d was lost", b.N)
					}
				}
				sent += burst
			}
			b.ReportMetric(held, "MiB")
			b.ReportMetric(float64(processorTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// processorTime is what this process has used, in nanoseconds.
func processorTime(t testing.TB) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// resident is the memory that this process holds, both ends and the test, in MiB,
// after what is garbage was given back.
func resident(t testing.TB) float64 {
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
			return kib / 1024
		}
	}
	t.Fatal("no VmRSS")
	return 0
}
