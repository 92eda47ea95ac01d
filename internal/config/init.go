package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
)

// Init is what `tunneld init` was asked for.
type Init struct {
	Dir      string // absolute; where the file will stand
	Name     string // of the node
	Public   string // HOST:PORT; empty: no gateway
	Listen   string // empty: the default
	Networks []InitNetwork
}

// InitNetwork is one --network with its --route options.
type InitNetwork struct {
	Name   string
	Pools  []netip.Prefix
	Routes []netip.Prefix
}

// InitFile writes the file that `tunneld init` makes: the keys that were asked
// for and no others, with a line about each section. Anywhere but in DefaultDir
// the state directory and the socket stand beside the file, so that several
// daemons can live on one machine. The result is to be checked with Parse.
func InitFile(o Init) []byte {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# tunneld.toml: see tunneld.toml(5) for every key and its default.")
	line("# `tunneld check` reads this file and says what is wrong with it.")
	line("")
	line("# Who this machine is. The name is in its certificate.")
	line("[node]")
	line("name = %s", quote(o.Name))
	if filepath.Clean(o.Dir) != DefaultDir {
		line("state_dir = %s", quote(filepath.Join(o.Dir, "state")))
		line("socket = %s", quote(filepath.Join(o.Dir, "tunneld.sock")))
	}
	if o.Public != "" || o.Listen != "" {
		line("")
		line("# Where nodes dial this gateway: TCP for control and UDP for data, one number.")
		line("[gateway]")
		if o.Listen != "" {
			line("listen = %s", quote(o.Listen))
		}
		if o.Public != "" {
			line("public = %s", quote(o.Public))
		}
	}
	for i, n := range o.Networks {
		line("")
		if i == 0 {
			line("# What this gateway offers: addresses for nodes, and the way to what is behind it.")
		}
		line("[[network]]")
		line("name = %s", quote(n.Name))
		line("pools = %s", list(texts(n.Pools)))
		if len(n.Routes) > 0 {
			line("routes = %s", list(texts(n.Routes)))
		}
	}
	return []byte(b.String())
}
