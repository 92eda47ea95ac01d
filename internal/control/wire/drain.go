package wire

import "time"

// A Drain says that a gateway is about to go, or that it stays after all:
// docs/protocol.md, "Drain". Only a gateway sends it.
type Drain struct {
	Leaving  bool
	Gateways []string      // HOST:PORT, where to go instead; none: whatever the node has
	Delay    time.Duration // when: this long from now; milliseconds on the wire
}

// Type of the message.
func (*Drain) Type() MessageType { return TypeDrain }

// maxGateways bounds a list of gateways to go to.
const maxGateways = 16

var (
	avpTryGateway = vendor(27, "Other Gateway", noMBit, name(true))
	avpLeaving    = vendor(28, "Leaving", mBit, fixed(1,
		func(b []byte, v bool) []byte { return append(b, octetOf[v]) },
		func(b []byte) bool { return b[0] != 0 }))
	avpDelay = vendor(29, "Delay", noMBit, fixed(4, appendDuration, duration).where(validDuration))
)

var octetOf = map[bool]byte{true: 1}

var drainSpec = define((*Drain).check,
	must(avpLeaving, func(m *Drain) *bool { return &m.Leaving }),
	list(avpTryGateway, func(m *Drain) *[]string { return &m.Gateways }),
	may(avpDelay, func(m *Drain) *time.Duration { return &m.Delay }),
)

func (m *Drain) check() error {
	if !m.Leaving && (len(m.Gateways) > 0 || m.Delay != 0) {
		return missing("Other Gateway or Delay stands without a gateway that leaves")
	}
	return checkGateways(m.Gateways)
}

// check lets gateways be named only where the Error Code says so (RFC 3931,
// section 5.4.2, Error Code 9).
func (m *StopCCN) check() error {
	if named := m.Result.Code == StopError && m.Result.Error == ErrorTryNamed; len(m.Gateways) > 0 && !named {
		return missing("Other Gateway stands without Error Code 9")
	}
	return checkGateways(m.Gateways)
}

func checkGateways(list []string) error {
	if len(list) > maxGateways {
		return tooMany(len(list), maxGateways, "gateways")
	}
	return nil
}
