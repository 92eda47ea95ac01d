package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/store"
)

// Registry is a gateway's book of nodes: who is invited, who is enrolled with
// which rights, who is revoked. Methods may be called from any goroutine, but
// not inside a transaction of the store unless they take one: they make their
// own. What they return without error is durable.
type Registry struct {
	store     store.Store
	authority *Authority
	bookLost  bool         // see BookLost
	decoy     secret.Value // stands in for the secret of an unknown invite
	self      atomic.Pointer[Identity]

	swept atomic.Int64 // when all invites were looked through, in Unix seconds
	order order        // of changes, kept by their mirrors below

	mu      sync.RWMutex
	serial  uint64 // all below: mu
	revoked map[session.ID]bool
	rights  map[session.ID]rights
	wrong   map[InviteID]int // failed tries; of invites that exist, so bounded
}

type rights struct {
	networks  []string
	advertise []netip.Prefix
	limits    Limits
}

// State of a node in the registry.
type State string

// A node is invited until it enrols, and enrolled until it is revoked.
const (
	Invited  State = "invited"
	Enrolled State = "enrolled"
	Revoked  State = "revoked"
)

// NodeInfo is one node of the registry.
type NodeInfo struct {
	Name      string
	ID        session.ID // zero before enrolment
	State     State
	Networks  []string
	Advertise []netip.Prefix
	Limits    Limits
	ExpiresAt time.Time  // of the invite, or of the certificate
	Serial    string     // of the certificate
	Invite    *time.Time // expiry of an open invite of a name that is enrolled or revoked
}

// nodeRecord is a node in the store, under its name.
type nodeRecord struct {
	ID        session.ID     `json:"id"` // zero: never enrolled
	State     State          `json:"state"`
	Networks  []string       `json:"networks"`
	Advertise []netip.Prefix `json:"advertise"`
	Limits    Limits         `json:"limits,omitzero"`
	Serial    string         `json:"serial"`
	KeyHash   []byte         `json:"key_hash"`
	NotAfter  time.Time      `json:"not_after"`
	Pending   *InviteID      `json:"pending,omitempty"` // the one invite that may still change this
}

// revocation is one in the store, under the node's id. It is kept for good.
type revocation struct {
	Name   string    `json:"name"`
	At     time.Time `json:"at"`
	Serial uint64    `json:"serial"`
}

// InitGateway makes a deployment: its id, its authority and the identity of the
// gateway called name, in one transaction. If the store has them already the
// error wraps ErrInitialised and nothing changes.
func InitGateway(st store.Store, name string, now time.Time) (Identity, error) {
	if err := ValidName(name); err != nil {
		return Identity{}, err
	}
	authority, err := NewAuthority(session.NewID(), now)
	if err != nil {
		return Identity{}, err
	}
	id, err := authority.newGateway(name, session.NewID(), now)
	if err != nil {
		return Identity{}, err
	}
	sealed, err := authority.Marshal()
	if err != nil {
		return Identity{}, err
	}
	err = st.Update(func(tx store.Tx) error {
		_, err := tx.Get(bucketAuthority, "ca")
		if ok, err := found(err); err != nil {
			return err
		} else if ok {
			return ErrInitialised
		}
		if err := tx.Put(bucketAuthority, "ca", sealed); err != nil {
			return err
		}
		return id.Save(tx)
	})
	if err != nil {
		return Identity{}, fmt.Errorf("new deployment of gateway %q: %w", name, err)
	}
	return id, nil
}

// newGateway signs a gateway's identity with a fresh key.
func (a *Authority) newGateway(name string, id session.ID, now time.Time) (Identity, error) {
	key, err := NewKey()
	if err != nil {
		return Identity{}, err
	}
	csr, err := NewCSR(key)
	if err != nil {
		return Identity{}, err
	}
	cert, err := a.Sign(csr, Grant{Role: Gateway, NodeName: name, NodeID: id, At: now})
	if err != nil {
		return Identity{}, err
	}
	return NewIdentity(key, cert, a.cert)
}

// OpenRegistry reads what InitGateway and the registry's own methods stored. On
// a store without a gateway the error wraps store.ErrNotFound.
func OpenRegistry(st store.Store) (*Registry, error) {
	r := &Registry{store: st, wrong: make(map[InviteID]int)}
	decoy := make([]byte, secretLen)
	rand.Read(decoy)
	r.decoy = secret.New(decoy)
	err := st.View(func(tx store.Tx) error {
		b, err := tx.Get(bucketAuthority, "ca")
		if err != nil {
			return fmt.Errorf("authority: %w", err)
		}
		if r.authority, err = UnmarshalAuthority(b); err != nil {
			return err
		}
		self, err := LoadIdentity(tx, r.authority.deployment, Gateway)
		if err != nil {
			return err
		}
		r.self.Store(&self)
		return r.load(tx)
	})
	if err != nil {
		return nil, fmt.Errorf("registry of nodes: %w", err)
	}
	return r, nil
}

