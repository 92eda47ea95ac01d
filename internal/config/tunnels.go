package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// tunnelDir is where in the state directory the tunnels stand that join wrote.
const tunnelDir = "tunnels"

// TunnelPath is the file of a tunnel in a state directory.
func TunnelPath(stateDir, name string) string {
	return filepath.Join(stateDir, tunnelDir, name+".toml")
}

// ParseTunnel reads a file that holds the keys of one [[tunnel]] at its top, and
// whose tunnel has the name of the file. Errors are as Parse's.
func ParseTunnel(path string, b []byte) (Tunnel, error) {
	d, top, err := newDecoder(path, b)
	if err != nil {
		return Tunnel{}, err
	}
	t := tunnel(top)
	d.tunnel("", &t, seen{}, seen{}, nil)
	if want := strings.TrimSuffix(filepath.Base(path), ".toml"); t.Name != want {
		d.problem("name", "%q is not the name of the file: write %q, or rename the file", t.Name, want)
	}
	return t, d.err()
}

// ReadTunnels reads the tunnels that join wrote into a state directory, in the
// order of names. The error joins the problems of all files. A directory that is
// not there has none.
func ReadTunnels(stateDir string) ([]Tunnel, error) {
	dir := filepath.Join(stateDir, tunnelDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("config: %w: state_dir must be a directory that this user may read and write", err)
	}
	var tunnels []Tunnel
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".toml") || strings.HasPrefix(e.Name(), ".") {
			continue // a temporary file of WriteTunnel, or not ours
		}
		path := filepath.Join(dir, e.Name())
		b, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("config: %w", err))
			continue
		}
		t, err := ParseTunnel(path, b)
		if err != nil {
			errs = append(errs, err)
		}
		tunnels = append(tunnels, t)
	}
	return tunnels, errors.Join(errs...)
}

// WriteTunnel writes the file of a tunnel, whole or not at all, in place of one
// that is there, and returns its path. It is on disk when WriteTunnel returns.
// One writer at a time.
func WriteTunnel(stateDir string, t Tunnel) (path string, err error) {
	if err := CheckName(t.Name); err != nil {
		return "", fmt.Errorf("config: tunnel: %w", err)
	}
	path = TunnelPath(stateDir, t.Name)
	b := FormatTunnel(t)
	if _, err := ParseTunnel(path, b); err != nil {
		return "", fmt.Errorf("config: tunnel %q would not be read again: %w", t.Name, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("config: %w", err)
	}
	if err := writeFile(path, b); err != nil {
		return "", fmt.Errorf("config: tunnel %q: %w", t.Name, err)
	}
	return path, nil
}

// RemoveTunnel removes the file of a tunnel; fs.ErrNotExist if there is none.
func RemoveTunnel(stateDir, name string) error {
	if err := CheckName(name); err != nil {
		return fmt.Errorf("config: tunnel: %w", err)
	}
	path := TunnelPath(stateDir, name)
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// Merge adds tunnels that join wrote to those of the file, after them. One name
// or interface in both is an error that names both places.
func Merge(c Config, tunnels []Tunnel) (Config, error) {
	var errs []error
	for _, t := range tunnels {
		path := TunnelPath(c.Node.StateDir, t.Name)
		for _, own := range c.Tunnels {
			if own.Name == t.Name {
				errs = append(errs, fmt.Errorf("config: tunnel %q is both in %s and in %s: remove it from the first, or run `tunnelctl leave %s`", t.Name, c.source(), path, t.Name))
			}
		}
		for what, name := range c.interfaces() {
			if t.Interface != "" && t.Interface == name && what != fmt.Sprintf("tunnel %q", t.Name) {
				errs = append(errs, fmt.Errorf("config: interface %q of %s is that of %s in %s too: choose another for one of them", name, path, what, c.source()))
			}
		}
	}
	c.Tunnels = slices.Concat(c.Tunnels, tunnels)
	return c, errors.Join(errs...)
}

// source is the file the Config came from.
func (c Config) source() string {
	if c.file == "" {
		return "the configuration"
	}
	return c.file
}

// interfaces is the interface that each network and tunnel names.
func (c Config) interfaces() map[string]string {
	out := map[string]string{}
	for _, n := range c.Networks {
		out[fmt.Sprintf("network %q", n.Name)] = n.Interface
	}
	for _, t := range c.Tunnels {
		out[fmt.Sprintf("tunnel %q", t.Name)] = t.Interface
	}
	return out
}

// FormatTunnel writes the keys of a tunnel that differ from their defaults.
func FormatTunnel(t Tunnel) []byte {
	var b strings.Builder
	line := func(key, value string) { fmt.Fprintf(&b, "%s = %s\n", key, value) }
	line("name", quote(t.Name))
	line("gateways", list(t.Gateways))
	if t.Network != "" && t.Network != t.Name {
		line("network", quote(t.Network))
	}
	if t.Interface != "" {
		line("interface", quote(t.Interface))
	}
	line("auto", strconv.FormatBool(t.Auto))
	if len(t.Advertise) > 0 {
		line("advertise", list(texts(t.Advertise)))
	}
	if t.AcceptRoutes != nil {
		line("accept_routes", list(texts(t.AcceptRoutes)))
	}
	if t.Lifetime > 0 {
		line("lifetime", quote(t.Lifetime.String()))
	}
	if t.Refresher != "" {
		line("refresher", quote(t.Refresher))
	}
	return []byte(b.String())
}

func texts(prefixes []netip.Prefix) (out []string) {
	for _, p := range prefixes {
		out = append(out, p.String())
	}
	return out
}

func list(items []string) string {
	quoted := make([]string, len(items))
	for i, s := range items {
		quoted[i] = quote(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// quote writes a basic string of TOML; Go's own would use escapes that TOML
// does not have.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// writeFile replaces a file by one of rights 0600, on disk when it returns.
func writeFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
