package noise

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

// CookieChecker makes whoever wants a handshake under load show that it can
// receive at its address (paper, section 5.4.7). One serves a whole socket,
// whatever number of static keys; it is for one goroutine.
type CookieChecker struct {
	cookies *mac // keyed with the secret; nil before the first
	renewed Instant
}

// NewCookieChecker has no secret yet; the first Reply makes one.
func NewCookieChecker() *CookieChecker { return &CookieChecker{} }

// CheckMAC2 reports whether msg, a message whose mac1 is right, carries the
// cookie that was given to src at most 120 s ago.
func (c *CookieChecker) CheckMAC2(msg []byte, src netip.AddrPort, now Instant) bool {
	if c.expired(now) || Classify(msg) != KindInitiation && Classify(msg) != KindResponse {
		return false
	}
	at := len(msg) - macSize
	return newMAC(c.cookie(src)[:]).equal(msg[:at], msg[at:])
}

// Reply appends a cookie reply of 64 octets to dst, the answer to msg, whose
// mac1 is right for k. It is shorter than either message it answers, so nobody
// gains by having it sent to another.
func (c *CookieChecker) Reply(dst []byte, k *StaticKey, msg []byte, src netip.AddrPort, now Instant) []byte {
	if c.expired(now) {
		var secret [blake2s.Size]byte
		rand.Read(secret[:]) // never fails
		c.cookies, c.renewed = newMAC(secret[:]), now
	}
	out, reply := grow(dst, CookieReplySize)
	binary.LittleEndian.PutUint32(reply, uint32(KindCookieReply))
	copy(reply[cookieReceiverAt:cookieNonceAt], msg[senderAt:])
	nonce := reply[cookieNonceAt:cookieSealedAt]
	rand.Read(nonce)
	aead, err := chacha20poly1305.NewX(k.cookieKey[:])
	if err != nil {
		panic(err) // the key has the right size by its type
	}
	at := len(msg) - 2*macSize
	aead.Seal(reply[:cookieSealedAt], nonce, c.cookie(src)[:], msg[at:at+macSize])
	return out
}

func (c *CookieChecker) expired(now Instant) bool {
	return c.cookies == nil || now.Sub(c.renewed) >= CookieRefreshTime
}

// cookie is what src has to show: a MAC of its address and port. IPv4 in its
// mapped form is the same address.
func (c *CookieChecker) cookie(src netip.AddrPort) *[macSize]byte {
	addr := src.Addr().As16()
	return c.cookies.of(binary.BigEndian.AppendUint16(addr[:], src.Port()))
}
