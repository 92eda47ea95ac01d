package control

import (
	"net"
	"sync"
	"time"

	"tunneld/internal/control/wire"
)

// outbox is what is to be written to a transport. A goroutine writes while there
// is something; a connection at rest has none, since a gateway has thousands.
type outbox struct {
	nc net.Conn
	// spawn starts the writer; ended is called once, when nc is closed.
	spawn func(func())
	ended func()

	mu      sync.Mutex // guards everything below
	queue   []*wire.Packet
	writing bool // a goroutine has the queue
	over    bool // close the transport when the queue is empty
	failed  bool // nothing more can be written
}

// push queues a message; false: the peer does not read what waits.
func (o *outbox) push(p *wire.Packet) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed || o.over {
		return true // lost with the transport
	}
	if len(o.queue) == sendQueue {
		return false
	}
	o.queue = append(o.queue, p)
	o.wakeLocked()
	return true
}

// finish closes the transport when what is queued has been written. It must be
// called once.
func (o *outbox) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over = true
	o.wakeLocked()
}

func (o *outbox) wakeLocked() {
	if !o.writing {
		o.writing = true
		o.spawn(o.write)
	}
}

// next is what is queued, and stays so until written. Without a message the
// writer ends; last says that it closes the transport.
func (o *outbox) next() (queue []*wire.Packet, last bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) == 0 {
		o.queue, o.writing = nil, false
		return nil, o.over
	}
	return o.queue, false
}

// written takes the first n messages from the queue.
func (o *outbox) written(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queue = o.queue[n:]
}

// fail drops what is queued.
func (o *outbox) fail() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queue, o.failed = nil, true
}

// maxWrite is how much waits for further messages, so that small ones leave
// together: as one frame, record and packet.
const maxWrite = 1 << 10

// write writes what is queued.
func (o *outbox) write() {
	var b []byte
	for {
		queue, last := o.next()
		if last {
			defer o.ended()
			o.nc.Close() // which ends readLoop too
		}
		if len(queue) == 0 {
			return
		}
		n, err := 0, error(nil)
		for b = b[:0]; n < len(queue) && len(b) < maxWrite && err == nil; n++ {
			b, err = queue[n].Append(b)
		}
		if err == nil {
			o.nc.SetWriteDeadline(time.Now().Add(writeTimeout))
			_, err = o.nc.Write(b)
		}
		if err != nil {
			// A peer that closed may have said why just before: what lies
			// there unread, a CDN or StopCCN, is read first, by readLoop, which
			// then tells of the end.
			o.nc.SetReadDeadline(time.Now().Add(lastWords))
			o.fail()
			continue
		}
		o.written(n)
	}
}
