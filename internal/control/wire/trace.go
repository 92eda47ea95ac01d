package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
)

// A Trace writes control messages to a capture file in the pcapng format
// (draft-ietf-opsawg-pcapng), each one wrapped as the UDP datagram that L2TPv3
// would send it in (RFC 3931, section 4.1.2), so that a stock dissector shows
// them. What must not be seen is zeroed, see [Trace.Write].
//
// A Trace is used by one goroutine at a time.
type Trace struct {
	w     io.Writer
	err   error  // the first one
	block []byte // kept for its memory
}

// A Path is the transport that carried a message.
type Path struct {
	Local, Remote netip.AddrPort
	Dialled       bool // by this end, which makes it the initiator
}

// Numbers of pcapng, sections 3.5 and 4.
const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockPacket    = 6 // enhanced

	byteOrderMagic = 0x1a2b3c4d
	linkTypeIPv4   = 228

	optEnd         = 0
	optComment     = 1
	optFlags       = 2 // of a packet
	optApplication = 4 // of a section
	optName        = 2 // of an interface
	optResolution  = 9 // of an interface's times

	flagInbound  = 1
	flagOutbound = 2
	nanoseconds  = 9 // decimal digits after a second
)

// NewTrace begins a section of a capture file on w, which may follow other
// sections. Each call of w.Write gets one whole block.
func NewTrace(w io.Writer) (*Trace, error) {
	t := &Trace{w: w}
	b := binary.LittleEndian.AppendUint32(t.begin(blockSection), byteOrderMagic)
	b = append(b, 1, 0, 0, 0)                           // version 1.0
	b = binary.LittleEndian.AppendUint64(b, ^uint64(0)) // of unknown length
	b = appendOption(b, optApplication, []byte("tunneld"))
	t.end(appendOption(b, optEnd, nil))
	b = append(t.begin(blockInterface), linkTypeIPv4, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, maxDatagram)
	b = appendOption(b, optName, []byte("control"))
	b = appendOption(b, optResolution, []byte{nanoseconds})
	t.end(appendOption(b, optEnd, nil))
	return t, t.err
}

// Write adds a message that p carried at a time: its octets as they were, known
// or not, well-formed or not. Values of AVPs that prove something, and of those
// this package does not know, are zeroed; their lengths stay. A comment names
// them, and what else is not as it was: the addresses of a transport that is not
// IPv4, the end of a message that no IPv4 datagram holds.
//
// After an error nothing is written any more, and the error comes again.
func (t *Trace) Write(p Path, sent bool, at time.Time, message []byte) error {
	message, notes := blank(message)
	if !p.isIPv4() {
		from, to := p.order(sent)
		notes = append(notes, fmt.Sprintf("from %v to %v", from, to))
	}
	whole := len(message)
	if whole > maxWrapped {
		message = message[:maxWrapped]
		notes = append(notes, fmt.Sprintf("cut after %d of %d octets", maxWrapped, whole))
	}
	datagram := wrap(p, sent, message)
	ns := uint64(at.UnixNano())
	b := t.begin(blockPacket)
	b = binary.LittleEndian.AppendUint32(b, 0) // the only interface
	b = binary.LittleEndian.AppendUint32(b, uint32(ns>>32))
	b = binary.LittleEndian.AppendUint32(b, uint32(ns))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(datagram)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(datagram)+whole-len(message)))
	b = pad(append(b, datagram...))
	flags := uint32(flagInbound)
	if sent {
		flags = flagOutbound
	}
	b = appendOption(b, optFlags, binary.LittleEndian.AppendUint32(nil, flags))
	if len(notes) > 0 {
		b = appendOption(b, optComment, []byte(strings.Join(notes, "; ")))
	}
	t.end(appendOption(b, optEnd, nil))
	return t.err
}

// begin begins a block; its length comes with end.
func (t *Trace) begin(kind uint32) []byte {
	return append(binary.LittleEndian.AppendUint32(t.block[:0], kind), 0, 0, 0, 0)
}

// end writes the block with its length at both ends, unless one before failed.
func (t *Trace) end(b []byte) {
	n := uint32(len(b) + 4)
	binary.LittleEndian.PutUint32(b[4:], n)
	t.block = binary.LittleEndian.AppendUint32(b, n)
	if t.err == nil {
		_, t.err = t.w.Write(t.block)
	}
}

func appendOption(b []byte, code uint16, value []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	return pad(append(b, value...))
}

// pad fills b up to 32 bits; what stands before a value is whole already.
func pad(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }
