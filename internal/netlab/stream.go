package netlab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	streamChunk = 16 << 10
	streamHeld  = 512 << 10 // held back until Release
	// A stream that was stalled makes up for so much of the lost time.
	streamCatchUp = 100 * time.Millisecond
)

// Stream is one TCP connection that carries random octets from one host to
// another at a chosen pace, and compares what came with what was sent. The
// last half mebibyte waits for [Stream.Release]. Methods may be called from any
// goroutine.
type Stream struct {
	listener net.Listener
	size     int64
	rate     atomic.Int64 // octets a second
	sent     atomic.Int64
	received atomic.Int64
	released chan struct{}
	release  sync.Once
	wg       sync.WaitGroup
	done     chan struct{}
	cancel   context.CancelCauseFunc

	// Valid after done.
	err          error
	sentSum, sum []byte
}

// Stream listens at addr on the host to, connects to it from the host from,
// and starts sending size octets. It returns when the connection stands.
func (l *Lab) Stream(ctx context.Context, from, to *Host, addr netip.AddrPort, size, rate int64) (*Stream, error) {
	s := &Stream{size: size, released: make(chan struct{}), done: make(chan struct{})}
	s.rate.Store(rate)
	err := to.Do(func() (err error) {
		s.listener, err = net.ListenTCP(family("tcp", addr.Addr()), net.TCPAddrFromAddrPort(addr))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", to.name, err)
	}
	out, err := from.DialTCP(ctx, addr)
	if err != nil {
		s.listener.Close()
		return nil, err
	}
	in, err := s.listener.Accept()
	if err != nil {
		out.Close()
		return nil, fmt.Errorf("host %s: %w", to.name, err)
	}
	s.run(out, in)
	l.add(s)
	return s, nil
}

// DialTCP connects from the host.
func (h *Host) DialTCP(ctx context.Context, to netip.AddrPort) (conn net.Conn, err error) {
	err = h.Do(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, family("tcp", to.Addr()), to.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.name, err)
	}
	return conn, nil
}

func (s *Stream) run(out, in net.Conn) {
	ctx, cancel := context.WithCancelCause(context.Background())
	s.cancel = cancel
	stopClosing := context.AfterFunc(ctx, func() { out.Close(); in.Close() })
	var sendErr, receiveErr error
	s.wg.Go(func() {
		if s.sentSum, sendErr = s.send(ctx, out); sendErr != nil {
			cancel(sendErr)
		}
	})
	s.wg.Go(func() {
		if s.sum, receiveErr = s.receive(in); receiveErr != nil {
			cancel(receiveErr)
		}
	})
	go func() {
		s.wg.Wait()
		stopClosing()
		out.Close()
		in.Close()
		s.listener.Close()
		if sendErr != nil || receiveErr != nil {
			s.err = fmt.Errorf("stream of %d octets, %d sent, %d received: %w", s.size, s.sent.Load(), s.received.Load(), context.Cause(ctx))
		}
		cancel(nil)
		close(s.done)
	}()
}

func (s *Stream) send(ctx context.Context, conn net.Conn) ([]byte, error) {
	random := rand.NewChaCha8([32]byte{'n', 'e', 't', 'l', 'a', 'b'})
	sum := sha256.New()
	chunk := make([]byte, streamChunk)
	next := time.Now()
	for left := s.size; left > 0; {
		if err := s.pace(ctx, next, left); err != nil {
			return nil, err
		}
		b := chunk[:min(left, streamChunk)]
		random.Read(b)
		sum.Write(b)
		if _, err := conn.Write(b); err != nil {
			return nil, err
		}
		left -= int64(len(b))
		s.sent.Add(int64(len(b)))
		if earliest := time.Now().Add(-streamCatchUp); next.Before(earliest) {
			next = earliest
		}
		next = next.Add(time.Duration(float64(len(b)) / float64(s.rate.Load()) * float64(time.Second)))
	}
	return sum.Sum(nil), conn.(*net.TCPConn).CloseWrite()
}

// pace waits until the next chunk may go.
func (s *Stream) pace(ctx context.Context, next time.Time, left int64) error {
	if left <= streamHeld {
		select {
		case <-s.released:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	wait := time.Until(next)
	if wait <= 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Stream) receive(conn net.Conn) ([]byte, error) {
	sum := sha256.New()
	n, err := io.Copy(&countingHash{sum, &s.received}, conn)
	if err != nil {
		return nil, err
	}
	if n != s.size {
		return nil, fmt.Errorf("ended after %d octets: %w", n, io.ErrUnexpectedEOF)
	}
	return sum.Sum(nil), nil
}

type countingHash struct {
	hash.Hash
	n *atomic.Int64
}

func (c *countingHash) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return c.Hash.Write(b)
}

// Size returns how many octets the stream carries in all.
func (s *Stream) Size() int64 { return s.size }

// Received returns how many octets have come.
func (s *Stream) Received() int64 { return s.received.Load() }

// SetRate changes the pace, in octets a second.
func (s *Stream) SetRate(rate int64) { s.rate.Store(rate) }

// Release lets the stream come to its end.
func (s *Stream) Release() { s.release.Do(func() { close(s.released) }) }

// Alive waits for octets to come that have not come yet, or for the good end,
// and returns nil: the connection carries data.
func (s *Stream) Alive(ctx context.Context) error {
	before := s.Received()
	return Poll(ctx, 5*time.Millisecond, func() (bool, error) {
		select {
		case <-s.done:
			return true, s.err
		default:
			return s.Received() > before, nil
		}
	})
}

// Wait waits for the end and returns nil if every octet came as it was sent.
func (s *Stream) Wait(ctx context.Context) error {
	select {
	case <-s.done:
	case <-ctx.Done():
		return fmt.Errorf("stream: %d of %d octets came: %w", s.Received(), s.size, context.Cause(ctx))
	}
	if s.err != nil {
		return s.err
	}
	if !bytes.Equal(s.sum, s.sentSum) {
		return fmt.Errorf("stream: SHA-256 of what came is %x, of what was sent %x", s.sum, s.sentSum)
	}
	return nil
}

// Close ends the connection, whatever is still under way.
func (s *Stream) Close() error {
	s.cancel(errors.New("closed"))
	<-s.done
	return nil
}
