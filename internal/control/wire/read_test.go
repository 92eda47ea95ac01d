package wire

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"runtime"
	"slices"
	"testing"
	"testing/iotest"
)

func TestReadPacket(t *testing.T) {
	hello := encode(t, &Hello{})
	large := encode(t, &CertReply{RequestID: idFrom(1), Certificate: make([]byte, MaxChunked)})
	tests := []struct {
		name   string
		stream []byte
		max    int
		want   []int // lengths of the messages before the error
		err    error
	}{
		{"nothing", nil, MaxMessage, nil, io.EOF},
		{"one", hello, MaxMessage, []int{20}, io.EOF},
		{"as long as allowed", hello, 20, []int{20}, io.EOF},
		{"two and a large one", slices.Concat(hello, large, hello), MaxMessage, []int{20, len(large), 20}, io.EOF},
		{"first octet", hello[:1], MaxMessage, nil, io.ErrUnexpectedEOF},
		{"half a length", hello[:3], MaxMessage, nil, io.ErrUnexpectedEOF},
		{"length only", hello[:4], MaxMessage, nil, io.ErrUnexpectedEOF},
		{"cut at the end", hello[:19], MaxMessage, nil, io.ErrUnexpectedEOF},
		{"cut in the second", slices.Concat(hello, hello[:5]), MaxMessage, []int{20}, io.ErrUnexpectedEOF},
		{"large, cut", large[:len(large)-1], MaxMessage, nil, io.ErrUnexpectedEOF},
		{"text", []byte("GET / HTTP/1.1\r\n\r\n"), MaxMessage, nil, ErrHeader},
		{"data message", []byte{0x00, 0x03, 0, 0, 0, 0, 0, 1}, MaxMessage, nil, ErrHeader},
		{"junk after a message", slices.Concat(hello, []byte{0, 0}), MaxMessage, []int{20}, ErrHeader},
		{"length 0", []byte{0xc8, 3, 0, 0}, MaxMessage, nil, ErrLength},
		{"length 11", []byte{0xc8, 3, 0, 11}, MaxMessage, nil, ErrLength},
		{"longer than allowed", hello, 19, nil, ErrLength},
		{"longest claim", []byte{0xc8, 3, 0xff, 0xff}, 4096, nil, ErrLength},
		{"longest claim, allowed", []byte{0xc8, 3, 0xff, 0xff}, MaxMessage, nil, io.ErrUnexpectedEOF},
	}
	readers := map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "octet by octet": iotest.OneByteReader,
		"half": iotest.HalfReader, "error with data": iotest.DataErrReader,
	}
	for how, wrap := range readers {
		for _, tt := range tests {
			r := bufio.NewReaderSize(wrap(bytes.NewReader(tt.stream)), 16)
			rest := tt.stream
			for _, n := range tt.want {
				b, err := ReadPacket(r, tt.max)
				if err != nil || !bytes.Equal(b, rest[:n]) {
					t.Errorf("%s, %s: ReadPacket = %d octets, %v, want the next %d", tt.name, how, len(b), err, n)
				}
				rest = rest[n:]
			}
			b, err := ReadPacket(r, tt.max)
			if !errors.Is(err, tt.err) || b != nil {
				t.Errorf("%s, %s: ReadPacket = %d octets, %v, want error %v", tt.name, how, len(b), err, tt.err)
			}
		}
	}
}

// once gives its octets, then fails the test if it is asked for more.
type once struct {
	t *testing.T
	b []byte
}

func (o *once) Read(p []byte) (int, error) {
	if o.b == nil {
		o.t.Error("Read was called again, want the refusal before it")
		return 0, io.EOF
	}
	n := copy(p, o.b)
	o.b = nil
	return n, nil
}

// A peer that speaks something else, or promises too much, is refused by what
// has arrived; nobody waits for the rest.
func TestReadPacketDoesNotWait(t *testing.T) {
	for _, b := range [][]byte{{0x16, 0x03}, {0xc8, 0x02}, {0xc8, 0x03, 0x00, 0x00}, {0xc8, 0x03, 0x20, 0x00}} {
		if got, err := ReadPacket(bufio.NewReader(&once{t, b}), 4096); err == nil {
			t.Errorf("ReadPacket(%x) = %x, want an error", b, got)
		}
	}
}

func TestReadPacketPassesErrorsOn(t *testing.T) {
	broken := errors.New("connection reset")
	for _, n := range []int{0, 1, 2, 3, 4, 19} {
		r := io.MultiReader(bytes.NewReader(encode(t, &Hello{})[:n]), iotest.ErrReader(broken))
		if b, err := ReadPacket(bufio.NewReader(r), MaxMessage); !errors.Is(err, broken) || b != nil {
			t.Errorf("after %d octets: ReadPacket = %x, %v, want %v", n, b, err, broken)
		}
	}
}

// allocated is how many octets f takes from the heap, the least of some runs:
// what else runs in the process only adds.
func allocated(runs int, f func()) uint64 {
	least := ^uint64(0)
	for range runs {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
	}
	return least
}

func TestReadPacketTakesMemoryAsOctetsArrive(t *testing.T) {
	for _, n := range []int{4, 500, 5000, 60000} {
		stream := append([]byte{0xc8, 3, 0xff, 0xff}, make([]byte, n-4)...)
		r := bufio.NewReaderSize(nil, 4096)
		source := bytes.NewReader(nil)
		got := allocated(5, func() {
			source.Reset(stream)
			r.Reset(source)
			if b, err := ReadPacket(r, MaxMessage); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("ReadPacket = %d octets, %v, want %v", len(b), err, io.ErrUnexpectedEOF)
			}
		})
		if most := uint64(2048 + 5*n); got > most {
			t.Errorf("%d of 65535 octets arrived and cost %d octets of memory, want at most %d", n, got, most)
		}
	}
}
