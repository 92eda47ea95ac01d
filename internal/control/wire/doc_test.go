package wire

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// protocolText is what docs says of AVPs.
func protocolText(t *testing.T) string {
	var text string
	for _, f := range []string{"protocol.md", "protocol-avps.md"} {
		b, err := os.ReadFile("../../../docs/" + f)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		text += string(b)
	}
	if text == "" {
		t.Fatal("docs/protocol.md is missing")
	}
	return text
}

// section is the text from the heading to the next one.
func section(t *testing.T, text, heading string) string {
	_, s, ok := strings.Cut(text, "\n"+heading+"\n")
	if !ok {
		t.Errorf("docs has no heading %q", heading)
	}
	s, _, _ = strings.Cut(s, "\n#")
	return s
}

// rows are the lines of the section's table that begin with a number, as far as
// the code knows their columns.
func rows(section string, columns int) (found []string) {
	for _, line := range regexp.MustCompile(`(?m)^\| v?\d+ \|.*`).FindAllString(section, -1) {
		cells := strings.Split(line, "|")
		found = append(found, strings.Join(cells[:min(columns+1, len(cells))], "|")+"|")
	}
	slices.Sort(found)
	return found
}

func compareRows(t *testing.T, what string, got, want []string) {
	slices.Sort(want)
	want = slices.Compact(want)
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("docs, %s: no row %q", what, w)
		}
	}
	for _, g := range got {
		if !slices.Contains(want, g) {
			t.Errorf("docs, %s: row %q is not what the code does", what, g)
		}
	}
	if len(got) != len(want) {
		t.Errorf("docs, %s: %d rows, want %d", what, len(got), len(want))
	}
}

// docNumber writes our own numbers with a v.
func docNumber(vendor, number uint16) string {
	if vendor == VendorID {
		return fmt.Sprintf("v%d", number)
	}
	return fmt.Sprint(number)
}

func attrRow(a *attr) string {
	length := fmt.Sprint(avpHeaderLen + a.min)
	if a.max != a.min {
		length += fmt.Sprintf("-%d", avpHeaderLen+a.max)
	}
	m := 0
	if a.mandatory {
		m = 1
	}
	return fmt.Sprintf("| %s | %s | %s | %d |", docNumber(a.vendor, a.number), a.name, length, m)
}

func fieldRow(f field) string {
	there := "may"
	switch {
	case f.required && f.repeats:
		there = "must, list"
	case f.required:
		there = "must"
	case f.repeats:
		there = "list"
	}
	return fmt.Sprintf("| %s | %s | %s |", docNumber(f.vendor, f.number), f.name, there)
}

// Whoever writes the other end has nothing but the document, so its tables are
// held against those of the code.
func TestDocumentListsEveryAVP(t *testing.T) {
	text := protocolText(t)
	want := map[uint16][]string{
		ietf:     {attrRow(&attr{ietf, numMessageType, "Message Type", true, 2, 2})},
		VendorID: {attrRow(&attr{VendorID, numMessageType, "Message Type", false, 2, 2})},
	}
	for _, a := range allAttrs() {
		want[a.vendor] = append(want[a.vendor], attrRow(a))
	}
	compareRows(t, "standard AVPs", rows(section(t, text, "## Standard AVPs"), 4), want[ietf])
	compareRows(t, "own AVPs", rows(section(t, text, "## Own AVPs"), 4), want[VendorID])
}

func TestDocumentListsEveryMessage(t *testing.T) {
	text := protocolText(t)
	for typ, s := range specs {
		vendor, number := typ.number()
		heading := fmt.Sprintf("### %v (%s)", typ, docNumber(vendor, number))
		var want []string
		for _, f := range s.fields {
			want = append(want, fieldRow(f))
		}
		compareRows(t, heading, rows(section(t, text, heading), 3), want)
	}
}

func TestDocumentListsEveryCode(t *testing.T) {
	text := protocolText(t)
	var causes, stops, cdns, errs []string
	for _, n := range constants(t, "Cause") {
		causes = append(causes, fmt.Sprintf("| %d | %v | %v |", n, Cause(n), Cause(n).Advice()))
	}
	for n, s := range stopTexts {
		stops = append(stops, fmt.Sprintf("| %d | %s |", n, s))
	}
	for n, s := range cdnTexts {
		cdns = append(cdns, fmt.Sprintf("| %d | %s |", n, s))
	}
	for n, s := range errorTexts {
		errs = append(errs, fmt.Sprintf("| %d | %s |", n, s))
	}
	compareRows(t, "causes", rows(section(t, text, "## Causes"), 3), causes)
	compareRows(t, "result codes of StopCCN", rows(section(t, text, "### Result codes of StopCCN"), 2), stops)
	compareRows(t, "result codes of CDN", rows(section(t, text, "### Result codes of CDN and CRP"), 2), cdns)
	compareRows(t, "error codes", rows(section(t, text, "### Error codes"), 2), errs)
}

// Two fields of one number in one message would take each other's values.
func TestNumbersAreUnique(t *testing.T) {
	names := map[string]string{}
	for typ, s := range specs {
		seen := map[string]bool{}
		for _, f := range s.fields {
			n := docNumber(f.vendor, f.number)
			if seen[n] {
				t.Errorf("AVP %s stands twice in the table of %v", n, typ)
			}
			seen[n] = true
			if other, ok := names[n]; ok && other != f.name {
				t.Errorf("AVP %s is named %q and %q", n, f.name, other)
			}
			names[n] = f.name
		}
	}
}
