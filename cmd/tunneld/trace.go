package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// traceFile is what a daemon's control messages are written to. What is there
// already stays: a daemon that is started anew, perhaps after a crash, goes on
// behind it. A block is there whole or not at all.
type traceFile struct {
	f    *os.File
	size int64
}

// openTrace opens a trace for writing. The file is the daemon's user's alone; it
// must be new, empty, or a trace.
func openTrace(path string) (*traceFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--trace: %w", err)
	}
	t, err := newTraceFile(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--trace: %s: %w", path, err), f.Close())
	}
	return t, nil
}

func newTraceFile(f *os.File) (*traceFile, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG: // whoever reads a pipe slowly would hold up sessions
		return nil, errors.New("this is no regular file")
	case int(st.Uid) != os.Geteuid():
		return nil, errors.New("this belongs to another user, who could read it: remove it or choose another file")
	case !isTrace(f, st.Size):
		return nil, errors.New("this is no trace, or one that breaks off, and is not written to: remove it or choose another file")
	}
	return &traceFile{f, st.Size}, f.Chmod(0o600)
}

// isTrace reports whether r, of that size, is empty, or begins and ends as
// pcapng does on this machine: with a section header, and with a block whose
// length stands at its beginning and at its end (draft-ietf-opsawg-pcapng,
// section 3.1).
func isTrace(r io.ReaderAt, size int64) bool {
	if size == 0 {
		return true
	}
	var first, last [4]byte
	if _, err := r.ReadAt(first[:], 0); err != nil || !bytes.Equal(first[:], []byte("\n\r\r\n")) {
		return false
	}
	if _, err := r.ReadAt(last[:], size-4); err != nil {
		return false
	}
	begin := size - int64(binary.LittleEndian.Uint32(last[:]))
	_, err := r.ReadAt(first[:], begin+4)
	return err == nil && first == last && begin <= size-12 // no block is smaller
}

// Write writes one block.
func (t *traceFile) Write(b []byte) (int, error) {
	n, err := t.f.Write(b)
	if err != nil {
		return n, errors.Join(err, t.f.Truncate(t.size)) // as when the disk is full
	}
	t.size += int64(n)
	return n, nil
}

func (t *traceFile) Close() error { return t.f.Close() }
