package config

import "testing"

func TestRate(t *testing.T) {
	for text, want := range map[string]Rate{"8kbit": 8_000, "1500kbit": 1_500_000, "20Mbit": 20_000_000, "2000Mbit": 2_000_000_000, "1Gbit": 1_000_000_000, "0kbit": 0} {
		if got, ok := parseRate(text); !ok || got != want {
			t.Errorf("parseRate(%q) = %d, %v, want %d", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "8", "kbit", "-1kbit", "+1kbit", "1.5Mbit", "1 Mbit", "1mbit", "1KBit", "1Mbit/s", "4294967296Gbit", "0x1Mbit"} {
		if got, ok := parseRate(text); ok {
			t.Errorf("parseRate(%q) = %d, want it refused", text, got)
		}
	}
	for r, want := range map[Rate]string{8_000: "8kbit", 1_500_000: "1500kbit", 20_000_000: "20Mbit", 2_000_000_000: "2Gbit", 1: "1bit", 0: "0bit"} {
		if got := r.String(); got != want {
			t.Errorf("Rate(%d) = %q, want %q", uint64(r), got, want)
		}
	}
}