// load fills the mirror in memory.
func (r *Registry) load(tx store.Tx) (err error) {
	r.revoked, r.rights = make(map[session.ID]bool), make(map[session.ID]rights)
	if r.bookLost, err = bookLost(tx); err != nil {
		return err
	}
	if r.serial, err = readSerial(tx); err != nil {
		return err
	}
	err = tx.Each(bucketRevoked, func(key string, _ []byte) error {
		id, err := session.ParseID(key)
		r.revoked[id] = true
		return err
	})
	if err != nil {
		return fmt.Errorf("revocations: %w", err)
	}
	return tx.Each(bucketNodes, func(name string, b []byte) error {
		var n nodeRecord
		if err := json.Unmarshal(b, &n); err != nil {
			return fmt.Errorf("node %q: %w", name, err)
		}
		if n.State == Enrolled {
			r.rights[n.ID] = rights{n.Networks, n.Advertise, n.Limits}
		}
		return nil
	})
}

// change runs fn in a transaction and, when that is durable, mirror. Changes
// share a write to disk, and their mirrors have the order of the changes.
func (r *Registry) change(fn func(store.Tx) error, mirror func()) error {
	var turns []uint64 // of each run of the function; the last one counts
	err := r.store.Update(func(tx store.Tx) error {
		err := fn(tx)
		if err == nil {
			turns = append(turns, r.order.take())
		}
		return err
	})
	for i, turn := range turns {
		r.order.await(turn)
		if err == nil && i == len(turns)-1 {
			r.mu.Lock()
			mirror()
			r.mu.Unlock()
		}
		r.order.done()
	}
	return err
}

// Deployment is whose registry this is.
func (r *Registry) Deployment() session.ID { return r.authority.deployment }

// Identity is the gateway's own, as of now.
func (r *Registry) Identity() Identity { return *r.self.Load() }

// RenewGateway gives the gateway a new key and certificate, for its next
// handshakes. The caller looks at RenewAt.
func (r *Registry) RenewGateway(now time.Time) (Identity, error) {
	old := r.Identity()
	id, err := r.authority.newGateway(old.Name, old.ID, now)
	if err != nil {
		return Identity{}, err
	}
	if err := r.change(id.Save, func() { r.self.Store(&id) }); err != nil {
		return Identity{}, fmt.Errorf("certificate of gateway %q: %w", old.Name, err)
	}
	return id, nil
}

// Revoked reports whether id may no longer connect. It answers from memory.
func (r *Registry) Revoked(id session.ID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.revoked[id]
}

// RevocationSerial counts revocations. Who decides on a right reads it before,
// and hands it to CheckGrant when the decision is committed.
func (r *Registry) RevocationSerial() uint64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.serial
}

// Rights is what node id may do: the networks it may open and the prefixes it
// may advertise. It answers from memory; ok is false for an id that is not
// enrolled, or revoked.
func (r *Registry) Rights(id session.ID) (networks []string, advertise []netip.Prefix, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.revoked[id] {
		return nil, nil, false
	}
	g, ok := r.rights[id]
	return slices.Clone(g.networks), slices.Clone(g.advertise), ok
}

// CheckGrant belongs into every transaction that grants node id something on a
// decision made at revocation serial: between the two the node may have been
// revoked. The error wraps ErrRevoked.
func CheckGrant(tx store.Tx, id session.ID, serial uint64) error {
	now, err := readSerial(tx)
	if err != nil || now == serial {
		return err
	}
	var rev revocation
	revoked, err := found(getJSON(tx, bucketRevoked, id.String(), &rev))
	if err != nil || !revoked {
		return err
	}
	return revokedError(rev.Name, id, rev.At)
}

func revokedError(name string, id session.ID, at time.Time) error {
	return fmt.Errorf("%w: node %q with id %v, at %s", ErrRevoked, name, id, at.UTC().Format(time.RFC3339))
}

func readSerial(tx store.Tx) (uint64, error) {
	var n uint64
	if _, err := found(getJSON(tx, bucketRegistry, "serial", &n)); err != nil {
		return 0, fmt.Errorf("revocation serial: %w", err)
	}
	return n, nil
}

// revokeTx journals that id may no longer connect and returns the new serial.
func revokeTx(tx store.Tx, name string, id session.ID, now time.Time) (uint64, error) {
	serial, err := readSerial(tx)
	if err != nil {
		return 0, err
	}
	serial++
	if err := putJSON(tx, bucketRegistry, "serial", serial); err != nil {
		return 0, err
	}
	return serial, putJSON(tx, bucketRevoked, id.String(), revocation{name, now, serial})
}

