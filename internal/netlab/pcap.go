package netlab

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// PcapVar names the environment variable with a directory: each wire then
// writes what it delivers, in both directions, to a capture file there.
const PcapVar = "NETLAB_PCAP"

// pcapWriter writes the classic capture format of libpcap. Its methods do
// nothing on nil.
type pcapWriter struct {
	f *os.File
	w *bufio.Writer
}

func (w *Wire) openPcap() error {
	dir := os.Getenv(PcapVar)
	if dir == "" {
		return nil
	}
	f, err := os.Create(filepath.Join(dir, w.Name()+".pcap"))
	if err != nil {
		return fmt.Errorf("capture file for $%s: %w", PcapVar, err)
	}
	w.pcap = &pcapWriter{f: f, w: bufio.NewWriter(f)}
	header := make([]byte, 24)
	binary.LittleEndian.PutUint32(header, 0xa1b2c3d4) // microseconds, this byte order
	binary.LittleEndian.PutUint16(header[4:], 2)
	binary.LittleEndian.PutUint16(header[6:], 4)
	binary.LittleEndian.PutUint32(header[16:], maxFrame)
	binary.LittleEndian.PutUint32(header[20:], 1) // LINKTYPE_ETHERNET
	w.pcap.w.Write(header)
	return nil
}

func (p *pcapWriter) write(frame []byte) {
	if p == nil {
		return
	}
	now := time.Now()
	header := make([]byte, 16)
	binary.LittleEndian.PutUint32(header, uint32(now.Unix()))
	binary.LittleEndian.PutUint32(header[4:], uint32(now.Nanosecond()/1000))
	binary.LittleEndian.PutUint32(header[8:], uint32(len(frame)))
	binary.LittleEndian.PutUint32(header[12:], uint32(len(frame)))
	p.w.Write(header)
	p.w.Write(frame)
}

func (p *pcapWriter) close() {
	if p == nil {
		return
	}
	p.w.Flush()
	p.f.Close()
}
