package meter

import (
	"time"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

// Control finds the meter of a session. It gives the [engine.Device] that embeds
// it the methods that touch nothing but that.
type Control func(session.ID) (*Meter, error)

// SetGate opens or closes a session from the next batch on.
func (find Control) SetGate(id session.ID, g engine.Gate) error {
	return find.do(id, func(m *Meter) { m.SetGate(g) })
}

// SetDirection says which packets pass the open gate.
func (find Control) SetDirection(id session.ID, d engine.Direction) error {
	return find.do(id, func(m *Meter) { m.SetDirection(d) })
}

// SetRates bounds what passes in each direction.
func (find Control) SetRates(id session.ID, rx, tx engine.Rate) error {
	return find.do(id, func(m *Meter) {
		m.SetRate(Rx, rx)
		m.SetRate(Tx, tx)
	})
}

// SetDeadline says when the data path stops the session by itself.
func (find Control) SetDeadline(id session.ID, at time.Time) error {
	return find.do(id, func(m *Meter) { m.SetDeadline(at) })
}

func (find Control) do(id session.ID, f func(*Meter)) error {
	m, err := find(id)
	if err == nil {
		f(m)
	}
	return err
}
