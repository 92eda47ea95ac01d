package auth

import (
	"bytes"
	"crypto/hmac"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/store"
)

// maxWrongMACs is how many wrong tries an invite survives. The secret cannot be
// guessed; more tries than a few mean that somebody altered the code.
const maxWrongMACs = 10

// Enrolment is what an enrolment changed.
type Enrolment struct {
	Name     string
	ID       session.ID
	Replaced session.ID // revoked by it; its transports and sessions are to be ended. Zero: none
	Again    bool       // the same key asked once more; nothing changed
}

// ServeEnrol is the gateway's side: it reads one request from rw and answers
// it. lookup says what the named networks are; one that it leaves out is not
// shown to the node. Where the result has an id the enrolment is durable, even
// if the error says that the answer did not go out; the node asks again.
//
// Somebody who does not hold the invite's secret learns nothing about it: an
// unknown id and a wrong MAC have the same answer after the same work, which is
// a look into the store and one HMAC, and never a write to disk.
func (r *Registry) ServeEnrol(rw io.ReadWriter, export Exporter, lookup func(networks []string) []Network, now time.Time) (Enrolment, error) {
	var req EnrolRequest
	if err := readMessage(rw, &req, maxRequest); err != nil {
		return Enrolment{}, fmt.Errorf("enrolment request: %w", err) // garbage gets no answer
	}
	done, inv, err := r.enrol(req, export, now)
	reply := EnrolReply{Version: enrolVersion}
	if err != nil {
		reply.Error = enrolError(err)
	} else {
		reply.Certificate, reply.CA = inv.Certificate, r.authority.cert.Raw
		reply.Networks, reply.Advertise = lookup(inv.Networks), inv.Advertise
	}
	werr := writeMessage(rw, reply, maxReply)
	if errors.Is(werr, errTooLong) {
		tooLong := &EnrolError{CodeFailed, "the networks and routes of this invite do not fit an answer; invite to fewer"}
		werr = errors.Join(werr, writeMessage(rw, EnrolReply{Version: enrolVersion, Error: tooLong}, maxReply))
	}
	if werr != nil {
		return done, errors.Join(err, fmt.Errorf("enrolment answer: %w", werr))
	}
	return done, err
}

var errVersion = errors.New("auth: unknown version of the enrolment request")

// enrol checks the request and commits what it is granted.
func (r *Registry) enrol(req EnrolRequest, export Exporter, now time.Time) (Enrolment, invite, error) {
	if req.Version != enrolVersion {
		return Enrolment{}, invite{}, fmt.Errorf("%w: %d, want %d", errVersion, req.Version, enrolVersion)
	}
	if err := r.authenticate(req, export); err != nil {
		return Enrolment{}, invite{}, err
	}
	keyHash, err := csrKeyHash(req.CSR) // after the MAC: a signature costs more
	if err != nil {
		return Enrolment{}, invite{}, err
	}
	var e enrolment
	err = r.change(func(tx store.Tx) error {
		e = enrolment{registry: r, id: req.Invite, csr: req.CSR, keyHash: keyHash[:], now: now}
		return e.commit(tx)
	}, func() {
		if e.serial != 0 {
			r.mirrorRevoked(e.done.Replaced, e.serial)
		}
		if !e.done.Again {
			r.rights[e.done.ID] = rights{e.inv.Networks, e.inv.Advertise, e.inv.Limits}
		}
		delete(r.wrong, req.Invite)
	})
	if err != nil {
		return Enrolment{}, invite{}, fmt.Errorf("invite %v: %w", req.Invite, err)
	}
	return e.done, e.inv, nil
}

// authenticate checks the MAC. Its only error is ErrInviteRefused, apart from
// what is wrong with the store or the stream.
func (r *Registry) authenticate(req EnrolRequest, export Exporter) error {
	var inv invite
	var known bool
	err := r.store.View(func(tx store.Tx) (err error) {
		known, err = found(getJSON(tx, bucketInvites, req.Invite.String(), &inv))
		return err
	})
	if err != nil {
		return fmt.Errorf("invite %v: %w", req.Invite, err)
	}
	sec := r.decoy
	if known {
		sec = secret.New(inv.Secret)
	}
	want, err := enrolMAC(sec, export, req.Invite, req.CSR)
	if err != nil {
		return err
	}
	if hmac.Equal(want, req.MAC) && known {
		return nil
	}
	if known {
		r.countWrong(req.Invite)
	}
	return fmt.Errorf("%w: %v", ErrInviteRefused, req.Invite)
}

