package netlab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Options of a laboratory. The zero value is good.
type Options struct {
	// Dir is where hosts keep their files and logs. Empty: a new directory,
	// which Close removes.
	Dir string
	// Name becomes part of that new directory's name, so that one that was
	// kept says whose it is.
	Name string
}

// nameLen keeps the paths of sockets below the 108 octets of unix(7).
const nameLen = 24

// Lab owns hosts, wires and what else lives on them. Methods may be called
// from any goroutine.
type Lab struct {
	dir     string
	ownsDir bool
	once    sync.Once

	// mu guards everything below.
	mu      sync.Mutex
	hosts   []*Host
	things  []closer // in the order they were made
	macs    uint32
	keepDir bool
}

type closer interface{ Close() error }

// New makes an empty laboratory.
func New(o Options) (*Lab, error) {
	l := &Lab{dir: o.Dir}
	if o.Dir == "" {
		name := strings.NewReplacer("/", "_", "*", "_").Replace(o.Name)
		dir, err := os.MkdirTemp("", "netlab-"+name[:min(len(name), nameLen)]+"-")
		if err != nil {
			return nil, fmt.Errorf("directory for a laboratory: %w", err)
		}
		l.dir, l.ownsDir = dir, true
	}
	return l, nil
}

// Dir is where the laboratory keeps its files.
func (l *Lab) Dir() string { return l.dir }

// KeepDir has Close leave the directory, for those who look into the logs.
func (l *Lab) KeepDir() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keepDir = true
}

// Hosts returns the hosts in the order they were made.
func (l *Lab) Hosts() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Host(nil), l.hosts...)
}

// Close kills every process, unplugs every wire, lets the namespaces go and
// removes the directory. It waits for all that and may be called again.
func (l *Lab) Close() error {
	var err error
	l.once.Do(func() {
		l.mu.Lock()
		things, hosts, keep := l.things, l.hosts, l.keepDir
		l.mu.Unlock()
		for i := len(things) - 1; i >= 0; i-- {
			err = errors.Join(err, things[i].Close())
		}
		for _, h := range hosts {
			h.close()
		}
		if l.ownsDir && !keep {
			err = errors.Join(err, os.RemoveAll(l.dir))
		}
	})
	return err
}

// add has Close close c, before everything that was added earlier.
func (l *Lab) add(c closer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.things = append(l.things, c)
}

func (l *Lab) wires() []*Wire {
	l.mu.Lock()
	defer l.mu.Unlock()
	var wires []*Wire
	for _, t := range l.things {
		if w, ok := t.(*Wire); ok {
			wires = append(wires, w)
		}
	}
	return wires
}

// nextMAC returns a locally administered address that is the same in each run.
func (l *Lab) nextMAC() net.HardwareAddr {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.macs++
	return net.HardwareAddr{0x02, 0x6e, 0x6c, byte(l.macs >> 16), byte(l.macs >> 8), byte(l.macs)}
}

// path returns a place below the laboratory's directory, its parents made.
func (l *Lab) path(elem ...string) (string, error) {
	p := filepath.Join(append([]string{l.dir}, elem...)...)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return "", err
	}
	return p, nil
}
