// Package hosttest is a host in memory, for tests of those who use one.
package hosttest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"tunneld/internal/tunnel/host"
)

// Call is one call of a method that changes the host.
type Call struct {
	Method   string // "SetLink"
	Ifname   string
	Prefixes []netip.Prefix // addresses, routes or inside
	Addrs    []netip.Addr   // of FlushConntrack
	MTU      int
}

// String spells the call as in "SetLink(tnl0 [10.77.0.2/32] 1420)".
func (c Call) String() string {
	switch c.Method {
	case "SetLink":
		return fmt.Sprintf("SetLink(%s %v %d)", c.Ifname, c.Prefixes, c.MTU)
	case "FlushConntrack":
		return fmt.Sprintf("FlushConntrack(%v)", c.Addrs)
	case "Cleanup":
		return fmt.Sprintf("Cleanup(%s)", c.Ifname)
	}
	return fmt.Sprintf("%s(%s %v)", c.Method, c.Ifname, c.Prefixes)
}

// Link is what an interface was given.
type Link struct {
	Addresses []netip.Prefix
	MTU       int
}

// Fake records what it is told and answers as it is prepared. The zero value is
// not ready; see [New]. Methods may be called from any goroutine.
type Fake struct {
	mu       sync.Mutex
	calls    []Call
	links    map[string]Link
	routes   map[string][]netip.Prefix
	inside   map[string][]netip.Prefix
	foreign  map[string][]netip.Prefix
	problems map[string][]host.Problem
	errs     map[string]error
	swap     bool
	watchers map[*watcher]bool
	last     string
}

var _ host.Host = (*Fake)(nil)

// New returns a host that has no interfaces.
func New() *Fake {
	return &Fake{
		links:    make(map[string]Link),
		routes:   make(map[string][]netip.Prefix),
		inside:   make(map[string][]netip.Prefix),
		foreign:  make(map[string][]netip.Prefix),
		problems: make(map[string][]host.Problem),
		errs:     make(map[string]error),
		watchers: make(map[*watcher]bool),
	}
}

// Fail makes every later call of the method return err, until Fail(method, nil).
// A call that fails is recorded and changes nothing.
func (f *Fake) Fail(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs[method] = err
}

// SetProblems prepares the answer of Problems.
func (f *Fake) SetProblems(ifname string, problems ...host.Problem) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.problems[ifname] = problems
}

// SetSwap prepares the answer of Swap.
func (f *Fake) SetSwap(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.swap = on
}

// Swap implements [host.Host].
func (f *Fake) Swap() (on bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.swap, f.errs["Swap"]
}

// SetForeign gives an interface that is not ours addresses or connected routes;
// none removes it.
func (f *Fake) SetForeign(ifname string, prefixes ...netip.Prefix) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(prefixes) == 0 {
		delete(f.foreign, ifname)
		return
	}
	f.foreign[ifname] = prefixes
}

// Change tells every watcher of a change; it does not wait for them.
func (f *Fake) Change(fingerprint string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = fingerprint
	for w := range f.watchers {
		select {
		case w.news <- struct{}{}:
		default:
		}
	}
}

// Watchers returns how many Watch channels are open.
func (f *Fake) Watchers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.watchers)
}

// Calls returns what was called so far, in order.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Reset forgets the calls and nothing else.
func (f *Fake) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = nil
}

// Link returns what SetLink gave the interface.
func (f *Fake) Link(ifname string) (l Link, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, ok = f.links[ifname]
	return l, ok
}

// Routes returns the routes of the interface.
func (f *Fake) Routes(ifname string) []netip.Prefix {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.routes[ifname])
}

// Masquerade returns the inside prefixes of the interface.
func (f *Fake) Masquerade(ifname string) []netip.Prefix {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.inside[ifname])
}

// record notes the call and, if the method is not to fail, does it.
func (f *Fake) record(c Call, do func()) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, c)
	if err := f.errs[c.Method]; err != nil {
		return err
	}
	do()
	return nil
}

// SetLink implements [host.Host].
func (f *Fake) SetLink(ifname string, addresses []netip.Prefix, mtu int) error {
	addresses = slices.Clone(addresses)
	return f.record(Call{Method: "SetLink", Ifname: ifname, Prefixes: addresses, MTU: mtu}, func() {
		f.links[ifname] = Link{addresses, mtu}
	})
}

