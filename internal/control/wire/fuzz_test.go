package wire

import (
	"bufio"
	"bytes"
	"io"
	"reflect"
	"slices"
	"testing"
)

// The attacker is a peer with a valid certificate, or with one that is about to
// be refused: its octets reach Parse before anything is known of it.
func FuzzParse(f *testing.F) {
	for _, m := range slices.Concat(full(), least()) {
		f.Add(encode(f, m))
	}
	for _, v := range readVectors(f) {
		f.Add(v.octets)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p *Packet
		var err error
		most := uint64(16<<10 + 16*len(b))
		parse := func() { p, err = Parse(b) }
		if took := allocated(1, parse); took > most { // the fuzzer's own goroutines count too
			if took = allocated(5, parse); took > most {
				t.Errorf("Parse of %d octets took %d octets of memory, want at most %d", len(b), took, most)
			}
		}
		if err != nil {
			if p != nil {
				t.Errorf("Parse = %+v beside error %v, want nil", p, err)
			}
			if r := ResultFor(err, 0); r.Error == ErrorVendor || r.Text == "" {
				t.Errorf("ResultFor(%v) = %+v, want a code and a text", err, r)
			}
			return
		}
		out, err := p.Append(nil)
		if err != nil {
			t.Fatalf("Append(Parse(b)) = %v: what is accepted must be sendable; %+v", err, p.Message)
		}
		again, err := Parse(out)
		if err != nil {
			t.Fatalf("Parse(Append(Parse(b))) = %v for %+v", err, p.Message)
		}
		if !reflect.DeepEqual(p, again) {
			t.Errorf("parsed %+v, then %+v", p.Message, again.Message)
		}
		if twice, err := again.Append(nil); err != nil || !bytes.Equal(out, twice) {
			t.Errorf("appended %x, then %x, %v", out, twice, err)
		}
	})
}

// The attacker is whoever got through TLS: it says what it likes in pieces of
// any size.
func FuzzReadPacket(f *testing.F) {
	var all []byte
	for _, m := range full() {
		b := encode(f, m)
		all = append(all, b...)
		f.Add(b, uint16(4096))
	}
	f.Add(all, uint16(MaxMessage))
	f.Add([]byte{0xc8, 3, 0xff, 0xff}, uint16(MaxMessage))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint16(MaxMessage))
	f.Fuzz(func(t *testing.T, b []byte, most uint16) {
		r := bufio.NewReaderSize(bytes.NewReader(b), 16)
		var got []byte
		for {
			p, err := ReadPacket(r, int(most))
			if err == io.EOF && len(got) != len(b) {
				t.Errorf("the stream ended after %d octets of %d, want an error that says so", len(got), len(b))
			}
			if err != nil {
				break
			}
			if len(p) < headerLen || len(p) > int(most) || checkFlags(p) != nil {
				t.Fatalf("ReadPacket = %x, want a header and at most %d octets", p, most)
			}
			got = append(got, p...)
		}
		if !bytes.HasPrefix(b, got) {
			t.Errorf("read %x from %x", got, b)
		}
	})
}
