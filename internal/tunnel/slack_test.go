package tunnel

import "testing"

func TestSlack(t *testing.T) {
	var s slack
	for i, look := range []struct {
		came int64
		want bool
	}{
		{0, false}, {5, false}, {5, false}, // few
		{300, false}, {900, false}, {900, true}, {900, false}, // many, then quiet, once
		{1000, false}, {1000, false}, // few again
		{1200, false}, {1200, true}, // and many in all
	} {
		if got := s.due(look.came); got != look.want {
			t.Errorf("look %d: due(%d) = %v, want %v", i+1, look.came, got, look.want)
		}
	}
}
