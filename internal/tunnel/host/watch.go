package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"tunneld/internal/event"
)

const (
	watchBuffer = 1 << 20 // octets of news the kernel keeps for us; more is an overrun
	// watchRest is how many times as long as it took to name the state of the
	// network we rest before we name it again: a router that learns a hundred
	// thousand routes costs a fifth of one processor.
	watchRest = 4
)

// upFlags are the flags of an interface whose change is news.
const upFlags = unix.IFF_UP | unix.IFF_RUNNING | unix.IFF_LOWER_UP

// watcher turns the kernel's messages into Changes. One goroutine reads and
// never waits for anything else; one names the state and waits for the caller.
type watcher struct {
	l    *Linux
	sock *nl.NetlinkSocket
	news chan struct{}  // something changed since it was last received from
	up   map[int]uint32 // upFlags by interface; the reader's
}

// Watch implements [Host].
func (l *Linux) Watch(ctx context.Context) (<-chan Change, error) {
	w, err := l.newWatcher(watchBuffer)
	if err != nil {
		return nil, err
	}
	changes := make(chan Change)
	go w.run(ctx, changes)
	return changes, nil
}

// newWatcher subscribes first and lists the links then, so that no change falls
// between the two.
func (l *Linux) newWatcher(buffer int) (*watcher, error) {
	w := &watcher{l: l, news: make(chan struct{}, 1), up: make(map[int]uint32)}
	err := l.do(func() (err error) {
		w.sock, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK,
			unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
		if err != nil {
			return fmt.Errorf("subscribing to network changes: %w", err)
		}
		if w.sock.SetReceiveBufferSize(buffer, true) != nil {
			_ = w.sock.SetReceiveBufferSize(buffer, false) // a smaller one only overruns sooner
		}
		links, err := dump(l.nl.LinkList)
		if err != nil {
			w.sock.Close()
			return fmt.Errorf("listing interfaces: %w", err)
		}
		for _, link := range links {
			w.up[link.Attrs().Index] = link.Attrs().RawFlags & upFlags
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}

// run ends with ctx: then the socket and the channel are closed and the reader
// is gone.
func (w *watcher) run(ctx context.Context, changes chan<- Change) {
	defer close(changes)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer w.sock.Close() // ends the reader
	wg.Go(func() { w.read(ctx) })
	w.deliver(ctx, changes)
}

// read drains the socket until it is closed.
func (w *watcher) read(ctx context.Context) {
	for {
		msgs, from, err := w.sock.Receive()
		switch {
		case ctx.Err() != nil, errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, unix.ENOBUFS): // what was lost may have been anything
			w.l.log.Debug("overrun of network news", event.KeyErr, err)
			w.changed()
		case err != nil:
			w.l.log.Warn("reading network news", event.KeyErr, err)
			w.changed()
			if !pause(ctx, time.Second) {
				return
			}
		case from.Pid == nl.PidKernel:
			for _, m := range msgs {
				if w.isNews(m) {
					w.changed()
				}
			}
		}
	}
}

// changed never waits: a change that nobody has seen yet stands for later ones.
func (w *watcher) changed() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// deliver names the state after news and hands it over; news that comes while
// the reader is busy renews the name.
func (w *watcher) deliver(ctx context.Context, changes chan<- Change) {
	var out chan<- Change // nil while there is nothing to hand over
	var change Change
	for {
		select {
		case <-ctx.Done():
			return
		case out <- change:
			out = nil
		case <-w.news:
			began := time.Now()
			name, err := w.l.Fingerprint()
			if err != nil { // as good as any: it differs from the last one
				w.l.log.Warn("naming the state of the network", event.KeyErr, err)
				name = fmt.Sprintf("unknown since %v: %v", began, err)
			}
			change, out = Change{Fingerprint: name}, changes
			select { // hand over before the rest, if somebody waits
			case out <- change:
				out = nil
			default:
			}
			if !pause(ctx, watchRest*time.Since(began)) {
				return
			}
		}
	}
}

// pause waits for d; it reports false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// isNews reports whether a message tells of a change that is not ours. A message
// that cannot be read is news.
func (w *watcher) isNews(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return w.linkNews(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) < unix.SizeofIfAddrmsg {
			return true
		}
		return !w.l.isOurs(int(nl.DeserializeIfAddrmsg(m.Data).Index))
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return w.routeNews(m)
	}
	return false
}

// linkNews finds that an interface came up or went down; the many other reasons
// for such a message (statistics, wireless scans) are none.
func (w *watcher) linkNews(m syscall.NetlinkMessage) bool {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return true
	}
	info := nl.DeserializeIfInfomsg(m.Data)
	if info.Family != unix.AF_UNSPEC { // a bridge's or IPv6's view of the link
		return false
	}
	index := int(info.Index)
	before, now := w.up[index], info.Flags&upFlags
	if m.Header.Type == unix.RTM_DELLINK {
		now = 0
		delete(w.up, index)
	} else {
		w.up[index] = now
	}
	return before != now && !w.l.isOurs(index)
}

// routeNews leaves out our routes, the tables that nobody routes by default, and
// what follows from an address (the local table) or a packet (the cache).
func (w *watcher) routeNews(m syscall.NetlinkMessage) bool {
	if len(m.Data) < unix.SizeofRtMsg {
		return true
	}
	msg := nl.DeserializeRtMsg(m.Data)
	if msg.Protocol == Protocol || msg.Table != unix.RT_TABLE_MAIN || msg.Flags&unix.RTM_F_CLONED != 0 {
		return false
	}
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.RTA_OIF && len(a.Value) == 4 {
			return !w.l.isOurs(int(nl.NativeEndian().Uint32(a.Value)))
		}
	}
	return true
}

// isUp reports whether packets can leave by the link.
func isUp(link netlink.Link) bool {
	return link.Attrs().Flags&net.FlagUp != 0 && link.Attrs().Flags&net.FlagRunning != 0
}
