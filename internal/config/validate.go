package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of values.
const (
	maxName      = 63  // of a node, network or tunnel: one DNS label
	maxInterface = 15  // IFNAMSIZ less its final zero
	maxSocket    = 107 // sun_path less its final zero
	minMTU4      = 576 // RFC 791: what every IPv4 host takes
	minMTU6      = 1280
	maxMTU       = 9000
)

// validate checks everything that one value says by itself, or beside others of
// the file.
func (d *decoder) validate(c *Config) {
	d.node(c.Node)
	d.gateway(c.Gateway, c.Node.StateDir)
	names, interfaces := seen{}, seen{}
	var pools []placed
	for i := range c.Networks {
		path := item("network", i+1)
		d.network(path, &c.Networks[i], names, interfaces)
		pools = append(pools, d.pools(path, c.Networks[i].Pools, pools)...)
	}
	names = seen{}
	for i := range c.Tunnels {
		d.tunnel(item("tunnel", i+1), &c.Tunnels[i], names, interfaces, pools)
	}
	d.data(c)
	if c.Gateway == nil && len(c.Networks) > 0 {
		d.problem("network", `only a gateway has networks: add [gateway] with public = "HOST:PORT", or remove [[network]]`)
	}
}

// seen is where each value was first met.
type seen map[string]string

// once reports a value that stands somewhere else already.
func (d *decoder) once(s seen, path, value string) {
	if first, twice := s[value]; twice {
		d.problem(path, "%q is taken by %s: choose another", value, d.at(first))
		return
	}
	s[value] = path
}

// at names a path with its line, for a problem that stands elsewhere.
func (d *decoder) at(path string) string {
	if at := d.place(path); at.line > 0 {
		return fmt.Sprintf("%s (line %d)", path, at.line)
	}
	return path
}

func (d *decoder) name(path, name string) {
	if err := CheckName(name); err != nil {
		d.problem(path, "%v", err)
	}
}

// CheckName says why name cannot name a node, a network or a tunnel, or nil.
// Names stand in certificates, file names and logs, so they are plain.
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf(`a name is missing: write name = "…"`)
	case len(name) > maxName:
		return fmt.Errorf("%q has %d characters: use at most %d", name, len(name), maxName)
	case strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" || !alphanumeric(name[0]):
		return fmt.Errorf("%q is no name: use letters, digits, '.', '_' and '-', with a letter or digit first", name)
	}
	return nil
}

func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func (d *decoder) node(n Node) {
	d.name("node.name", n.Name)
	if !filepath.IsAbs(n.StateDir) {
		d.problem("node.state_dir", "%q does not begin with '/': write the whole path", n.StateDir)
	}
	if !filepath.IsAbs(n.Socket) {
		d.problem("node.socket", "%q does not begin with '/': write the whole path", n.Socket)
	} else if len(n.Socket) > maxSocket {
		d.problem("node.socket", "%q has %d octets, more than the %d of a Unix socket: use a shorter path", n.Socket, len(n.Socket), maxSocket)
	}
}

func (d *decoder) gateway(g *Gateway, state string) {
	if g == nil {
		return
	}
	switch dir := g.TicketDir; {
	case dir == "" || dir == ticketDir(state): // not written down, so not to be complained about
	case !filepath.IsAbs(dir):
		d.problem("gateway.ticket_dir", "%q does not begin with '/': write the whole path", dir)
	case strings.HasPrefix(filepath.Clean(dir)+"/", filepath.Clean(state)+"/"):
		d.problem("gateway.ticket_dir", "%q is inside state_dir, whose loss it is for: write a directory beside it, or on another disk", dir)
	}
	if g.DrainOnStop != 0 {
		d.between("gateway.drain_on_stop", g.DrainOnStop, time.Second, time.Hour)
	}
	if err := CheckListen(g.Listen); err != nil {
		d.problem("gateway.listen", "%v", err)
	}
	if g.Public == "" {
		d.problem("gateway.public", `nodes must know where to dial: write public = "HOST:PORT", this gateway as it is seen from outside`)
	} else if err := CheckHostPort(g.Public); err != nil {
		d.problem("gateway.public", "%v", err)
	}
}

