package carrier

import (
	"encoding/binary"
	"errors"
)

// The part of a yamux frame's header that matters here (yamux spec, "Framing"):
// version u8, type u8, flags u16, stream u32, length u32.
const (
	frameHeaderLen = 12
	frameData      = 0
	framePing      = 2
	frameGoAway    = 3
	flagSYN        = 1
)

// maxStray is how many frames that have no place in a control connection one
// transport may bring: more streams, pings, go-aways. yamux starts a goroutine
// for each ping and holds a window of 256 KiB for each stream, so their number
// must not be the peer's choice.
const maxStray = 64

var errStray = errors.New("peer opens streams or pings without end")

// frames counts stray frames in an incoming octet stream. The first stream and
// the go-away that says there will be no second are counted with them.
type frames struct {
	header [frameHeaderLen]byte
	have   int
	body   uint32 // octets of the current frame still to come
	stray  int
}

// scan follows p, the next octets of the stream.
func (f *frames) scan(p []byte) error {
	for len(p) > 0 {
		if f.body > 0 {
			n := min(uint32(min(len(p), 1<<30)), f.body)
			f.body -= n
			p = p[n:]
			continue
		}
		n := copy(f.header[f.have:], p)
		f.have += n
		p = p[n:]
		if f.have == frameHeaderLen {
			f.have = 0
			if err := f.frame(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *frames) frame() error {
	kind, flags := f.header[1], binary.BigEndian.Uint16(f.header[2:])
	if kind == frameData {
		f.body = binary.BigEndian.Uint32(f.header[8:])
	}
	if kind == framePing || kind == frameGoAway || flags&flagSYN != 0 {
		f.stray++
	}
	if f.stray > maxStray+2 {
		return errStray
	}
	return nil
}

// bodyFollows reports whether yamux will write a body after this header.
func bodyFollows(header []byte) bool {
	return len(header) == frameHeaderLen && header[1] == frameData && binary.BigEndian.Uint32(header[8:]) > 0
}
