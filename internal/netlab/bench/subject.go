package main

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"tunneld/internal/netlab"
)

// Of each pair of hosts: the interface of the wire, its addresses, left and
// right, and the prefix length.
const (
	wireIf    = "eth0"
	leftWire  = "192.0.2.1"
	rightWire = "192.0.2.2"
	wireBits  = "/24"
)

// settle is how long something that was started may take.
const settle = 20 * time.Second

// A subject is one tunnel from the left host to the right one.
type subject struct {
	address   string  // of the right host, inside the tunnel
	processes []*proc // left, right
}

// proc is what memory is read of.
type proc = netlab.Process

// bare is no tunnel: what the harness itself can do, and nobody surpass.
var bare = subject{address: rightWire}

// A pair is two hosts and the wire between them.
type pair struct {
	left, right *netlab.Host
}

func newPair(lab *netlab.Lab, name string, join func(left, right *netlab.Host) error) (*pair, error) {
	left, err := lab.Host(name + "-left")
	if err != nil {
		return nil, err
	}
	right, err := lab.Host(name + "-right")
	if err != nil {
		return nil, err
	}
	return &pair{left: left, right: right}, errors.Join(join(left, right), left.SetAddr(wireIf, leftWire+wireBits), right.SetAddr(wireIf, rightWire+wireBits))
}

// tunnel is our daemons, with the node on the left.
type tunnel struct {
	subject
	pair *pair
	node *netlab.Daemon
}

// ourTunnel is the network's and hence the tunnel's name.
const ourTunnel = "bench"

func startTunneld(ctx context.Context, p *pair, bin netlab.Binaries) (*tunnel, error) {
	gateway, node := p.right.Daemon(bin, "gateway"), p.left.Daemon(bin, "node")
	if err := dialUp(ctx, gateway, node); err != nil {
		return nil, err
	}
	s := subject{address: "10.77.0.1", processes: []*proc{node.Process(), gateway.Process()}}
	return &tunnel{s, p, node}, nil
}

// dialUp makes a gateway and a node from nothing, starts them, and has the node's
// tunnel up.
func dialUp(ctx context.Context, gateway, node *netlab.Daemon) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	if err := gateway.Init(ctx, "--name", "gateway", "--public", rightWire+":443", "--network", ourTunnel+"=10.77.0.0/24"); err != nil {
		return err
	}
	if err := node.Init(ctx, "--name", "node"); err != nil {
		return err
	}
	for _, d := range []*netlab.Daemon{gateway, node} {
		if err := d.Start(); err != nil {
			return err
		}
		if err := d.WaitReady(ctx); err != nil {
			return err
		}
	}
	code, err := gateway.Ctl(ctx, "invite", "node")
	if err != nil {
		return err
	}
	if _, err := node.CtlInput(ctx, code, "join", "-"); err != nil {
		return err
	}
	_, err = node.Ctl(ctx, "up", ourTunnel)
	return err
}

// wireguard is two processes of wireguard-go.
type wireguard struct {
	subject
	sockets []string
}

// wgEnd is one end of a WireGuard tunnel.
type wgEnd struct {
	host            *netlab.Host
	ifname, address string
	private, public string // base64
	listen          string
	peer            []string // further arguments of `wg set … peer`
}

// startWireGuard builds wireguard-go as go.mod names it, and joins the hosts.
func startWireGuard(ctx context.Context, lab *netlab.Lab, p *pair) (*wireguard, error) {
	program := filepath.Join(lab.Dir(), "wireguard-go")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "golang.zx2c4.com/wireguard").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build wireguard-go: %w: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	// The names are this process's own: wireguard-go's sockets share one directory.
	left := &wgEnd{host: p.left, ifname: fmt.Sprintf("wgl%d", os.Getpid()), address: "10.99.0.1", listen: "51820",
		peer: []string{"allowed-ips", "10.99.0.2/32", "endpoint", rightWire + ":51820"}}
	right := &wgEnd{host: p.right, ifname: fmt.Sprintf("wgr%d", os.Getpid()), address: "10.99.0.2", listen: "51820",
		peer: []string{"allowed-ips", "10.99.0.1/32"}}
	w := &wireguard{subject: subject{address: right.address, processes: make([]*proc, 2)}}
	for i, end := range []*wgEnd{left, right} {
		if err := end.newKey(); err != nil {
			return nil, err
		}
		process, err := end.host.Start("wireguard-go", program, "-f", end.ifname)
		if err != nil {
			return nil, err
		}
		w.processes[i] = process
		w.sockets = append(w.sockets, "/var/run/wireguard/"+end.ifname+".sock")
	}
	for i, end := range []*wgEnd{left, right} {
		if err := end.configure(ctx, lab.Dir(), []*wgEnd{right, left}[i].public); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (e *wgEnd) newKey() error {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	e.private = base64.StdEncoding.EncodeToString(key.Bytes())
	e.public = base64.StdEncoding.EncodeToString(key.PublicKey().Bytes())
	return nil
}

// configure waits for the interface and says who is at its other end. It does
// not ask with wg, which removes a socket that nobody listens to yet.
func (e *wgEnd) configure(ctx context.Context, dir, peer string) error {
	err := netlab.Poll(ctx, 10*time.Millisecond, func() (bool, error) {
		c, err := net.Dial("unix", "/var/run/wireguard/"+e.ifname+".sock")
		if err == nil {
			c.Close()
		}
		return err == nil && e.host.HasInterface(e.ifname), nil
	})
	if err != nil {
		return fmt.Errorf("wireguard-go made no interface %s: %w", e.ifname, err)
	}
	file := filepath.Join(dir, e.ifname+".key")
	if err := os.WriteFile(file, []byte(e.private+"\n"), 0o600); err != nil {
		return err
	}
	args := append([]string{"set", e.ifname, "listen-port", e.listen, "private-key", file, "peer", peer}, e.peer...)
	if _, err := e.host.Run(ctx, "", "wg", args...); err != nil {
		return err
	}
	return errors.Join(e.host.SetAddr(e.ifname, e.address+"/24"), e.host.SetUp(e.ifname, true))
}

// stop ends the processes in order and sees to the sockets they may have left.
func (w *wireguard) stop() {
	for _, p := range w.processes {
		if p.Running() {
			p.Stop() // it is over either way
		}
	}
	for _, s := range w.sockets {
		os.Remove(s)
	}
}
