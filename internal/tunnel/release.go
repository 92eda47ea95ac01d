package tunnel

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"tunneld/internal/api"
	"tunneld/internal/auth"
	"tunneld/internal/event"
	"tunneld/internal/session"
)

// ReleaseSession lets the packets of a quarantined session pass. Of the ways into
// quarantine two have their own way out: the node's `resume`, and ICCN. The
// third is a node of which nothing is known since the book of nodes is lost:
// whoever releases a session of it answers for the node, which is then in the
// book again, with the rights that its sessions make use of.
func (m *Manager) ReleaseSession(ctx context.Context, id string) error {
	mb, t, err := m.find(id)
	if err != nil {
		return err
	}
	if t != nil {
		return &api.Error{Code: api.Failed, Message: fmt.Sprintf("session %q is one that this node dialled: it is quarantined at its gateway, if at all", id), Hint: fmt.Sprintf("`tunnelctl resume %s` goes on with what `suspend` holds", t.cfg.Name)}
	}
	g := m.gateway
	s, err := g.stranger(mb)
	if err != nil {
		return err
	}
	if err := g.registry.Accept(s); err != nil {
		return acceptError(s, err)
	}
	m.log.Info("node accepted", event.KeyNode, s.Name, event.Request(api.RequestOf(ctx)))
	g.release(s.ID, api.RequestOf(ctx))
	return nil
}

// stranger reports whether nothing is known of the session's node.
func (mb *member) stranger() bool { return mb.network.g.registry.Stranger(mb.nodeID) }

// stranger is the node of a quarantined session, with the rights that its
// sessions make use of.
func (g *gateway) stranger(mb *member) (auth.Stranger, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !mb.stranger() {
		return auth.Stranger{}, notQuarantined(mb)
	}
	s := auth.Stranger{Name: mb.node, ID: mb.nodeID, NotAfter: mb.conn.certTo}
	for _, other := range g.members.byNode.list(mb.nodeID) {
		s.Networks = append(s.Networks, other.network.cfg.Name)
		s.Advertise = append(s.Advertise, other.advertise...)
	}
	slices.Sort(s.Networks)
	s.Networks, s.Advertise = slices.Compact(s.Networks), sortPrefixes(s.Advertise)
	return s, nil
}

// notQuarantined says what else keeps the packets of a session, if anything.
func notQuarantined(mb *member) error {
	e := &api.Error{Code: api.Failed, Message: fmt.Sprintf("session %v is not quarantined", mb.id)}
	switch {
	case mb.held:
		e.Hint = fmt.Sprintf("node %q holds it: `tunnelctl resume` there goes on with it", mb.node)
	case mb.state == session.WaitConnect:
		e.Hint = "it is being set up"
	}
	return e
}

func acceptError(s auth.Stranger, err error) error {
	e := &api.Error{Code: api.Failed, Message: err.Error()}
	switch {
	case errors.Is(err, auth.ErrNameTaken):
		e.Message = fmt.Sprintf("node %q was invited anew meanwhile: the name has one owner", s.Name)
		e.Hint = fmt.Sprintf("have it join with the new invite, or take that back (`tunnelctl node revoke %s`) and release the session then", s.Name)
	case errors.Is(err, auth.ErrNoStranger):
		e.Message = fmt.Sprintf("node %q was accepted or revoked meanwhile", s.Name)
	}
	return e
}

// release opens the gates of a node's sessions. One that is being set up is
// opened when that is done.
func (g *gateway) release(node, request session.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, mb := range g.members.byNode.list(node) {
		if mb.state == session.WaitConnect {
			continue
		}
		if err := mb.network.dev.SetGate(mb.id, mb.gate()); err != nil {
			g.m.log.Error("gate not opened", event.KeySession, mb.id, event.KeyErr, err)
		}
		g.record(mb, event.Event{Kind: event.QuarantineLifted, Request: request})
	}
}
