package script

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/vishvananda/netlink"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"tunneld/internal/netlab"
	"tunneld/internal/store"
)

// listenTCP listens in the namespace of the calling thread.
func listenTCP(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }

// settling is how long what was said last may take to reach the other end: a
// session that was closed here is closed there a moment later.
const settling = 50 * time.Millisecond

// remember notes how everything is once it is the same for a moment.
func (s *stage) remember(ts *testscript.TestScript, _ []string) {
	s.before = s.snapshot(ts)
	within(ts, func(ctx context.Context) error {
		return netlab.Poll(ctx, settling, func() (bool, error) {
			last := s.before
			s.before = s.snapshot(ts)
			return len(difference(last, s.before)) == 0, nil
		})
	})
}

// same waits until everything is as it was.
func (s *stage) same(ts *testscript.TestScript, _ []string) {
	if s.before == nil {
		ts.Fatalf("same without remember")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var diff []string
	err := netlab.Poll(ctx, settling, func() (bool, error) {
		diff = difference(s.before, s.snapshot(ts))
		return len(diff) == 0, nil
	})
	if err != nil {
		ts.Fatalf("something changed:\n%s", strings.Join(diff, "\n"))
	}
}

// difference lists the lines that only one of two snapshots has.
func difference(before, after []string) (diff []string) {
	for _, line := range before {
		if !slices.Contains(after, line) {
			diff = append(diff, "- "+line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			diff = append(diff, "+ "+line)
		}
	}
	return diff
}

// snapshot writes down what a refusal must leave alone, one thing a line: of
// every host links, addresses, routes, rules and filters; of every node its
// files, its journal, and what its daemon says it has.
func (s *stage) snapshot(ts *testscript.TestScript) (lines []string) {
	add := func(owner string) func(format string, args ...any) {
		return func(format string, args ...any) { lines = append(lines, owner+": "+fmt.Sprintf(format, args...)) }
	}
	for _, name := range slices.Sorted(maps.Keys(s.net.Hosts)) {
		ts.Check(s.net.Hosts[name].Do(func() error { return noteHost(add(name)) }))
		within(ts, func(ctx context.Context) error {
			rules, err := s.net.Hosts[name].Run(ctx, "", "nft", "-s", "list", "ruleset")
			add(name)("filters %q", rules)
			return err
		})
	}
	for _, name := range slices.Sorted(maps.Keys(s.nodes)) {
		d := s.nodes[name]
		ts.Check(noteFiles(add(name), d.Dir()))
		ts.Check(noteJournal(add(name), filepath.Join(d.Dir(), "state")))
		if p := d.Process(); p != nil && p.Running() {
			within(ts, func(ctx context.Context) error { return noteDaemon(ctx, add(name), d) })
		}
	}
	return lines
}

type noteFunc func(format string, args ...any)

// noteHost notes the network of the calling thread's namespace. What the kernel
// adds by itself, and when it likes, is left out: link-local and multicast.
func noteHost(note noteFunc) error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		note("link %d %s mtu %d up %v", a.Index, a.Name, a.MTU, a.Flags&net.FlagUp != 0)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() {
			note("address %v on %s", a.IPNet, names[a.LinkIndex])
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if r.Dst != nil && (r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast()) {
				continue
			}
			note("route %v by %v dev %s table %d proto %d", r.Dst, r.Gw, names[r.LinkIndex], r.Table, r.Protocol)
		}
	}
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, r := range rules {
		note("rule %v", r)
	}
	return nil
}

// noteFiles notes the files of a node, but for the journal's own.
func noteFiles(note noteFunc, dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		var sum [sha256.Size]byte
		if info.Mode().IsRegular() && e.Name() != "state.db" {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum = sha256.Sum256(b)
		}
		name, err := filepath.Rel(dir, path)
		note("file %s %v %x", name, info.Mode(), sum[:8])
		return err
	})
}

// noteJournal notes what the journal says. Left out are the cursors of control
// connections, the counters, the times of leases, and the records and stories of
// sessions that were granted and came to nothing, which go on whatever is
// refused, and the keys of invites that were tried, which are kept for another
// try.
func noteJournal(note noteFunc, dir string) error {
	st, buckets, err := copyOfStore(dir)
	if st == nil || err != nil {
		return err
	}
	defer st.Close()
	return st.View(func(tx store.Tx) error {
		for _, bucket := range buckets {
			if slices.Contains([]string{"connections", "counters", "ended", "stories", "joining"}, bucket) {
				continue
			}
			err := tx.Each(bucket, func(key string, value []byte) error {
				if bucket == "leases" {
					value = nil
				}
				note("journal %s %s %x", bucket, key, sha256.Sum256(value))
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// copyOfStore opens a copy of a store, which may be in use, and says which
// buckets are in it. Without a store it returns nil. The copy vanishes at once.
func copyOfStore(dir string) (st *store.Bolt, buckets []string, err error) {
	if _, err := os.Stat(filepath.Join(dir, "state.db")); err != nil {
		return nil, nil, nil
	}
	tmp, err := os.MkdirTemp("", "state-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(tmp)
	for _, name := range []string{"state.db", "seal.key"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(tmp, name), b, 0o600)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	db, err := bbolt.Open(filepath.Join(tmp, "state.db"), 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		return nil, nil, err
	}
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("data")).ForEachBucket(func(name []byte) error {
			buckets = append(buckets, string(name))
			return nil
		})
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return nil, nil, err
	}
	st, err = store.Open(tmp)
	return st, buckets, err
}

// noteDaemon notes what a daemon says of its sessions and tunnels. How far a
// tunnel that is not up has come is left out: it goes on trying.
func noteDaemon(ctx context.Context, note noteFunc, d *netlab.Daemon) error {
	status, err := d.Status(ctx)
	if err != nil {
		return err
	}
	note("boot %s", status.BootID)
	for _, t := range status.Tunnels {
		note("tunnel %s established %v %s %v %s", t.Name, t.State == netlab.Established, t.Session, t.Addresses, t.Interface)
	}
	sessions, err := d.Sessions(ctx)
	for _, s := range sessions {
		note("session %s %s %s %s %v", s.Session, s.Node, s.Network, s.State, s.Addresses)
	}
	return err
}
