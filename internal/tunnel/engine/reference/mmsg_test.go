package reference

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"tunneld/internal/tunnel/engine/udp"
)

func TestSegments(t *testing.T) {
	for _, c := range []struct {
		sizes []int
		max   int
		want  int
	}{
		{[]int{100}, udp.MaxPayload4, 1},
		{[]int{100, 100, 100}, udp.MaxPayload4, 3},
		{[]int{100, 100, 50, 50}, udp.MaxPayload4, 3}, // only the last may be shorter
		{[]int{100, 101}, udp.MaxPayload4, 1},
		{[]int{100, 50, 100}, udp.MaxPayload4, 2},
		{[]int{1000, 1000, 1000}, 2500, 2},
		{slices.Repeat([]int{10}, 100), udp.MaxPayload4, udp.MaxSegments},
		{slices.Repeat([]int{1452}, 100), udp.MaxPayload4, udp.MaxPayload4 / 1452},
	} {
		var bufs [][]byte
		for _, n := range c.sizes {
			bufs = append(bufs, make([]byte, n))
		}
		if got := segments(bufs, c.max); got != c.want {
			t.Errorf("segments(%v, %d) = %d, want %d", c.sizes, c.max, got, c.want)
		}
	}
}

// batches are what wireguard-go may hand over at once.
func batches(r *rand.Rand) map[string][][]byte {
	make1 := func(sizes ...int) (bufs [][]byte) {
		for i, n := range sizes {
			b := make([]byte, n)
			for j := range b {
				b[j] = byte(r.Uint32())
			}
			b[0] = byte(i)
			bufs = append(bufs, b)
		}
		return bufs
	}
	var mixed []int
	for range batchSize {
		mixed = append(mixed, 1+r.IntN(1452))
	}
	return map[string][][]byte{
		"one":        make1(1),
		"equal":      make1(slices.Repeat([]int{1452}, 40)...),
		"full batch": make1(slices.Repeat([]int{1000}, batchSize)...),
		"short tail": make1(1452, 1452, 1452, 7),
		"mixed":      make1(mixed...),
		"large":      make1(9000, 9000, 9000, 60000, 60000),
	}
}

func TestBatchRoundTrip(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		for _, offload := range []bool{true, false} {
			t.Run(fmt.Sprint(addr, " offload ", offload), func(t *testing.T) {
				from, err := New(Config{Listen: netip.MustParseAddrPort(addr)})
				if err != nil {
					t.Fatal(err)
				}
				defer from.Close()
				to, err := New(Config{Listen: netip.MustParseAddrPort(addr)})
				if err != nil {
					t.Fatal(err)
				}
				defer to.Close()
				from.hub.sockets[0].GSO.Store(offload && from.hub.sockets[0].GSO.Load())
				l := listenOn(t, to.hub, [32]byte{})
				there := newEndpoint(to.addr())
				for name, bufs := range batches(rand.New(rand.NewPCG(1, 2))) {
					if err := from.hub.sockets[0].send(bufs, there, 0); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					for i, want := range bufs {
						if got := l.next(patience); !bytes.Equal(got, want) {
							t.Fatalf("%s: datagram %d of %d arrived as %d octets, want %d", name, i, len(bufs), len(got), len(want))
						}
						if e := <-l.from; e.DstToString() != from.addr().String() {
							t.Fatalf("%s: from %s, want %v", name, e.DstToString(), from.addr())
						}
					}
				}
			})
		}
	}
}

// TestTooLargeToSegment sends what fits the path only in fragments: the kernel
// refuses to segment it, and one by one it must arrive.
func TestTooLargeToSegment(t *testing.T) {
	ownNamespace(t)
	if out, err := exec.Command("ip", "link", "set", "lo", "up", "mtu", "1280").CombinedOutput(); err != nil {
		t.Fatalf("ip link: %v: %s", err, out)
	}
	from, to := loopback(t), loopback(t)
	l := listenOn(t, to.hub, [32]byte{})
	there := newEndpoint(to.addr())
	bufs := [][]byte{bytes.Repeat([]byte{1}, 1400), bytes.Repeat([]byte{2}, 1400), bytes.Repeat([]byte{3}, 1400)}
	if err := from.hub.sockets[0].send(bufs, there, 0); err != nil {
		t.Fatal(err)
	}
	for i, want := range bufs {
		if got := l.next(patience); !bytes.Equal(got, want) {
			t.Fatalf("datagram %d arrived as %d octets, want %d", i, len(got), len(want))
		}
	}
	other := udp.NewRouted(netip.MustParseAddrPort("127.0.0.1:1"))
	if off, on := !from.hub.sockets[0].Segments(there.Endpoint), from.hub.sockets[0].Segments(other); !off || !on {
		t.Errorf("segmentation off for this path, on for others = %v, %v, want true, true", off, on)
	}
}

// ownNamespace puts the goroutine's thread into a network namespace of its
// own. The thread ends with the test.
func ownNamespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); errors.Is(err, unix.EPERM) {
		t.Skip("needs root: a network namespace of its own")
	} else if err != nil {
		t.Fatal(err)
	}
}

func newFakeSocket() *socket { return &socket{token: make(chan struct{}, 1)} }

// TestDealMore lays out more datagrams than there are buffers.
func TestDealMore(t *testing.T) {
	h := newHub(nil, nil)
	r := newReader(newFakeSocket())
	bufs, sizes, eps := buffers(batchSize)
	from := bufs[batchSize-2]
	const segment, n = 10, 200
	for i := range n * segment {
		from[i] = byte(i / segment)
	}
	r.headers[0].N = n * segment
	r.names[0].Family = unix.AF_INET
	control := udp.AppendSegmentSize(r.control[0][:0], segment)
	(*unix.Cmsghdr)(unsafe.Pointer(&control[0])).Type = unix.UDP_GRO // what a receiver gets
	r.headers[0].SetControllen(len(control))
	got := r.deal(0, from, bufs[:batchSize-1], sizes, eps, 0, h)
	if got != batchSize-1 {
		t.Fatalf("deal of %d datagrams into %d buffers = %d, want all buffers full", n, batchSize-1, got)
	}
	for i := range got {
		if sizes[i] != segment || bufs[i][0] != byte(i) || bufs[i][segment-1] != byte(i) {
			t.Fatalf("datagram %d: %d octets of %d, want %d of %d", i, sizes[i], bufs[i][0], segment, i)
		}
	}
}
