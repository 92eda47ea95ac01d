package secret

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestValueIsNeverShown(t *testing.T) {
	type holder struct {
		Key  Value
		Ptr  *Value
		priv Value
	}
	v := New([]byte("hunter2hunter2"))
	h := holder{Key: v, Ptr: &v, priv: v}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", v, "holder", h)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", v, "holder", h)
	out := log.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		out += fmt.Sprintf(verb, v) + fmt.Sprintf(verb, h) + fmt.Sprintf(verb, &h)
	}
	if _, err := json.Marshal(h); err == nil {
		t.Error("a secret was marshalled as JSON")
	}
	for _, leak := range []string{"hunter", "68756e746572", "104 117 110"} {
		if strings.Contains(out, leak) {
			t.Errorf("%q shows in: %s", leak, out)
		}
	}
}

func TestValueOwnsItsBytes(t *testing.T) {
	b := []byte{1, 2, 3}
	v := New(b)
	b[0] = 9
	if !v.Equal(New([]byte{1, 2, 3})) {
		t.Error("the value changed with the caller's slice")
	}
	w := v
	w.Wipe()
	if !bytes.Equal(v.Reveal(), make([]byte, 3)) {
		t.Error("Wipe left a copy of the bytes")
	}
}
