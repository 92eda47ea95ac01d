package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestClientWithoutADaemon(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead")
	l, err := bind(dead)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dead, filepath.Join(dir, "none"), file, filepath.Join(file, "s")} {
		_, err := Dial(path).Status(t.Context())
		if !errors.Is(err, ErrNoDaemon) || !strings.Contains(err.Error(), path) {
			t.Errorf("Status at %s = %v, want ErrNoDaemon that names it", path, err)
		}
		if err := Dial(path).Events(t.Context(), true, nil); !errors.Is(err, ErrNoDaemon) {
			t.Errorf("Events at %s = %v, want ErrNoDaemon", path, err)
		}
	}
	_, err = Dial(strings.Repeat("x", 200)).Status(t.Context())
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != Usage || !strings.Contains(e.Message, "200 octets") {
		t.Errorf("Status at a path that is too long = %v, want a usage error", err)
	}
}

// whatever answers one connection at a socket with text, then hangs up.
func whatever(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.Read(make([]byte, 4096))
		io.WriteString(conn, text)
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return path
}

func TestClientAndStrangers(t *testing.T) {
	for _, tt := range []struct{ name, answer, want string }{
		{"hangs up", "", "the daemon went away before it had answered"},
		{"half an answer", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"node\"", "the daemon went away before it had answered"},
		{"another server", "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno!", "is no tunneld: it answers \"404 Not Found\""},
		{"a redirect", "HTTP/1.1 301 Moved\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "is no tunneld"},
		{"no HTTP", "hello\r\n\r\n", "the daemon's socket: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Dial(whatever(t, tt.answer)).Status(t.Context())
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Code != Failed || !strings.Contains(e.Message, tt.want) {
				t.Errorf("Status = %v, want Failed with %q", err, tt.want)
			}
		})
	}
}

// inBubbleClient is a client of a daemon that behaves as serve says.
func inBubbleClient(t *testing.T, serve func(net.Conn), f func(t *testing.T, c *Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := Dial("unused")
		c.http.Transport = transport(func(context.Context, string, string) (net.Conn, error) {
			a, b := net.Pipe()
			go func() { defer b.Close(); serve(b) }()
			return a, nil
		})
		f(t, c)
	})
}

func TestClientDoesNotWaitForEver(t *testing.T) {
	silent := func(conn net.Conn) { io.Copy(io.Discard, conn) }
	inBubbleClient(t, silent, func(t *testing.T, c *Client) {
		for _, tt := range []struct {
			name string
			ask  func() error
			want time.Duration
		}{
			{"status", func() error { _, err := c.Status(t.Context()); return err }, answerTimeout},
			{"down", func() error { return c.Down(t.Context(), "home") }, answerTimeout},
			{"up", func() error { _, err := c.Up(t.Context(), "home", time.Minute); return err }, answerTimeout + time.Minute},
			{"events", func() error { return c.Events(t.Context(), true, nil) }, answerTimeout},
		} {
			began := time.Now()
			err := tt.ask()
			if took := time.Since(began); took != tt.want {
				t.Errorf("%s took %v, want %v", tt.name, took, tt.want)
			}
			if e, ok := errors.AsType[*Error](err); !ok || !strings.Contains(e.Message, "gave no answer within "+tt.want.String()) {
				t.Errorf("%s = %v, want to be told of the silence", tt.name, err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Status(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Status under a deadline of its caller = %v, want %v", err, context.DeadlineExceeded)
		}
	})
}

func TestFollowingOutlastsTheAnswerTimeout(t *testing.T) {
	late := func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			return
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		time.Sleep(100 * answerTimeout)
		io.WriteString(conn, `{"event":"node-invited"}`+"\n")
	}
	inBubbleClient(t, late, func(t *testing.T, c *Client) {
		done := errors.New("seen")
		err := c.Events(t.Context(), true, func(e Event) error {
			if e.Event != "node-invited" {
				t.Errorf("event = %+v", e)
			}
			return done
		})
		if !errors.Is(err, done) {
			t.Errorf("Events = %v, want the error of the callback", err)
		}
	})
}