// mirrorRevoked needs mu held.
func (r *Registry) mirrorRevoked(id session.ID, serial uint64) {
	r.revoked[id] = true
	delete(r.rights, id)
	r.serial = serial
}

// Revoke takes node name's certificate and any open invite of it out of use and
// returns its id, which is zero for a node that never enrolled: that one is
// forgotten. To revoke again changes nothing. An unknown name is ErrNoNode. When
// Revoke returns, Revoked and Rights answer accordingly, and handshakes and
// grants fail; transports and sessions that are up are the caller's to end.
func (r *Registry) Revoke(name string, now time.Time) (session.ID, error) {
	var rec nodeRecord
	var serial uint64
	err := r.change(func(tx store.Tx) (err error) {
		rec, serial = nodeRecord{}, 0
		if err := getNode(tx, name, &rec); err != nil {
			return err
		}
		if err := withdraw(tx, rec.Pending); err != nil {
			return err
		}
		rec.Pending = nil
		if rec.ID.IsZero() {
			return tx.Delete(bucketNodes, name)
		}
		if rec.State == Enrolled {
			if serial, err = revokeTx(tx, name, rec.ID, now); err != nil {
				return err
			}
			rec.State = Revoked
		}
		return putJSON(tx, bucketNodes, name, rec)
	}, func() {
		if serial != 0 {
			r.mirrorRevoked(rec.ID, serial)
		}
	})
	if err != nil {
		return session.ID{}, fmt.Errorf("revoke node %q: %w", name, err)
	}
	return rec.ID, nil
}

func getNode(tx store.Tx, name string, rec *nodeRecord) error {
	ok, err := found(getJSON(tx, bucketNodes, name, rec))
	if err == nil && !ok {
		err = fmt.Errorf("%w: %.64q", ErrNoNode, name)
	}
	return err
}

// List returns all nodes by name.
func (r *Registry) List() ([]NodeInfo, error) {
	var nodes []NodeInfo
	err := r.store.View(func(tx store.Tx) error {
		nodes = nil
		return tx.Each(bucketNodes, func(name string, b []byte) error {
			var rec nodeRecord
			if err := json.Unmarshal(b, &rec); err != nil {
				return fmt.Errorf("node %q: %w", name, err)
			}
			info, err := rec.info(tx, name)
			nodes = append(nodes, info)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list of nodes: %w", err)
	}
	return nodes, nil
}

// info joins a node with its open invite.
func (rec nodeRecord) info(tx store.Tx, name string) (NodeInfo, error) {
	info := NodeInfo{
		Name: name, ID: rec.ID, State: rec.State, Networks: rec.Networks,
		Advertise: rec.Advertise, Limits: rec.Limits, ExpiresAt: rec.NotAfter, Serial: rec.Serial,
	}
	if rec.Pending == nil {
		return info, nil
	}
	var inv invite
	if ok, err := found(getJSON(tx, bucketInvites, rec.Pending.String(), &inv)); !ok {
		return info, err
	}
	if rec.State == Invited {
		info.ExpiresAt = inv.ExpiresAt
	} else {
		info.Invite = &inv.ExpiresAt
	}
	return info, nil
}

// Renew signs a new certificate for an enrolled node with the same name, id and
// role; the key may be a new one. peer is who asks, from a verified
// certificate. A node that is revoked or replaced gets ErrRevoked.
func (r *Registry) Renew(peer Peer, csr []byte, now time.Time) ([]byte, error) {
	var der []byte
	err := r.change(func(tx store.Tx) error {
		if peer.Deployment != r.Deployment() || peer.Role != Node {
			return fmt.Errorf("%w: a %v of deployment %v", ErrWrongRole, peer.Role, peer.Deployment)
		}
		var rec nodeRecord
		if err := getNode(tx, peer.Name, &rec); err != nil {
			return err
		}
		if rec.ID != peer.ID || rec.State != Enrolled {
			return fmt.Errorf("%w: id %v is not the one enrolled", ErrRevoked, peer.ID)
		}
		cert, err := r.authority.Sign(csr, Grant{Role: Node, NodeName: peer.Name, NodeID: peer.ID, At: now})
		if err != nil {
			return err
		}
		der = cert
		return rec.certified(tx, peer.Name, cert)
	}, func() {})
	if err != nil {
		return nil, fmt.Errorf("renew certificate of %q: %w", peer.Name, err)
	}
	return der, nil
}

// fingerprint of the authority, as invite codes carry it.
func (r *Registry) fingerprint() [sha256.Size]byte { return sha256.Sum256(r.authority.cert.Raw) }