// SetRoutes implements [host.Host]. As on a real host two interfaces cannot have
// one prefix.
func (f *Fake) SetRoutes(ifname string, routes []netip.Prefix) (err error) {
	routes = slices.Clone(routes)
	conflict := func() {
		for other, have := range f.routes {
			for _, p := range routes {
				if other != ifname && slices.Contains(have, p) {
					err = fmt.Errorf("interface %s: route %v goes through %s already, which is a tunnel's: only one tunnel can have the prefix", ifname, p, other)
					return
				}
			}
		}
		if f.routes[ifname] = routes; len(routes) == 0 {
			delete(f.routes, ifname)
		}
	}
	if failed := f.record(Call{Method: "SetRoutes", Ifname: ifname, Prefixes: routes}, conflict); failed != nil {
		return failed
	}
	return err
}

// SetMasquerade implements [host.Host].
func (f *Fake) SetMasquerade(ifname string, inside []netip.Prefix) error {
	inside = slices.Clone(inside)
	return f.record(Call{Method: "SetMasquerade", Ifname: ifname, Prefixes: inside}, func() {
		if f.inside[ifname] = inside; len(inside) == 0 {
			delete(f.inside, ifname)
		}
	})
}

// Problems implements [host.Host].
func (f *Fake) Problems(ifname string) ([]host.Problem, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.problems[ifname]), f.errs["Problems"]
}

// FreeInterface implements [host.Host].
func (f *Fake) FreeInterface(prefix string, taken func(string) bool) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.errs["FreeInterface"]; err != nil {
		return "", err
	}
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s%d", prefix, i)
		_, ours := f.links[name]
		_, others := f.foreign[name]
		if !ours && !others && (taken == nil || !taken(name)) {
			return name, nil
		}
	}
}

// Overlap implements [host.Host].
func (f *Fake) Overlap(p netip.Prefix, skip func(string) bool) (netip.Prefix, string, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.errs["Overlap"]; err != nil {
		return netip.Prefix{}, "", false, err
	}
	have := make(map[string][]netip.Prefix)
	for name, l := range f.links {
		have[name] = l.Addresses
	}
	for name, prefixes := range f.foreign {
		have[name] = prefixes
	}
	var found netip.Prefix
	var ifname string
	for name, prefixes := range have {
		for _, q := range prefixes {
			if q.Overlaps(p) && (skip == nil || !skip(name)) && (ifname == "" || q.Bits() < found.Bits()) {
				found, ifname = q, name
			}
		}
	}
	return found, ifname, ifname != "", nil
}

// watcher is one Watch; news is full while there is a change not handed over.
type watcher struct{ news chan struct{} }

// Watch implements [host.Host]. Its goroutine ends with ctx.
func (f *Fake) Watch(ctx context.Context) (<-chan host.Change, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.errs["Watch"]; err != nil {
		return nil, err
	}
	w := &watcher{make(chan struct{}, 1)}
	f.watchers[w] = true
	changes := make(chan host.Change)
	go f.deliver(ctx, w, changes)
	return changes, nil
}

// Fingerprint implements [host.Host].
func (f *Fake) Fingerprint() (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last, f.errs["Fingerprint"]
}

// deliver hands the latest change over after each news.
func (f *Fake) deliver(ctx context.Context, w *watcher, changes chan<- host.Change) {
	defer close(changes)
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, w)
	}()
	var out chan<- host.Change // nil while there is nothing to hand over
	var change host.Change
	for {
		select {
		case <-ctx.Done():
			return
		case out <- change:
			out = nil
		case <-w.news:
			f.mu.Lock()
			change, out = host.Change{Fingerprint: f.last}, changes
			f.mu.Unlock()
		}
	}
}

// FlushConntrack implements [host.Host].
func (f *Fake) FlushConntrack(addrs []netip.Addr) error {
	return f.record(Call{Method: "FlushConntrack", Addrs: slices.Clone(addrs)}, func() {})
}

// Cleanup implements [host.Host].
func (f *Fake) Cleanup(ifname string) error {
	return f.record(Call{Method: "Cleanup", Ifname: ifname}, func() {
		delete(f.routes, ifname)
		delete(f.inside, ifname)
	})
}

// Remove takes an interface away, as the engine does when it closes one: its
// addresses and routes go with it.
func (f *Fake) Remove(ifname string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.links, ifname)
	delete(f.routes, ifname)
}
