package tunnel

import (
	"net/netip"
	"slices"
)

// prefix is short for what most of this package is about.
type prefix = netip.Prefix

// covers reports whether all of inner lies in outer.
func covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// isDefault reports whether p is everything of its family.
func isDefault(p netip.Prefix) bool { return p.Bits() == 0 }

// hostPrefixes are the addresses alone: /32 and /128.
func hostPrefixes(addrs []netip.Addr) (all []netip.Prefix) {
	for _, a := range addrs {
		all = append(all, netip.PrefixFrom(a, a.BitLen()))
	}
	return all
}

// sortPrefixes returns the prefixes in order, each once.
func sortPrefixes(ps []netip.Prefix) []netip.Prefix {
	ps = slices.Clone(ps)
	slices.SortFunc(ps, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(ps)
}

// samePrefixes compares without regard to order.
func samePrefixes(a, b []netip.Prefix) bool {
	return slices.Equal(sortPrefixes(a), sortPrefixes(b))
}