// CheckListen says why text is no ADDR:PORT or :PORT to listen on, or nil.
func CheckListen(text string) error {
	host, err := splitPort(text)
	if err != nil {
		return err
	}
	if _, err := netip.ParseAddr(host); host != "" && err != nil {
		return fmt.Errorf(`%q: %q is no address of this host: write ":443" for all of them, or one, as in "192.0.2.1:443" or "[2001:db8::1]:443"`, text, host)
	}
	return nil
}

// CheckHostPort says why text is no HOST:PORT to dial, or nil.
func CheckHostPort(text string) error {
	host, err := splitPort(text)
	if err != nil {
		return err
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if a.IsUnspecified() || a.IsMulticast() {
			return fmt.Errorf("%q: %v is no address that can be dialled: write the one that nodes reach", text, a)
		}
		return nil
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
		if label == "" || len(label) > 63 || len(host) > 254 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
			return fmt.Errorf(`%q: %q is neither a host name nor an address: write HOST:PORT, as in "vpn.example.com:443"`, text, host)
		}
	}
	return nil
}

func splitPort(text string) (host string, err error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
			return "", fmt.Errorf("%q has no port: write %q", text, net.JoinHostPort(a.String(), "443"))
		}
		if text != "" && !strings.ContainsAny(text, ":[] ") {
			return "", fmt.Errorf("%q has no port: write %q", text, text+":443")
		}
		return "", fmt.Errorf(`%q is no HOST:PORT: write it as in "vpn.example.com:443" or "[2001:db8::1]:443"`, text)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '+' {
		return "", fmt.Errorf("%q: %q is no port: write a number from 1 to 65535", text, port)
	}
	return host, nil
}

func (d *decoder) network(path string, n *Network, names, interfaces seen) {
	d.name(join(path, "name"), n.Name)
	d.once(names, join(path, "name"), n.Name)
	d.prefixes(join(path, "routes"), n.Routes)
	d.ifname(join(path, "interface"), n.Interface, interfaces)
	d.limits(path, n)
	d.timers(join(path, "timers"), n.Timers)
	if len(n.Pools) == 0 {
		d.problem(join(path, "pools"), `the network has no addresses to give: write a prefix of each family that it is to have, as in pools = ["10.77.0.0/16", "fd77::/64"]`)
	}
}

func (d *decoder) ifname(path, name string, interfaces seen) {
	if name == "" {
		return // chosen by the manager
	}
	if err := CheckInterface(name); err != nil {
		d.problem(path, "%v", err)
		return
	}
	d.once(interfaces, path, name)
}

// CheckInterface says why the kernel would not take name for an interface, or
// nil.
func CheckInterface(name string) error {
	switch {
	case name == "" || len(name) > maxInterface:
		return fmt.Errorf("%q has %d octets: the name of an interface has 1 to %d", name, len(name), maxInterface)
	case name == "." || name == "..":
		return fmt.Errorf("%q is no name for an interface: use letters and digits", name)
	case name == "lo" || name == "all" || name == "default":
		return fmt.Errorf("%q has a meaning of its own in the kernel: choose another name for the interface", name)
	}
	for _, r := range name {
		if r <= ' ' || r > '~' || strings.ContainsRune("/:%", r) {
			return fmt.Errorf("%q has a %q, which the name of an interface cannot have: use letters, digits, '-', '_' and '.'", name, r)
		}
	}
	return nil
}

// placed is a prefix and where it stands.
type placed struct {
	path   string
	prefix netip.Prefix
}

// pools checks the pools of one network, alone and beside those before, and
// returns those that are in order.
func (d *decoder) pools(path string, prefixes []netip.Prefix, before []placed) (good []placed) {
	for i, p := range prefixes {
		here := placed{item(join(path, "pools"), i+1), p}
		if !d.masked(here.path, p) || !d.poolSize(here) {
			continue
		}
		for _, other := range slices.Concat(before, good) {
			same := strings.HasPrefix(other.path, path+".")
			switch {
			case other.prefix.Overlaps(p):
				d.problem(here.path, "%v overlaps %v of %s: an address would have two owners; choose another prefix", p, other.prefix, d.at(other.path))
			case same && other.prefix.Addr().Is4() == p.Addr().Is4():
				d.problem(here.path, "%v is of the same family as %v: a network has at most one pool of each; use one larger prefix", p, other.prefix)
			}
		}
		good = append(good, here)
	}
	return good
}

