package wire

import "encoding/binary"

// A Splitter finds the messages in a stream that somebody else reads or writes,
// for a [Trace]. The zero Splitter is at the beginning of a stream.
type Splitter struct {
	pending []byte // the beginning of a message
	lost    bool
}

// Feed takes what comes next in the stream and calls each for every message that
// is now complete; it may not keep the octets. After something that is no
// control message there are no more messages, as for [ReadPacket].
func (s *Splitter) Feed(b []byte, each func(message []byte)) {
	if s.lost {
		return
	}
	s.pending = append(s.pending, b...)
	rest := s.pending
	for len(rest) >= 4 {
		n := int(binary.BigEndian.Uint16(rest[2:]))
		if checkFlags(rest) != nil || n < headerLen {
			s.lost, s.pending = true, nil
			return
		}
		if n > len(rest) {
			break
		}
		each(rest[:n:n])
		rest = rest[n:]
	}
	s.pending = append(s.pending[:0], rest...)
}
