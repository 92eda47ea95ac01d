package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"

	"tunneld/internal/api"
	"tunneld/internal/auth"
	"tunneld/internal/config"
	"tunneld/internal/session"
	"tunneld/internal/store"
	"tunneld/internal/tunnel"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/native"
	"tunneld/internal/tunnel/engine/reference"
	"tunneld/internal/tunnel/host"
)

// assembly is the manager with the parts it was built from.
type assembly struct {
	*tunnel.Manager
	parts parts
}

// parts are closed in the opposite order of their making.
type parts []interface{ Close() error }

func (p parts) Close() error {
	var errs []error
	for i := len(p) - 1; i >= 0; i-- {
		errs = append(errs, p[i].Close())
	}
	return errors.Join(errs...)
}

// Run runs the manager and then closes its parts.
func (a *assembly) Run(ctx context.Context) error {
	return errors.Join(a.Manager.Run(ctx), a.parts.Close())
}

// newDaemon builds the parts and joins them; trace is the file for control
// messages, "" for none. What it returns must be run, which closes the parts.
func newDaemon(cfg config.Config, trace string, heir *inheritance, log *slog.Logger) (_ daemon, err error) {
	var made parts
	defer func() {
		if err != nil {
			err = errors.Join(err, made.Close())
		}
	}()
	h, err := host.New(log) // says first whether we may do anything here
	if err != nil {
		return nil, err
	}
	made = append(made, h)
	o := tunnel.Options{Config: cfg, Host: h, Log: log, Version: api.ThisVersion()}
	if trace != "" {
		f, err := openTrace(trace)
		if err != nil {
			return nil, err
		}
		made = append(made, f)
		o.Trace = f
	}
	st, err := store.Open(cfg.Node.StateDir)
	if err != nil {
		return nil, err
	}
	made = append(made, st)
	if g := cfg.Gateway; g != nil {
		if o.Keep, err = openKeep(g.TicketDir, &made); err != nil {
			return nil, err
		}
	}
	listen, err := listenAddr(cfg.Gateway)
	if err != nil {
		return nil, err
	}
	if cfg.Data.Engine == config.EngineReference {
		heir.refuse() // its keypairs end with the process
	}
	o.Store, o.Listen, o.HandOver = st, heir.listen, heir.store != nil
	if o.Engine, err = newEngine(cfg.Data, listen, st.ID(), heir, log); err != nil {
		return nil, err
	}
	made = append(made, o.Engine)
	m, err := tunnel.New(o)
	if err != nil {
		return nil, err
	}
	return &assembly{Manager: m, parts: made}, nil
}

// newEngine makes the data plane that the configuration names.
func newEngine(c config.Data, listen netip.AddrPort, journal session.ID, heir *inheritance, log *slog.Logger) (engine.Engine, error) {
	if c.Engine == config.EngineReference {
		return reference.New(reference.Config{Listen: listen, Mark: host.Mark, Log: log})
	}
	n := native.Config{Listen: listen, Mark: host.Mark, Journal: journal, AllowSwap: c.AllowSwap, NoOffload: !c.Offload, Log: log}
	if heir.store == nil {
		return native.New(n)
	}
	n.Keeper, n.Inherited = heir.store, heir.engines()
	e, err := native.New(n)
	if err != nil {
		return nil, err
	}
	return handingOver{e}, nil
}

// openKeep opens the stores outside the state directory.
func openKeep(dir string, made *parts) (k auth.Keep, err error) {
	if k.Keys, err = openKept(dir, "keys", made); err == nil {
		k.Book, err = openKept(dir, "book", made)
	}
	return k, err
}

// openKept opens one of them.
func openKept(dir, name string, made *parts) (store.Store, error) {
	st, err := store.Open(filepath.Join(dir, name))
	if err != nil {
		return nil, fmt.Errorf("gateway.ticket_dir: %w", err)
	}
	*made = append(*made, st)
	return st, nil
}

// handingOver is an engine whose end is a hand-over to the next process.
type handingOver struct{ *native.Engine }

func (h handingOver) Close() error { return h.HandOver() }

// listenAddr is where the data plane listens: where the gateway does, or for a
// plain node on any port.
func listenAddr(g *config.Gateway) (netip.AddrPort, error) {
	if g == nil {
		return netip.AddrPort{}, nil
	}
	address, port, err := net.SplitHostPort(g.Listen)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	var ip netip.Addr
	if address != "" {
		if ip, err = netip.ParseAddr(address); err != nil {
			return netip.AddrPort{}, err
		}
	}
	return netip.AddrPortFrom(ip, uint16(n)), nil
}
