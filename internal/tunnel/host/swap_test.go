package host

import "testing"

func TestSwap(t *testing.T) {
	const headings = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	for text, want := range map[string]bool{
		"": false, headings: false,
		headings + "/dev/dm-1                               partition\t8388604\t0\t-2\n": true,
	} {
		if got := anySwap([]byte(text)); got != want {
			t.Errorf("anySwap(%q) = %v, want %v", text, got, want)
		}
	}
	if _, err := (*Linux)(nil).Swap(); err != nil {
		t.Errorf("Swap of this machine: %v", err)
	}
}
