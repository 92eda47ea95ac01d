package wire

// A Ticket gives a node, sealed, what its gateway has of a session:
// docs/protocol.md, "Tickets". Only a gateway sends it, each in the place of the
// one before.
type Ticket struct {
	LocalID, RemoteID uint32
	Ticket            []byte // nothing to its holder
}

// Type of the message.
func (*Ticket) Type() MessageType { return TypeTicket }

// avpTicket is a part of a ticket.
var avpTicket = vendor(26, "Ticket", mBit, chunk)

var ticketSpec = define[Ticket](nil,
	must(avpLocalID, func(m *Ticket) *uint32 { return &m.LocalID }),
	must(avpRemoteID, func(m *Ticket) *uint32 { return &m.RemoteID }),
	chunked(avpTicket, true, func(m *Ticket) *[]byte { return &m.Ticket }),
)

// check refuses half a rebuild.
func (m *ICRQ) check() error {
	if (len(m.Ticket) > 0) != (m.KeyEpoch != 0) {
		return missing("Ticket and Key Epoch go together")
	}
	return nil
}
