package native

import "testing"

// TestCombineECN walks through RFC 6040, figure 4.
func TestCombineECN(t *testing.T) {
	const drop = 0xff
	for inner, row := range [4][4]byte{ // by outer mark: not, ECT(1), ECT(0), CE
		ecnNot:    {ecnNot, ecnNot, ecnNot, drop},
		ecnECT1:   {ecnECT1, ecnECT1, ecnECT1, ecnMarked},
		ecnECT0:   {ecnECT0, ecnECT1, ecnECT0, ecnMarked},
		ecnMarked: {ecnMarked, ecnMarked, ecnMarked, ecnMarked},
	} {
		for outer, want := range row {
			for _, v6 := range []bool{false, true} {
				p := form{v6: v6, payload: []byte("x")}.packet()
				setECN(p, byte(inner))
				got := byte(drop)
				if combineECN(p, byte(outer)) {
					got = innerECN(p)
				}
				if got != want {
					t.Errorf("inner %02b, outer %02b, v6 %v: mark %02b, want %02b", inner, outer, v6, got, want)
				}
				if wrong := valid(p); wrong != "" {
					t.Errorf("inner %02b, outer %02b, v6 %v: wrong %s", inner, outer, v6, wrong)
				}
			}
		}
	}
}
