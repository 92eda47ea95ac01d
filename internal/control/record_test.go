package control

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// fill sets everything below v to something that is not zero, another thing each
// time.
func fill(t *testing.T, v reflect.Value, n *byte) {
	*n++
	switch x := v.Addr().Interface().(type) {
	case *secret.Value:
		*x = secret.New([]byte{*n, 1, 2})
		return
	case *netip.Addr:
		*x = netip.AddrFrom4([4]byte{192, 0, 2, *n})
		return
	case *netip.Prefix:
		*x = netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, *n}), 32)
		return
	case *time.Time:
		*x = time.Unix(1e9+int64(*n), 0).UTC()
		return
	case *session.State:
		*x = session.Established
		return
	case **wire.Packet:
		*x = &wire.Packet{ConnID: uint32(*n), Ns: 2, Nr: 3, Message: &wire.Hello{}}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), n)
		}
	case reflect.Array, reflect.Slice:
		if v.Kind() == reflect.Slice {
			v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		}
		for i := range v.Len() {
			fill(t, v.Index(i), n)
		}
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d", *n))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n))
	case reflect.Int64:
		v.SetInt(int64(*n))
	default:
		t.Fatalf("a record has a field of type %v: fill does not know it", v.Type())
	}
}

// reveal replaces secrets by their octets, so that records can be compared.
func reveal(r *Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%+v %x %x", *r, r.ResumeKey.Reveal(), r.NextKey.Reveal())
	for _, p := range r.Unacked {
		fmt.Fprintf(&b, " %+v %T", *p, p.Message)
	}
	for _, s := range r.Sessions {
		fmt.Fprintf(&b, " %+v %x %x %x %x", *s.Offer, s.PrivateKey.Reveal(), s.PresharedKey.Reveal(), s.OfferSecret.Reveal(), s.NextPresharedKey.Reveal())
	}
	text := b.String()
	for _, s := range r.Sessions {
		text = strings.ReplaceAll(text, fmt.Sprintf("%p", s.Offer), "offer")
	}
	for _, p := range r.Unacked { // pointers print as addresses
		text = strings.ReplaceAll(text, fmt.Sprintf("%p", p), "packet")
		text = strings.ReplaceAll(text, fmt.Sprintf("%p", p.Message), "message")
	}
	return text
}

func TestRecordRoundTrip(t *testing.T) {
	var r Record
	var n byte
	fill(t, reflect.ValueOf(&r).Elem(), &n)
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := reveal(got), reveal(&r); got != want {
		t.Errorf("a record came back as\n%s\nwant\n%s", got, want)
	}
	if strings.Contains(reveal(got), "<nil>") {
		t.Errorf("a field was not set: %s", reveal(got))
	}
}

func TestRecordOfARealConnection(t *testing.T) {
	p := established(t)
	p.cut()
	p.node.step(CloseSession{LocalID: p.node.m.sessions[0].LocalID, Result: wire.Result{Code: wire.CDNAdministrative}})
	for _, s := range []*side{p.node, p.gateway} {
		b, err := s.saved.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		again, err := got.Encode()
		if err != nil || string(again) != string(b) {
			t.Errorf("%s: decode and encode give another record: %v", s.name, err)
		}
	}
}

// TestRecordOfTheFirstVersion: it wrote keys as lists of numbers.
func TestRecordOfTheFirstVersion(t *testing.T) {
	var want [keySize]byte
	for i := range want {
		want[i] = byte(i)
	}
	list := strings.ReplaceAll(fmt.Sprint(want), " ", ",")
	r, err := DecodeRecord([]byte(`{"Version":1,"Sessions":[{"State":"established","PublicKey":` + list + `,"PeerKey":` + list + `}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if s := r.Sessions[0]; s.PublicKey != want || s.PeerKey != want {
		t.Errorf("keys %x and %x, want %x", s.PublicKey, s.PeerKey, want)
	}
}

func TestRecordsThatAreRefused(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"newer version", `{"Version":3}`, "version 3, this daemon knows up to 2"},
		{"no version", `{}`, "version 0"},
		{"no JSON", `{`, "record of a control connection"},
		{"bad message", `{"Version":1,"LocalID":7,"Unacked":["AAEC"]}`, "record of connection 7"},
		{"short key", `{"Version":2,"Sessions":[{"PeerKey":"AAEC"}]}`, "a key of 3 octets"},
		{"bad state", `{"Version":1,"Sessions":[{"State":"asleep"}]}`, "asleep"},
	}
	for _, tt := range tests {
		if _, err := DecodeRecord([]byte(tt.in)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: DecodeRecord = %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	p := established(t)
	p.cut()
	p.connect()
	p.carry(2)
	for _, s := range []*side{p.node, p.gateway} {
		r := s.m.Record()
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
			text := fmt.Sprintf(verb, *r) + fmt.Sprintf(verb, r.Sessions) + fmt.Sprintf(verb, &r.Sessions[0])
			for _, v := range []secret.Value{r.ResumeKey, r.NextKey, r.Sessions[0].PrivateKey, r.Sessions[0].PresharedKey} {
				if v.IsZero() {
					continue
				}
				for _, form := range []string{string(v.Reveal()), fmt.Sprintf("%x", v.Reveal()), fmt.Sprint(v.Reveal()), fmt.Sprintf("%#v", v.Reveal())} {
					if strings.Contains(text, form) {
						t.Errorf("%s: %s prints a secret", s.name, verb)
					}
				}
			}
		}
	}
}
