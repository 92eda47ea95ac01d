package crowd

import (
	"errors"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// A node decides for its own machine and keeps no journal (control.Handler): its
// record lives as long as the process.

// Save keeps nothing.
func (n *node) Save(*control.Record) error { return nil }

// Forget has nothing to remove.
func (n *node) Forget() error { return nil }

// Authorize is asked of gateways only.
func (n *node) Authorize(control.AskAuthorize) *wire.Result { return notAGateway() }

// Grant is asked of gateways only.
func (n *node) Grant(control.AskSession) (control.Grant, *wire.Result) {
	return control.Grant{}, notAGateway()
}

// Sign is asked of gateways only.
func (n *node) Sign(control.AskSign) ([]byte, *wire.Result) { return nil, notAGateway() }

func notAGateway() *wire.Result { return &wire.Result{Code: wire.StopNotAuthorized} }

// SetUp accepts every session: there is no data plane.
func (n *node) SetUp(control.Session) *wire.Result { return nil }

// Notify follows the connection.
func (n *node) Notify(a control.Action) {
	switch a := a.(type) {
	case control.Opened, control.Resumed:
		n.change(func(s *state) { s.up, s.err = true, nil })
	case control.SessionUp:
		n.change(func(s *state) { s.session = a.Session.ID })
	case control.SessionRefused:
		n.change(func(s *state) { s.err = errors.New(a.Result.Describe(wire.TypeCDN)) })
	case control.SessionDown:
		n.change(func(s *state) {
			s.ended++
			s.session, s.err = session.ID{}, errors.New(a.Result.Describe(wire.TypeCDN))
		})
	case control.WasSuspended:
		n.change(func(s *state) {
			s.drops++
			s.up, s.err = false, a.Err
		})
	case control.SpreadTold:
		n.mu.Lock()
		n.pace.Told(a.Spread)
		n.mu.Unlock()
	case control.AttemptFailed:
		n.change(func(s *state) { s.err = a.Err })
	case control.Ended:
		n.mu.Lock()
		n.conn, n.nc = nil, nil
		n.mu.Unlock()
		n.change(func(s *state) {
			s.up, s.session, s.err = false, session.ID{}, errors.New(a.Result.Describe(wire.TypeStopCCN))
		})
	}
}

var _ control.Handler = (*node)(nil)
