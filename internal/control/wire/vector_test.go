package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite what is computed in testdata: packets, errors, comments; never an outcome")

// outcomes are the words for what a vector must come to.
var outcomes = map[string]error{
	"ok": nil, "header": ErrHeader, "length": ErrLength, "range": ErrRange, "missing": ErrMissing,
	"repeated": ErrRepeated, "hidden": ErrHidden, "unknown-message": ErrUnknownMessage,
	"unknown-avp": &UnknownAVPError{},
}

// A vector is one message in a file of testdata: lines "# note", fields "name:
// value", an empty line, then octets in hexadecimal with comments.
//
//	outcome    one of outcomes
//	canonical  "no" if we would write the message otherwise than it is here
//	packet     what it means, as JSON
//	error      what is wrong with it
//	result     what the peer is told
type vector struct {
	name   string
	notes  []string
	fields map[string]string
	octets []byte
}

func readVectors(t testing.TB) []vector {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("Glob(testdata/*.txt) = %v, %v, want the vectors", files, err)
	}
	var vs []vector
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		vs = append(vs, parseVector(t, strings.TrimSuffix(filepath.Base(f), ".txt"), string(text)))
	}
	return vs
}

func parseVector(t testing.TB, name, text string) vector {
	v := vector{name: name, fields: map[string]string{}}
	head, body, _ := strings.Cut(text, "\n\n")
	for line := range strings.Lines(head) {
		line = strings.TrimSuffix(line, "\n")
		if note, ok := strings.CutPrefix(line, "#"); ok {
			v.notes = append(v.notes, strings.TrimSpace(note))
			continue
		}
		key, value, ok := strings.Cut(line, ": ")
		if !ok {
			t.Fatalf("%s: line %q is neither a note nor a field", name, line)
		}
		v.fields[key] = value
	}
	for line := range strings.Lines(body) {
		line, _, _ = strings.Cut(line, "#")
		b, err := hex.DecodeString(strings.Join(strings.Fields(line), ""))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		v.octets = append(v.octets, b...)
	}
	if _, ok := outcomes[v.fields["outcome"]]; !ok {
		t.Fatalf("%s: unknown outcome %q", name, v.fields["outcome"])
	}
	return v
}

func (v vector) write(t testing.TB) {
	var b strings.Builder
	for _, n := range v.notes {
		if n != "" {
			fmt.Fprintf(&b, "# %s\n", n)
		}
	}
	for _, key := range []string{"outcome", "canonical", "packet", "error", "result"} {
		if value, ok := v.fields[key]; ok {
			fmt.Fprintf(&b, "%s: %s\n", key, value)
		}
	}
	b.WriteString("\n" + annotate(v.octets))
	if err := os.WriteFile(filepath.Join("testdata", v.name+".txt"), []byte(b.String()), 0o666); err != nil {
		t.Fatal(err)
	}
}

// annotate writes b as hexadecimal, a line a field, as far as it can be told.
func annotate(b []byte) string {
	var s strings.Builder
	line := func(part []byte, comment string) {
		for len(part) > 32 {
			fmt.Fprintf(&s, "%x\n", part[:32])
			part = part[32:]
		}
		fmt.Fprintf(&s, "%x  # %s\n", part, comment)
	}
	if len(b) < headerLen {
		if len(b) > 0 {
			line(b, "less than a header")
		}
		return s.String()
	}
	line(b[:2], "T, L, S, version")
	line(b[2:4], fmt.Sprintf("Length %d", binary.BigEndian.Uint16(b[2:])))
	line(b[4:8], "Control Connection ID")
	line(b[8:10], fmt.Sprintf("Ns %d", binary.BigEndian.Uint16(b[8:])))
	line(b[10:12], fmt.Sprintf("Nr %d", binary.BigEndian.Uint16(b[10:])))
	b = b[headerLen:]
	for len(b) > 0 {
		a, rest, err := splitAVP(b)
		if err != nil {
			line(b, "not an AVP")
			break
		}
		line(b[:6], describe(a))
		if len(a.value) > 0 {
			line(a.value, "value")
		}
		b = rest
	}
	return s.String()
}

func describe(a rawAVP) string {
	who, flags := "", ""
	if a.vendor != ietf {
		who = fmt.Sprintf(" of vendor %d", a.vendor)
	}
	if a.mandatory {
		flags += ", M"
	}
	if a.hidden {
		flags += ", H"
	}
	name := "unknown"
	if a.number == numMessageType {
		name = "Message Type"
	}
	for _, known := range allAttrs() {
		if known.vendor == a.vendor && known.number == a.number {
			name = known.name
		}
	}
	return fmt.Sprintf("%s (%d%s)%s, Length %d", name, a.number, who, flags, avpHeaderLen+len(a.value))
}

// packetJSON shows a packet; the type stands first because JSON has none.
func packetJSON(t testing.TB, p *Packet) string {
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%v %s", p.Message.Type(), b)
}

func TestVectors(t *testing.T) {
	failures, successes := 0, 0
	for _, v := range readVectors(t) {
		if v.fields["outcome"] == "ok" {
			successes++
		} else {
			failures++
		}
		t.Run(v.name, func(t *testing.T) { testVector(t, v) })
	}
	if failures <= successes {
		t.Errorf("%d vectors fail and %d succeed, want more failures", failures, successes)
	}
}

func testVector(t *testing.T, v vector) {
	p, err := Parse(v.octets)
	want := outcomes[v.fields["outcome"]]
	if _, ok := want.(*UnknownAVPError); ok {
		if _, ok := errors.AsType[*UnknownAVPError](err); !ok {
			t.Fatalf("Parse(%x) = %v, %v, want an UnknownAVPError", v.octets, p, err)
		}
	} else if !errors.Is(err, want) {
		t.Fatalf("Parse(%x) = %v, %v, want error %v", v.octets, p, err, want)
	}
	got := map[string]string{"outcome": v.fields["outcome"]}
	if err != nil {
		if p != nil {
			t.Errorf("Parse(%x) = %v beside an error, want nil", v.octets, p)
		}
		r, typ := ResultFor(err, 0), TypeOf(err)
		message := "StopCCN"
		if typ.OfSession() {
			message = "CDN"
		}
		got["error"] = err.Error()
		got["result"] = fmt.Sprintf("%s %d/%d %s", message, r.Code, r.Error, r.Text)
	} else {
		got["packet"] = packetJSON(t, p)
		out, err := p.Append(nil)
		if err != nil {
			t.Fatalf("Append(%s) = %v, want the octets", got["packet"], err)
		}
		switch same := bytes.Equal(out, v.octets); {
		case !same && v.fields["canonical"] != "no":
			t.Errorf("Append(Parse(b)) = %x, want b = %x", out, v.octets)
		case same && v.fields["canonical"] == "no":
			t.Errorf("Append(Parse(b)) = b, but the vector says that it is not canonical")
		}
	}
	if c, ok := v.fields["canonical"]; ok {
		got["canonical"] = c
	}
	if *update {
		v.fields = got
		v.write(t)
		return
	}
	for key, want := range v.fields {
		if got[key] != want {
			t.Errorf("%s = %s, want %s", key, got[key], want)
		}
	}
	for key := range got {
		if _, ok := v.fields[key]; !ok {
			t.Errorf("%s is missing in the vector; go test -update adds it", key)
		}
	}
}
