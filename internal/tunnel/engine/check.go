package engine

import (
	"fmt"
	"net/netip"

	"tunneld/internal/session"
)

const (
	maxName = 15 // octets of an interface's name
	minMTU  = 68 // what the kernel takes for IPv4; IPv6 needs 1280
	maxMTU  = 65535
)

// Check says what is wrong with c, whatever the host has.
func (c DeviceConfig) Check() error {
	if c.Interface == "" || len(c.Interface) > maxName {
		return fmt.Errorf("interface name %q: want 1 to %d octets", c.Interface, maxName)
	}
	if c.MTU < minMTU || c.MTU > maxMTU {
		return fmt.Errorf("interface %s: MTU %d: want %d to %d", c.Interface, c.MTU, minMTU, maxMTU)
	}
	return nil
}

// Check says what is wrong with s in itself, behind an interface with that
// public key.
func (s Session) Check(own PublicKey) error {
	switch {
	case s.PeerKey == PublicKey{} || s.PeerKey == own:
		return fmt.Errorf("session %v: public key %v is no peer's", s.ID, s.PeerKey)
	case !s.PresharedKey.IsZero() && len(s.PresharedKey.Reveal()) != KeySize:
		return fmt.Errorf("session %v: preshared key of %d octets: want %d or none", s.ID, len(s.PresharedKey.Reveal()), KeySize)
	}
	return CheckPrefixes(s.ID, s.AllowedIPs)
}

// CheckPrefixes says what is wrong with the inner prefixes of a session.
func CheckPrefixes(id session.ID, prefixes []netip.Prefix) error {
	for _, p := range prefixes {
		if !p.IsValid() || p.Addr().Is4In6() {
			return fmt.Errorf("session %v: %v is no prefix", id, p)
		}
	}
	return nil
}
