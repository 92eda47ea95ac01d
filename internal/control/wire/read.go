package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// firstRead is what a message may cost before its octets have arrived.
const firstRead = 512

// ReadPacket reads one message from r, delimited by its own Length field, for
// Parse. It looks at the first two octets before it waits for more, refuses a
// Length beyond max octets without reading on, and takes memory only as octets
// arrive: a long Length with nothing behind it costs next to nothing.
//
// The error is io.EOF where the stream ends between two messages,
// io.ErrUnexpectedEOF where it ends within one, an [*Error] where the octets are
// no control message, else what r gave. After any error the stream is of no
// more use. The result is the caller's to keep.
func ReadPacket(r *bufio.Reader, max int) ([]byte, error) {
	head, err := r.Peek(2)
	if err == nil {
		if err := checkFlags(head); err != nil {
			return nil, err
		}
		head, err = r.Peek(4)
	}
	if err != nil {
		return nil, cutShort(len(head), err)
	}
	n := int(binary.BigEndian.Uint16(head[2:]))
	if n < headerLen || n > max {
		return nil, lengthError("message of Length %d, want %d to %d", n, headerLen, max)
	}
	b := make([]byte, min(n, firstRead))
	for got := 0; ; {
		k, err := io.ReadFull(r, b[got:])
		if got += k; err != nil {
			return nil, cutShort(got, err)
		}
		if got == n {
			return b, nil
		}
		more := make([]byte, min(n, 2*got))
		copy(more, b)
		b = more
	}
}

// cutShort names the end of a stream that came within a message.
func cutShort(got int, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		if got == 0 {
			return io.EOF
		}
		return fmt.Errorf("wire: message cut short: %w", io.ErrUnexpectedEOF)
	}
	return err
}
