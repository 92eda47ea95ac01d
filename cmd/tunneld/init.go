package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tunneld/internal/auth"
	"tunneld/internal/config"
	"tunneld/internal/store"
)

// initFlags is what `init` was told, as it was written.
type initFlags struct {
	dir, name, public, listen string
	networks, routes          []string
}

func newInit(c *cli) *cobra.Command {
	var f initFlags
	cmd := &cobra.Command{
		Use:   "init",
		Short: "write the configuration of a gateway or of a plain node",
		Long:  initUsage,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := f.parse()
			if err != nil {
				return usageOf(cmd, "%v", err)
			}
			text := config.InitFile(o)
			cfg, err := config.Parse(filepath.Join(o.Dir, config.FileName), text)
			if err != nil {
				return usageOf(cmd, "%v", unwritten(err))
			}
			return c.init(o.Dir, cfg, text)
		},
	}
	cmd.Flags().StringVar(&f.dir, "dir", config.DefaultDir, "where the file goes")
	cmd.Flags().StringVar(&f.name, "name", "", "the name of this node")
	cmd.Flags().StringVar(&f.public, "public", "", "where nodes reach this gateway")
	cmd.Flags().StringVar(&f.listen, "listen", "", "where this gateway listens")
	cmd.Flags().StringArrayVar(&f.networks, "network", nil, "a network and its pools")
	cmd.Flags().StringArrayVar(&f.routes, "route", nil, "a route of a network")
	return cmd
}

// parse checks each flag by itself; whether they fit together is for the
// configuration to say that they make.
func (f *initFlags) parse() (o config.Init, err error) {
	if f.name == "" {
		return o, errors.New("--name is missing: how is this node called?")
	}
	if err := config.CheckName(f.name); err != nil {
		return o, fmt.Errorf("--name: %w", err)
	}
	if o.Dir, err = filepath.Abs(f.dir); err != nil {
		return o, fmt.Errorf("--dir: %w", err)
	}
	o.Name, o.Public = f.name, f.public
	if f.public == "" {
		return o, f.plain()
	}
	if err := config.CheckHostPort(f.public); err != nil {
		return o, fmt.Errorf("--public: %w", err)
	}
	if o.Listen, err = f.listenAddr(); err != nil {
		return o, fmt.Errorf("--listen: %w", err)
	}
	if o.Networks, err = parseNetworks(f.networks); err != nil {
		return o, err
	}
	if len(o.Networks) == 0 {
		return o, errors.New("--network is missing: a gateway offers at least one, such as --network office=10.77.0.0/16,fd77::/64")
	}
	return o, addRoutes(o.Networks, f.routes)
}

// plain refuses the flags of a gateway for a node that is none.
func (f *initFlags) plain() error {
	for name, given := range map[string]bool{
		"--listen": f.listen != "", "--network": len(f.networks) > 0, "--route": len(f.routes) > 0,
	} {
		if given {
			return fmt.Errorf("%s is for gateways: say with --public HOST:PORT where nodes reach this one", name)
		}
	}
	return nil
}

// listenAddr is where to listen: as told, else on the port of --public, which
// needs no word where it is the default.
func (f *initFlags) listenAddr() (string, error) {
	if f.listen != "" {
		return f.listen, config.CheckListen(f.listen)
	}
	_, port, err := net.SplitHostPort(f.public)
	if listen := ":" + port; listen != config.DefaultGateway().Listen {
		return listen, err
	}
	return "", err
}

// parseNetworks reads NAME=PREFIX[,PREFIX] of each --network.
func parseNetworks(texts []string) (networks []config.InitNetwork, err error) {
	for _, text := range texts {
		name, pools, ok := strings.Cut(text, "=")
		if !ok {
			return nil, fmt.Errorf("--network %q has no pool: write NAME=PREFIX, such as office=10.77.0.0/16", text)
		}
		if err := config.CheckName(name); err != nil {
			return nil, fmt.Errorf("--network %q: %w", text, err)
		}
		if find(networks, name) != nil {
			return nil, fmt.Errorf("--network %s is there twice: write its pools in one, separated by a comma", name)
		}
		n := config.InitNetwork{Name: name}
		for pool := range strings.SplitSeq(pools, ",") {
			p, err := netip.ParsePrefix(pool)
			if err != nil {
				return nil, fmt.Errorf("--network %s: %q is no prefix such as 10.77.0.0/16 or fd77::/64", name, pool)
			}
			n.Pools = append(n.Pools, p)
		}
		networks = append(networks, n)
	}
	return networks, nil
}

// addRoutes reads NAME=PREFIX of each --route into its network.
func addRoutes(networks []config.InitNetwork, texts []string) error {
	for _, text := range texts {
		name, route, ok := strings.Cut(text, "=")
		if !ok {
			return fmt.Errorf("--route %q has no prefix: write NAME=PREFIX, such as office=192.168.50.0/24", text)
		}
		n := find(networks, name)
		if n == nil {
			return fmt.Errorf("--route %q: there is no --network %s", text, name)
		}
		p, err := netip.ParsePrefix(route)
		if err != nil {
			return fmt.Errorf("--route %s: %q is no prefix such as 192.168.50.0/24", name, route)
		}
		n.Routes = append(n.Routes, p)
	}
	return nil
}

func find(networks []config.InitNetwork, name string) *config.InitNetwork {
	for i := range networks {
		if networks[i].Name == name {
			return &networks[i]
		}
	}
	return nil
}

// init makes the deployment first and writes the file last, so that a file that
// is there is never one without its deployment.
func (c *cli) init(dir string, cfg config.Config, text []byte) error {
	path := filepath.Join(dir, config.FileName)
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s is there already and is not overwritten: remove it, or choose another --dir", path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeDir(dir); err != nil {
		return err
	}
	if cfg.Gateway != nil {
		if err := c.initGateway(cfg); err != nil {
			return err
		}
	}
	return writeNew(path, text)
}

// makeDir makes a directory that the daemon's user can read, whatever the umask
// is; one that is there is left as it is.
func makeDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// unwritten takes the lines off problems of a file that is not there to be
// looked at.
func unwritten(err error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err
	}
	var errs []error
	for _, err := range joined.Unwrap() {
		if p, ok := errors.AsType[*config.Problem](err); ok {
			err = &config.Problem{Key: p.Key, Text: p.Text}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// initGateway makes the deployment in the state directory, and what is to
// outlive that. One that is there already is kept if it is this gateway's: its
// nodes trust it.
func (c *cli) initGateway(cfg config.Config) (err error) {
	node := cfg.Node
	if err := harden(); err != nil {
		return err
	}
	var made parts
	defer func() { err = errors.Join(err, made.Close()) }()
	st, err := store.Open(node.StateDir)
	if err != nil {
		return err
	}
	made = append(made, st)
	if _, err := openKeep(cfg.Gateway.TicketDir, &made); err != nil {
		return err
	}
	_, err = auth.InitGateway(st, node.Name, time.Now())
	if !errors.Is(err, auth.ErrInitialised) {
		return err
	}
	registry, err := auth.OpenRegistry(st)
	if err != nil {
		return err
	}
	if id := registry.Identity(); id.Name != node.Name {
		return fmt.Errorf("%s holds the deployment of gateway %q, not of %q: name it so, or choose another --dir", node.StateDir, id.Name, node.Name)
	}
	fmt.Fprintf(c.stderr, "tunneld: hint: %s holds a deployment already, which is kept\n", node.StateDir)
	return nil
}

// writeNew writes a file that must not be there, whole or not at all.
func writeNew(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Link(f.Name(), path) // unlike a rename it replaces nothing
}