// poolSize reports prefixes that leave no address to lease or are no unicast.
func (d *decoder) poolSize(here placed) bool {
	p, a := here.prefix, here.prefix.Addr()
	switch longest := a.BitLen() - 2; {
	case p.Bits() > longest:
		d.problem(here.path, "%v leaves no address beside the gateway's: use a /%d or shorter", p, longest)
	case p.Bits() < 8:
		d.problem(here.path, "%v is no prefix to give addresses from: use a /8 or longer", p)
	case a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.Is4In6() || a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 224):
		d.problem(here.path, "%v is not of addresses that hosts can have: use a private prefix, as in \"10.77.0.0/16\" or \"fd77::/64\"", p)
	default:
		return true
	}
	return false
}

// masked reports host bits; a zero prefix has its problem already.
func (d *decoder) masked(path string, p netip.Prefix) bool {
	if !p.IsValid() {
		d.problem(path, `the prefix is empty: write one, as in "10.20.0.0/16"`)
		return false
	}
	if p != p.Masked() {
		d.problem(path, "%v has host bits set: write \"%v\", or \"%v/%d\" for that host alone", p, p.Masked(), p.Addr(), p.Addr().BitLen())
		return false
	}
	return true
}

func (d *decoder) prefixes(path string, prefixes []netip.Prefix) {
	for i, p := range prefixes {
		here := item(path, i+1)
		if first := slices.Index(prefixes, p); d.masked(here, p) && first < i {
			d.problem(here, "%v stands here twice: remove one", p)
		}
	}
}

func (d *decoder) timers(path string, t Timers) {
	d.between(join(path, "hello"), t.Hello, 100*time.Millisecond, time.Hour)
	d.between(join(path, "cooloff"), t.Cooloff, time.Second, 30*24*time.Hour)
	d.between(join(path, "grace"), t.Grace, 100*time.Millisecond, 366*24*time.Hour)
	d.lifetimes(path, t)
	if t.Misses < 1 || t.Misses > 100 {
		d.problem(join(path, "misses"), "%d is out of range: write a number from 1 to 100", t.Misses)
		return
	}
	if silence := t.Hello * time.Duration(t.Misses); t.Grace < silence && t.Hello <= time.Hour {
		d.problem(join(path, "grace"), "%s is shorter than hello times misses, %s: a session would end before its loss is noticed; write at least \"%s\"", short(t.Grace), short(silence), short(silence))
	}
}

// lifetimes checks what ends sessions. Less than a second would end them before
// they were of use, and seconds are what nodes are told.
func (d *decoder) lifetimes(path string, t Timers) {
	for _, l := range []struct {
		key string
		v   time.Duration
	}{
		{"idle", t.Idle}, {"absolute", t.Absolute}, {"reauth", t.Reauth}, {"extend", t.Extend},
		{"lifetime", t.Lifetime}, {"min_lifetime", t.MinLifetime},
	} {
		d.seconds(join(path, l.key), l.v)
	}
	if t.Lifetime > 0 && t.MinLifetime > t.Lifetime {
		d.problem(join(path, "min_lifetime"), "%s is longer than lifetime, %s: no session could have both; write at most \"%s\", or remove a key", short(t.MinLifetime), short(t.Lifetime), short(t.Lifetime))
	}
	d.refresher(join(path, "refresher"), t.Refresher)
	if t.Extend > 0 && t.Absolute == 0 {
		d.problem(join(path, "extend"), "without absolute nothing ends a session at a fixed time, so there is nothing to extend: write absolute, or remove the key")
	}
	if t.Reauth > 0 && t.Absolute > 0 && t.Reauth >= t.Absolute {
		d.problem(join(path, "reauth"), "%s is no shorter than absolute, %s: the session ends before anybody has to prove anything again; write less, or remove the key", short(t.Reauth), short(t.Absolute))
	}
}

