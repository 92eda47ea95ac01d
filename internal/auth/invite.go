package auth

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/store"
)

// Lives of invites.
const (
	DefaultInviteTTL = time.Hour
	maxInviteTTL     = 30 * 24 * time.Hour // a code is a password on paper
	// forgetInvites is how long after its end an invite is still known, so
	// that its holder hears "expired" and not "unknown".
	forgetInvites = 30 * 24 * time.Hour
)

// InviteRequest asks for an invite.
type InviteRequest struct {
	Node      string
	Networks  []string       // that the node may open
	Advertise []netip.Prefix // that it may announce
	Limits    Limits         // of its sessions
	TTL       time.Duration  // 0: DefaultInviteTTL
	// Replace allows a name that is enrolled. The old node goes on working
	// until the new one enrols, which revokes it: an invite that is lost or
	// never used cuts nobody off.
	Replace bool
	Gateway string // HOST:PORT as nodes dial it
}

// invite is one in the store, under its id. The gateway must know the secret to
// check a MAC made with it; the store seals it.
type invite struct {
	Secret    []byte         `json:"secret"`
	Node      string         `json:"node"`
	NodeID    session.ID     `json:"node_id"` // the id the node will have
	Networks  []string       `json:"networks"`
	Advertise []netip.Prefix `json:"advertise"`
	Limits    Limits         `json:"limits,omitzero"`
	ExpiresAt time.Time      `json:"expires_at"`
	Withdrawn string         `json:"withdrawn,omitempty"` // why it is no longer valid
	// Once used, an invite belongs to one key and gives only it the same
	// certificate again: an answer that was lost can be asked for once more.
	KeyHash     []byte `json:"key_hash,omitempty"`
	Certificate []byte `json:"certificate,omitempty"`
}

// Invite makes an invite and returns its code. A name has one open invite at
// most: a new one withdraws the last. A name that is enrolled is ErrNameTaken
// unless req.Replace. Whether the networks exist and the prefixes are free is
// for the caller to know.
func (r *Registry) Invite(req InviteRequest, now time.Time) (Code, error) {
	code, err := r.newCode(req, now)
	if err != nil {
		return Code{}, fmt.Errorf("invite node %.64q: %w", req.Node, err)
	}
	inv := invite{
		Secret: code.Secret.Reveal(), Node: req.Node, NodeID: session.NewID(),
		Networks: slices.Clone(req.Networks), Advertise: slices.Clone(req.Advertise), Limits: req.Limits, ExpiresAt: code.ExpiresAt,
	}
	sweep := now.Sub(time.Unix(r.swept.Load(), 0)) >= sweepInterval
	err = r.change(func(tx store.Tx) error {
		if sweep {
			if err := forgetOld(tx, now); err != nil {
				return err
			}
		}
		var rec nodeRecord
		known, err := found(getJSON(tx, bucketNodes, req.Node, &rec))
		if err != nil {
			return err
		}
		if known && rec.State == Enrolled && !req.Replace {
			return fmt.Errorf("%w: id %v; revoke it, or replace it by the new one", ErrNameTaken, rec.ID)
		}
		if err := withdraw(tx, rec.Pending); err != nil {
			return err
		}
		if rec.State != Enrolled && rec.State != Revoked {
			rec = nodeRecord{State: Invited, Networks: inv.Networks, Advertise: inv.Advertise, Limits: inv.Limits}
		}
		rec.Pending = &code.ID
		if err := putJSON(tx, bucketNodes, req.Node, rec); err != nil {
			return err
		}
		return putJSON(tx, bucketInvites, code.ID.String(), inv)
	}, func() {
		if sweep {
			r.swept.Store(now.Unix())
		}
	})
	if err != nil {
		return Code{}, fmt.Errorf("invite node %.64q: %w", req.Node, err)
	}
	return code, nil
}

// newCode checks req and makes the code for it.
func (r *Registry) newCode(req InviteRequest, now time.Time) (Code, error) {
	ttl := req.TTL
	if ttl == 0 {
		ttl = DefaultInviteTTL
	}
	if ttl < time.Second || ttl > maxInviteTTL {
		return Code{}, fmt.Errorf("time to live %v is not between 1s and %v", ttl, maxInviteTTL)
	}
	if err := req.check(); err != nil {
		return Code{}, err
	}
	self := r.Identity()
	sec := make([]byte, secretLen)
	rand.Read(sec) // never fails
	code := Code{
		Secret: secret.New(sec), Gateway: req.Gateway, GatewayID: self.ID, Deployment: self.Deployment,
		CA: r.fingerprint(), Node: req.Node, ExpiresAt: now.Add(ttl).Truncate(time.Second),
	}
	rand.Read(code.ID[:])
	return code, code.check()
}

func (req InviteRequest) check() error {
	if n := len(req.Networks) + len(req.Advertise); n > maxGrants {
		return fmt.Errorf("%d networks and prefixes, at most %d fit one invite", n, maxGrants)
	}
	for _, n := range req.Networks {
		if err := ValidName(n); err != nil {
			return fmt.Errorf("network: %w", err)
		}
	}
	for _, p := range req.Advertise {
		if !p.IsValid() || p != p.Masked() {
			return fmt.Errorf("prefix %v has bits beyond its length; did you mean %v", p, p.Masked())
		}
	}
	return nil
}

// withdraw takes an invite out of use, if it is there and still open.
func withdraw(tx store.Tx, id *InviteID) error {
	if id == nil {
		return nil
	}
	return withdrawInvite(tx, *id, "a newer invite was made, or the node was revoked")
}

func withdrawInvite(tx store.Tx, id InviteID, why string) error {
	var inv invite
	ok, err := found(getJSON(tx, bucketInvites, id.String(), &inv))
	if err != nil || !ok || inv.Certificate != nil {
		return err
	}
	inv.Withdrawn = why
	return putJSON(tx, bucketInvites, id.String(), inv)
}

// sweepInterval is how often all invites are looked through for old ones.
const sweepInterval = time.Hour

// forgetOld drops invites that ended long ago.
func forgetOld(tx store.Tx, now time.Time) error {
	var old []string
	err := tx.Each(bucketInvites, func(key string, b []byte) error {
		var inv invite
		if err := json.Unmarshal(b, &inv); err != nil {
			return fmt.Errorf("invite %s: %w", key, err)
		}
		if now.Sub(inv.ExpiresAt) > forgetInvites {
			old = append(old, key)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range old {
		if err := tx.Delete(bucketInvites, key); err != nil {
			return err
		}
	}
	return nil
}

// certified stores rec with what its new certificate says.
func (rec nodeRecord) certified(tx store.Tx, name string, der []byte) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	p, err := ParseCertificate(cert)
	if err != nil {
		return err
	}
	rec.Serial, rec.KeyHash, rec.NotAfter = p.Serial, p.KeyHash[:], p.NotAfter
	return putJSON(tx, bucketNodes, name, rec)
}
