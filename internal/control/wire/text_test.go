package wire

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestCleanText(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", ""},
		{"10.20.0.0/16 – nicht erlaubt", "10.20.0.0/16 – nicht erlaubt"},
		{"a\nb\x00\x1b[31m\x7f", `a\u000ab\u0000\u001b[31m\u007f`},
		{"\xff\xfeok", "\ufffd\ufffdok"},
		{"a\u202eb\u2028", `a\u202eb\u2028`},
		{strings.Repeat("a", 256), strings.Repeat("a", 255)},
		{strings.Repeat("ü", 128), strings.Repeat("ü", 127)},
		{strings.Repeat("\n", 100), strings.Repeat(`\u000a`, 42)},
	}
	for _, tt := range tests {
		got := cleanText(tt.in)
		if got != tt.want {
			t.Errorf("cleanText(%q) = %q, want %q", tt.in, got, tt.want)
		}
		if again := cleanText(got); again != got {
			t.Errorf("cleanText(%q) = %q, want no change", got, again)
		}
	}
}

// What a peer is told is cut where characters end.
func TestLongTextIsCut(t *testing.T) {
	b := encode(t, &StopCCN{Result: Result{Code: 1, Text: strings.Repeat("ü", 600)}})
	p, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	text := p.Message.(*StopCCN).Result.Text
	if len(text) > MaxText || !utf8.ValidString(text) || len(text) < MaxText-1 {
		t.Errorf("text of %d octets came back, want at most %d, whole characters", len(text), MaxText)
	}
}

// constants reads the numbers of one type from numbers.go.
func constants(t *testing.T, typ string) (values []int) {
	source, err := os.ReadFile("numbers.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^\t\w+\s+`+typ+`\s+= (\d+)`).FindAllStringSubmatch(string(source), -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, n)
	}
	if len(values) < 5 {
		t.Fatalf("numbers.go has %d constants of type %s, want more", len(values), typ)
	}
	return values
}

func TestEveryNumberHasItsWords(t *testing.T) {
	for _, n := range constants(t, "MessageType") {
		if s := MessageType(n).String(); strings.HasPrefix(s, "message ") {
			t.Errorf("MessageType(%d).String() = %q, want a name", n, s)
		}
	}
	for _, n := range constants(t, "ErrorCode") {
		if s := ErrorCode(n).String(); strings.HasPrefix(s, "error code ") {
			t.Errorf("ErrorCode(%d).String() = %q, want words", n, s)
		}
	}
	for _, n := range constants(t, "Cause") {
		if s := Cause(n).String(); strings.HasPrefix(s, "cause ") {
			t.Errorf("Cause(%d).String() = %q, want words", n, s)
		}
	}
	for _, n := range constants(t, "ResultCode") {
		stop, cdn := ResultCode(n).Text(TypeStopCCN), ResultCode(n).Text(TypeCDN)
		if strings.HasPrefix(stop, "result ") && strings.HasPrefix(cdn, "result ") {
			t.Errorf("ResultCode(%d).Text() = %q and %q, want words in one message", n, stop, cdn)
		}
	}
	for typ := range specs {
		if s := typ.String(); strings.HasPrefix(s, "message ") {
			t.Errorf("MessageType(%d).String() = %q, want a name", typ, s)
		}
	}
}

func TestStrings(t *testing.T) {
	tests := []struct{ got, want string }{
		{TypeHello.String(), "HELLO"},
		{TypeCertRequest.String(), "CRQ"},
		{TypeKeyChanged.String(), "KCN"},
		{MessageType(7).String(), "message 7"},
		{(vendorType | 99).String(), "message 99 of vendor 32473"},
		{ErrorCode(99).String(), "error code 99"},
		{Cause(99).String(), "cause 99"},
		{CauseRevoked.Advice().String(), "give up"},
		{CauseBusy.Advice().String(), "retry later"},
		{CauseClonedState.Advice().String(), "reconnect"},
		{Advice(9).String(), "advice 9"},
		{Result{Code: StopShuttingDown}.Describe(TypeStopCCN), "shutting down"},
		{Result{Code: 6}.Describe(TypeCDN), "result code 6"},
		{Result{Code: StopNotAuthorized, Cause: CauseRevoked, Text: "by\nroot"}.Describe(TypeStopCCN),
			`not authorized for a control connection: the node was revoked: "by\u000aroot"`},
		{Result{Code: StopError, Error: ErrorRange}.Describe(TypeStopCCN), "error: a value is out of range"},
		{Result{Code: StopVersion, Error: 1}.Describe(TypeStopCCN), "protocol version not supported: the highest is 1"},
		{Result{Code: CDNNoFacilities, Cause: CausePoolExhausted}.Describe(TypeCDN), "no facilities at present: no address is free now"},
		{Result{Code: CDNAdministrative, Cause: CauseCertificate}.Describe(TypeCertReply), "ended for administrative reasons: the certificate cannot be renewed"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}