// seconds checks what is told to the other end in whole seconds; zero: nothing is.
func (d *decoder) seconds(path string, v time.Duration) {
	switch {
	case v == 0:
	case v > 0 && v%time.Second != 0:
		d.problem(path, "%s is no whole number of seconds: write \"%s\"", short(v), short(max(time.Second, v.Round(time.Second))))
	default:
		d.between(path, v, time.Second, 366*24*time.Hour)
	}
}

// refresher checks who is to refresh sessions; empty: nobody is named.
func (d *decoder) refresher(path, name string) {
	if name != "" && name != RefresherNode && name != RefresherGateway {
		d.problem(path, "%q is no end of a session: write %q or %q, or remove the key", name, RefresherNode, RefresherGateway)
	}
}

func (d *decoder) between(path string, v, low, high time.Duration) {
	if v < low || v > high {
		d.problem(path, "%s is out of range: write a duration from %s to %s", short(v), short(low), short(high))
	}
}

// short writes a duration as people do: 1h, not 1h0m0s.
func short(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

func (d *decoder) tunnel(path string, t *Tunnel, names, interfaces seen, pools []placed) {
	d.name(join(path, "name"), t.Name)
	d.once(names, join(path, "name"), t.Name)
	if err := CheckName(t.Network); err != nil && t.Network != t.Name {
		d.problem(join(path, "network"), "%v", err)
	}
	d.ifname(join(path, "interface"), t.Interface, interfaces)
	if len(t.Gateways) == 0 {
		d.problem(join(path, "gateways"), `there is nobody to dial: write at least one, as in gateways = ["vpn.example.com:443"]`)
	}
	for i, g := range t.Gateways {
		here := item(join(path, "gateways"), i+1)
		if err := CheckHostPort(g); err != nil {
			d.problem(here, "%v", err)
		} else if slices.Index(t.Gateways, g) < i {
			d.problem(here, "%q stands here twice: remove one", g)
		}
	}
	d.prefixes(join(path, "accept_routes"), t.AcceptRoutes)
	d.prefixes(join(path, "advertise"), t.Advertise)
	d.advertise(join(path, "advertise"), t.Advertise, pools)
	d.seconds(join(path, "lifetime"), t.Lifetime)
	d.refresher(join(path, "refresher"), t.Refresher)
}

func (d *decoder) advertise(path string, prefixes []netip.Prefix, pools []placed) {
	for i, p := range prefixes {
		here := item(path, i+1)
		if p.IsValid() && p.Bits() == 0 {
			d.problem(here, "%v is everything: write the prefixes that are behind this node", p)
			continue
		}
		for _, pool := range pools {
			if p.IsValid() && p.Overlaps(pool.prefix) {
				d.problem(here, "%v overlaps %v of %s, which is given to this gateway's own nodes: advertise what lies behind this node alone", p, pool.prefix, d.at(pool.path))
			}
		}
	}
}

func (d *decoder) data(c *Config) {
	if e := c.Data.Engine; e != EngineNative && e != EngineReference {
		d.problem("data.engine", "%q is no engine: write %q or %q, or remove the key", e, EngineNative, EngineReference)
	}
	d.between("data.rekey", c.Data.Rekey, 20*time.Millisecond, 24*time.Hour) // a peer takes a handshake in 20 ms
	d.between("data.redial", c.Data.Redial, time.Second, 24*time.Hour)
	least, why := minMTU4, ""
	for _, n := range c.Networks {
		for _, p := range n.Pools {
			if p.Addr().Is6() {
				least, why = minMTU6, fmt.Sprintf(", since the pool %v is of IPv6", p)
			}
		}
	}
	if c.Data.MTU < least || c.Data.MTU > maxMTU {
		d.problem("data.mtu", "%d is out of range: write a number from %d to %d%s", c.Data.MTU, least, maxMTU, why)
	}
}