// countWrong withdraws an invite after too many wrong tries. They are counted
// in memory, so that a stranger's try costs no write; only the end is stored.
func (r *Registry) countWrong(id InviteID) {
	r.mu.Lock()
	r.wrong[id]++
	dead := r.wrong[id] == maxWrongMACs
	r.mu.Unlock()
	if !dead {
		return
	}
	// If the store fails here the invite stays as it was, no worse than before.
	r.change(func(tx store.Tx) error {
		return withdrawInvite(tx, id, "too many wrong tries with it")
	}, func() {})
}

// enrolment is one commit of an enrolment whose MAC was right.
type enrolment struct {
	registry *Registry
	id       InviteID
	csr      []byte
	keyHash  []byte
	now      time.Time

	inv    invite
	done   Enrolment
	serial uint64 // the new revocation serial, if one was revoked
}

func (e *enrolment) commit(tx store.Tx) error {
	if err := getJSON(tx, bucketInvites, e.id.String(), &e.inv); err != nil {
		return err
	}
	if err := e.refuse(tx); err != nil {
		return err
	}
	e.done = Enrolment{Name: e.inv.Node, ID: e.inv.NodeID}
	if e.inv.Certificate != nil {
		if !bytes.Equal(e.inv.KeyHash, e.keyHash) {
			return fmt.Errorf("%w: for node %q, by another key", ErrInviteUsed, e.inv.Node)
		}
		e.done.Again = true
		return nil
	}
	return e.use(tx)
}

// refuse says what is wrong with an invite, to its holder.
func (e *enrolment) refuse(tx store.Tx) error {
	var rev revocation
	revoked, err := found(getJSON(tx, bucketRevoked, e.inv.NodeID.String(), &rev))
	switch {
	case err != nil:
		return err
	case revoked:
		return revokedError(rev.Name, e.inv.NodeID, rev.At)
	case e.inv.Withdrawn != "":
		return fmt.Errorf("%w: for node %q: %s", ErrInviteWithdrawn, e.inv.Node, e.inv.Withdrawn)
	case e.now.After(e.inv.ExpiresAt):
		return fmt.Errorf("%w: for node %q, at %s", ErrInviteExpired, e.inv.Node, e.inv.ExpiresAt.UTC().Format(time.RFC3339))
	}
	return nil
}

// use turns the invite into a node: the name gets the invite's id and rights,
// and the id it had before is revoked in the same transaction.
func (e *enrolment) use(tx store.Tx) (err error) {
	var rec nodeRecord
	if err := getNode(tx, e.inv.Node, &rec); err != nil {
		return err
	}
	if rec.Pending == nil || *rec.Pending != e.id {
		return fmt.Errorf("%w: for node %q: a newer one was made", ErrInviteWithdrawn, e.inv.Node)
	}
	if rec.State == Enrolled {
		e.done.Replaced = rec.ID
		if e.serial, err = revokeTx(tx, e.inv.Node, rec.ID, e.now); err != nil {
			return err
		}
	}
	grant := Grant{Role: Node, NodeName: e.inv.Node, NodeID: e.inv.NodeID, At: e.now}
	if e.inv.Certificate, err = e.registry.authority.Sign(e.csr, grant); err != nil {
		return err
	}
	e.inv.KeyHash = e.keyHash
	rec = nodeRecord{ID: e.inv.NodeID, State: Enrolled, Networks: e.inv.Networks, Advertise: e.inv.Advertise, Limits: e.inv.Limits}
	if err := rec.certified(tx, e.inv.Node, e.inv.Certificate); err != nil {
		return err
	}
	return putJSON(tx, bucketInvites, e.id.String(), e.inv)
}

// enrolError is the peer's half of err: a code and one sentence that says no
// more than the code.
func enrolError(err error) *EnrolError {
	for _, e := range []struct {
		is   error
		code EnrolCode
		say  string
	}{
		{ErrInviteRefused, CodeRefused, "invite not known here, or altered"},
		{ErrInviteExpired, CodeExpired, "invite expired"},
		{ErrInviteUsed, CodeUsed, "invite used by another key"},
		{ErrInviteWithdrawn, CodeWithdrawn, "invite withdrawn"},
		{ErrRevoked, CodeRevoked, "node revoked"},
		{ErrCSR, CodeRequest, "certificate request not acceptable"},
		{errVersion, CodeVersion, fmt.Sprintf("this gateway speaks version %d", enrolVersion)},
	} {
		if errors.Is(err, e.is) {
			return &EnrolError{e.code, e.say}
		}
	}
	return &EnrolError{CodeFailed, "the gateway could not store the enrolment"}
}

func parseInviteID(s string) (InviteID, error) {
	var id InviteID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("%.32q is no invite id", s)
	}
	return InviteID(b), nil
}
