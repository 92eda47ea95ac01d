package auth

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"tunneld/internal/session"
	"tunneld/internal/store"
)

// ErrNoStranger is the error for a node of which the registry knows something.
var ErrNoStranger = errors.New("auth: the registry knows that node")

// A Stranger is a node with a certificate of this deployment that the registry
// has lost, and what it is to have again.
type Stranger struct {
	Name      string
	ID        session.ID
	Networks  []string
	Advertise []netip.Prefix
	NotAfter  time.Time // end of its certificate
}

// Accept enters a stranger as an enrolled node, because somebody answers for it.
// A revocation that comes back with the book still counts. The error wraps
// ErrNoStranger where the node is none, and ErrNameTaken where its name belongs
// to another one by now, or to an invite.
func (r *Registry) Accept(s Stranger) error {
	err := r.change(func(tx store.Tx) error {
		lost, err := bookLost(tx)
		if err != nil {
			return err
		}
		revoked, err := found(getJSON(tx, bucketRevoked, s.ID.String(), new(revocation)))
		if err != nil {
			return err
		}
		if !lost || revoked {
			return fmt.Errorf("%w: id %v", ErrNoStranger, s.ID)
		}
		var rec nodeRecord
		switch known, err := found(getJSON(tx, bucketNodes, s.Name, &rec)); {
		case err != nil:
			return err
		case known && rec.ID == s.ID:
			return fmt.Errorf("%w: id %v", ErrNoStranger, s.ID)
		case known:
			return ErrNameTaken
		}
		return putJSON(tx, bucketNodes, s.Name, nodeRecord{ID: s.ID, State: Enrolled, Networks: s.Networks, Advertise: s.Advertise, NotAfter: s.NotAfter})
	}, func() { r.rights[s.ID] = rights{networks: s.Networks, advertise: s.Advertise} })
	if err != nil {
		return fmt.Errorf("accept node %.64q: %w", s.Name, err)
	}
	return nil
}
