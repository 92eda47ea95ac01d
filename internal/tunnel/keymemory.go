package tunnel

import (
	"tunneld/internal/api"
	"tunneld/internal/event"
	"tunneld/internal/tunnel/engine"
)

// keyMemory is whether live keys could reach a disk, as `status` shows it.
func (m *Manager) keyMemory() api.KeyMemory {
	on, err := m.host.Swap()
	if err != nil {
		m.log.Warn("host not examined", event.KeyErr, err)
		return keyMemoryView(m.engine.KeyMemory(), nil)
	}
	return keyMemoryView(m.engine.KeyMemory(), &on)
}

// keyMemoryView says what is to be done about it, if anything. Where there is no
// swap there is no need; but a limit that is too low is a mistake all the same,
// since somebody may turn one on.
func keyMemoryView(k engine.KeyMemory, swap *bool) api.KeyMemory {
	v := api.KeyMemory{Locked: k.Unlocked == nil, Swap: swap, Why: maybeError(k.Unlocked)}
	switch {
	case v.Locked:
	case k.Limited:
		v.Mend = maybe("systemctl edit tunneld (write LimitMEMLOCK=infinity under [Service]), then systemctl restart tunneld")
	case swap == nil || *swap:
		v.Mend = maybe("swapoff -a")
	}
	return v
}
