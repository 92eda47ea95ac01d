package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"tunneld/internal/netlab"
)

const (
	frozenFor = 8 * time.Second
	// watchFor is the least time that an event is watched, so that what comes
	// after the resume is seen too.
	watchFor = 2 * time.Second
	// lateAnswers is how long after an event answers may still come.
	lateAnswers = 500 * time.Millisecond

	newAddress = "192.168.1.77/24"
	router     = "192.168.1.1"
)

// event is one thing that is done to alice's session. act does it and returns
// when it is over, as far as the event itself tells; the common part that
// follows waits until both ends are well.
type event struct {
	name, what string
	act        func(ctx context.Context, before state) error
}

// state is alice's session as both ends see it.
type state struct {
	node    netlab.TunnelStatus
	gateway netlab.SessionStatus
}

func (t *theatre) playEvents(ctx context.Context) error {
	for _, e := range []event{
		{controlCut, "a bystander resets the control connection", t.cutControl},
		{addressChange, "alice gets another address", t.changeAddress},
		{gatewayKill, "kill -9 of the gateway, and a new start", func(ctx context.Context, _ state) error { return t.kill(ctx, t.hq) }},
		{nodeKill, "kill -9 of alice's daemon, and a new start", func(ctx context.Context, _ state) error { return t.kill(ctx, t.alice) }},
		{freeze, fmt.Sprintf("alice closes the lid for %v", frozenFor), t.freeze},
	} {
		if err := t.playEvent(ctx, e); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	if err := t.finishTransfer(ctx); err != nil {
		return err
	}
	if err := t.down(ctx); err != nil {
		return fmt.Errorf("%s: %w", down, err)
	}
	return nil
}

func (t *theatre) playEvent(ctx context.Context, e event) error {
	before, err := t.settled(ctx, func(state) bool { return true })
	if err != nil {
		return err
	}
	t.say.line("%s: %s", e.name, e.what)
	begin, enough := t.probe.Mark(), time.After(watchFor)
	acting, cancel := context.WithTimeoutCause(ctx, patience+frozenFor, fmt.Errorf("not within %v", patience+frozenFor))
	defer cancel()
	if err := e.act(acting, before); err != nil {
		return err
	}
	after, err := t.settled(acting, func(s state) bool {
		return e.name != controlCut || s.gateway.Resumes > before.gateway.Resumes
	})
	if err != nil {
		return err
	}
	select {
	case <-enough:
	case <-acting.Done():
		return context.Cause(acting)
	}
	if _, err := t.probe.WaitAnswer(acting, t.probe.Mark()); err != nil {
		return err
	}
	alive := t.stream.Alive(acting)
	r := t.result(e.name, t.probe.Since(acting, begin, lateAnswers))
	r.TCPSurvived = alive == nil
	r.SessionUnchanged = after.node.Session == before.node.Session && after.gateway.Session == before.gateway.Session &&
		slices.Equal(after.node.Addresses, before.node.Addresses)
	r.Resumes = after.gateway.Resumes - before.gateway.Resumes
	t.report.Events = append(t.report.Events, r)
	t.say.line("%s: over: %d of %d packets lost, longest gap %.1f ms, %d resumed", e.name, r.Lost, r.Sent, r.LongestGapMS, r.Resumes)
	return alive
}

func (t *theatre) result(name string, s netlab.Stats) result {
	return result{Event: name, Sent: s.Sent, Lost: s.Lost, LongestGapMS: math.Round(ms(s.LongestGap)*10) / 10}
}

// settled waits until both ends call alice's session established, and ok is
// true of it.
func (t *theatre) settled(ctx context.Context, ok func(state) bool) (s state, err error) {
	ctx, cancel := waiting(ctx)
	defer cancel()
	s.node, err = t.alice.WaitTunnel(ctx, network, netlab.Established, func(tunnel netlab.TunnelStatus) bool {
		return tunnel.State == netlab.Established
	})
	if err != nil {
		return s, err
	}
	_, err = t.hq.WaitSessions(ctx, "with alice's established", func(list []netlab.SessionStatus) bool {
		i := slices.IndexFunc(list, func(g netlab.SessionStatus) bool { return g.Node == "alice" })
		if i < 0 || list[i].State != netlab.Established {
			return false
		}
		s.gateway = list[i]
		return ok(s)
	})
	return s, err
}

// cutControl resets alice's control connection on its way, and sees to it that
// the old one is gone.
func (t *theatre) cutControl(ctx context.Context, _ state) error {
	before, err := t.net.Hosts["alice"].Conns(port)
	if err != nil {
		return err
	}
	if n := t.net.Wires["nat.wan"].ResetTCP(port); n == 0 {
		return errors.New("no control connection was seen on the wire")
	}
	return netlab.Poll(ctx, 5*time.Millisecond, func() (bool, error) {
		now, err := t.net.Hosts["alice"].Conns(port)
		gone := !slices.ContainsFunc(before, func(c netlab.Conn) bool { return slices.Contains(now, c) })
		return len(before) > 0 && gone, err
	})
}

// changeAddress waits until a control connection comes from the new address.
func (t *theatre) changeAddress(ctx context.Context, _ state) error {
	alice := t.net.Hosts["alice"]
	if err := errors.Join(alice.SetAddr("eth0", newAddress), alice.DefaultRoute(router)); err != nil {
		return err
	}
	return netlab.Poll(ctx, 5*time.Millisecond, func() (bool, error) {
		now, err := alice.Conns(port)
		return slices.ContainsFunc(now, func(c netlab.Conn) bool { return newAddress == c.Local.Addr().String()+"/24" }), err
	})
}

// kill kills a daemon and starts it again at once.
func (t *theatre) kill(ctx context.Context, d *netlab.Daemon) error {
	if err := d.Process().Kill9(); err != nil {
		return err
	}
	return t.start(ctx, d)
}

// freeze stops alice's daemon as a sleeping laptop does.
func (t *theatre) freeze(ctx context.Context, _ state) error {
	p := t.alice.Process()
	if err := p.Freeze(); err != nil {
		return err
	}
	select {
	case <-time.After(frozenFor):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return p.Thaw()
}

// finishTransfer lets the rest of the transfer go at a faster pace.
func (t *theatre) finishTransfer(ctx context.Context) error {
	ctx, cancel := waiting(ctx)
	defer cancel()
	t.say.line("the transfer has outlived them all: %d of 64 MiB so far, now the rest", t.stream.Received()>>20)
	t.stream.SetRate(transferRest)
	t.stream.Release()
	if err := t.stream.Wait(ctx); err != nil {
		return err
	}
	t.report.SHA256OK = true
	t.say.show(nil)
	t.say.line("all came as it was sent, by SHA-256")
	return nil
}

// down closes the session in good order: the gateway forgets it, the interface
// goes, and the next one has a new name and the old address.
func (t *theatre) down(ctx context.Context) error {
	before, err := t.settled(ctx, func(state) bool { return true })
	if err != nil {
		return err
	}
	ctx, cancel := waiting(ctx)
	defer cancel()
	t.say.line("%s: tunnelctl down, and up again", down)
	begin := t.probe.Mark()
	if _, err := t.alice.Ctl(ctx, "down", network); err != nil {
		return err
	}
	_, err = t.hq.WaitSessions(ctx, "without alice's", func(list []netlab.SessionStatus) bool {
		return !slices.ContainsFunc(list, func(s netlab.SessionStatus) bool { return s.Node == "alice" })
	})
	if err != nil {
		return err
	}
	if t.net.Hosts["alice"].HasInterface(before.node.Interface) {
		return fmt.Errorf("interface %s is still there", before.node.Interface)
	}
	if _, err := t.alice.Ctl(ctx, "up", network); err != nil {
		return err
	}
	after, err := t.settled(ctx, func(state) bool { return true })
	if err != nil {
		return err
	}
	if !slices.Equal(after.node.Addresses, before.node.Addresses) {
		return fmt.Errorf("addresses were %v and are %v", before.node.Addresses, after.node.Addresses)
	}
	if _, err := t.probe.WaitAnswer(ctx, t.probe.Mark()); err != nil {
		return err
	}
	r := t.result(down, t.probe.Since(ctx, begin, lateAnswers))
	r.TCPSurvived = true // it had ended well before
	r.SessionUnchanged = after.node.Session == before.node.Session
	t.report.Events = append(t.report.Events, r)
	t.say.line("%s: over: a new session %s with the same addresses", down, after.node.Session)
	return nil
}
