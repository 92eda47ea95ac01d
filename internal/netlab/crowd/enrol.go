package crowd

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/auth"
	"tunneld/internal/control/carrier"
)

// Recruits are nodes to be invited by the daemon behind a socket, and enrolled.
type Recruits struct {
	Socket string
	Nodes  int
}

// enrolments at once: what a gateway has room for from strangers.
const enrolments = 8

// Join enrols more nodes. They are not connected.
func (c *Crowd) Join(r Recruits, total *int) error {
	first := len(c.nodes)
	for i := range r.Nodes {
		at := first + i
		c.nodes = append(c.nodes, newNode(c, fmt.Sprintf("crowd-%d", at), address(at)))
	}
	client := api.Dial(r.Socket)
	*total = len(c.nodes)
	return c.each(Batch{first, len(c.nodes), enrolments}, func(ctx context.Context, n *node) error { return n.join(ctx, client) })
}

// address is the loopback address of a node.
func address(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(1 + i>>16), byte(i >> 8), byte(i)})
}

// join gets the node its certificate.
func (n *node) join(ctx context.Context, gateway *api.Client) error {
	invite, err := gateway.Invite(ctx, api.InviteRequest{Node: n.name, TTLMillis: time.Hour.Milliseconds()})
	if err != nil {
		return err
	}
	code, err := auth.ParseCode(invite.Code)
	if err != nil {
		return err
	}
	key, err := auth.NewKey()
	if err != nil {
		return err
	}
	d := carrier.Dialer{Control: bindTo(n.source)}
	c, err := d.DialEnrol(ctx, code.Gateway, code.VerifyGateway)
	if err != nil {
		return err
	}
	defer c.Close()
	reply, err := auth.Enrol(c, c.Export, code, key)
	if err != nil {
		return err
	}
	if n.id, err = reply.Identity(code, key); err != nil {
		return err
	}
	if len(reply.Networks) == 0 {
		return fmt.Errorf("node %q may enter no network", n.name)
	}
	n.network = reply.Networks[0].Name
	n.dialer = &carrier.Dialer{
		Control: bindTo(n.source),
		Identity: carrier.Identity{
			Certificate: n.id.TLS(), Roots: n.id.Roots(), Verify: auth.VerifyGateway(code.Deployment, code.GatewayID),
		},
	}
	return nil
}
