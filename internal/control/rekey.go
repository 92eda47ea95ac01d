package control

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/mlkem"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// Change of the data keys of a session: docs/protocol.md, "Key epochs". The
// session stays established all the time; its change is in one of these phases.
//
//	node:    none ──StartRekey/KRQ──► offered ──KRP──► armed ──ConfirmRekey/KCN──► none, epoch e+1
//	                                  offered ──KRP with a result──► none         armed ──FailRekey/KCN with a result──► none
//	gateway: none ──KRQ, armed/KRP──► armed ──KCN──► none, epoch e+1
//	         none ──KRQ, refused/KRP with a result──► none       armed ──KCN with a result──► none
//
// The node that dials starts every handshake, so it alone starts a change: two
// can never meet. Every message takes a number and is replayed after a resume;
// a phase ends by a message alone, however long that takes to come.

// StartRekey asks an established initiator for the next key epoch of a session.
// Without a transport, and while a change is open, it is ignored.
type StartRekey struct{ LocalID uint32 }

// ConfirmRekey tells an initiator that a handshake with the armed key succeeded.
type ConfirmRekey struct {
	LocalID  uint32
	KeyEpoch uint32 // that of KeyArmed and one
}

// FailRekey tells an initiator to stay with the key in use instead of the armed
// one, and why.
type FailRekey struct {
	LocalID  uint32
	KeyEpoch uint32
	Result   wire.Result
}

// Armed answers AskArm. Refusal nil means yes.
type Armed struct {
	LocalID uint32
	Refusal *wire.Result
}

// AskArm asks a gateway whether the session may change to its NextPresharedKey,
// and to have its data plane answer handshakes with that from now on.
type AskArm struct{ Session Session }

// Notices of a change of keys.
type (
	// KeyArmed: at the node, NextPresharedKey is to be used from the next
	// handshake on, and that is to begin now. ConfirmRekey or FailRekey is
	// expected.
	KeyArmed struct{ Session Session }
	// SessionRekeyed: PresharedKey is that of KeyEpoch, and the one before is
	// forgotten.
	SessionRekeyed struct{ Session Session }
	// RekeyFailed: PresharedKey stays in use. Remote says that the peer refused
	// or gave up.
	RekeyFailed struct {
		Session Session
		Result  wire.Result
		Remote  bool
	}
)

func (StartRekey) event()   {}
func (ConfirmRekey) event() {}
func (FailRekey) event()    {}
func (Armed) event()        {}

func (AskArm) action()         {}
func (KeyArmed) action()       {}
func (SessionRekeyed) action() {}
func (RekeyFailed) action()    {}

// KeyHandler is what the Handler of a gateway implements, too, if its sessions
// may change their keys; for any other a change is refused.
type KeyHandler interface {
	// Arm has the data plane answer handshakes with the session's
	// NextPresharedKey, if it may have it. A result that is not nil refuses.
	Arm(Session) *wire.Result
}

// askArm answers AskArm with what the handler says.
func (c *Conn) askArm(a AskArm) Event {
	h, ok := c.h.(KeyHandler)
	if !ok {
		return Armed{a.Session.LocalID, &wire.Result{Code: wire.CDNAdministrative, Text: "keys are not changed here"}}
	}
	return Armed{a.Session.LocalID, h.Arm(a.Session)}
}

// lingerTimeout is how long a replaced transport stays open at the node.
const lingerTimeout = time.Second

// linger drops a transport that a new one has replaced, a moment later or when
// the gateway has: if the gateway saw its end before the SCCCN on the new one it
// would call the connection suspended. What still comes on it is ignored.
func (c *Conn) linger(t *transport) {
	if c.lingering == nil {
		c.lingering = map[TransportID]*transport{}
	}
	c.lingering[t.id] = t
	t.last = time.AfterFunc(lingerTimeout, func() { t.nc.Close() }) // which ends readLoop
}

// settle ends a transport that lingers, if it does.
func (c *Conn) settle(id TransportID) {
	if t := c.lingering[id]; t != nil {
		delete(c.lingering, id)
		t.out.finish()
	}
}

// ActiveKey is the preshared key that the data plane is to use: the armed one
// while a change is open.
func (s *Session) ActiveKey() secret.Value {
	if !s.NextPresharedKey.IsZero() {
		return s.NextPresharedKey
	}
	return s.PresharedKey
}

// seedSize is the size of an OfferSecret: an X25519 private key and the seed of
// an ML-KEM-768 decapsulation key.
const seedSize = keySize + mlkem.SeedSize

// An exchange is the public part of one change of keys: what KRQ and KRP say.
type exchange struct {
	epoch                    uint32
	nodeShare, gatewayShare  [32]byte
	encapsulation, encrypted []byte
}

// transcript is the hash of both messages. All parts but the id are of fixed
// length.
func (x *exchange) transcript(id session.ID) [32]byte {
	h := sha256.New()
	h.Write([]byte("tunneld key epoch 1"))
	h.Write(id[:])
	h.Write(binary.BigEndian.AppendUint32(nil, x.epoch))
	h.Write(x.nodeShare[:])
	h.Write(x.encapsulation)
	h.Write(x.gatewayShare[:])
	h.Write(x.encrypted)
	return [32]byte(h.Sum(nil))
}

// next is PSK(e+1): HKDF (RFC 5869) of both shared secrets under PSK(e), so that
// whoever is to know it must know all three.
func (x *exchange) next(id session.ID, psk secret.Value, classic, quantum []byte) secret.Value {
	transcript := x.transcript(id)
	input := append(append([]byte(nil), quantum...), classic...)
	defer clear(input)
	info := binary.BigEndian.AppendUint32([]byte("tunneld preshared key "), x.epoch)
	info = append(append(info, id[:]...), transcript[:]...)
	key, err := hkdf.Key(sha256.New, input, psk.Reveal(), string(info), keySize)
	if err != nil {
		panic(err) // only a length out of range fails
	}
	return secret.New(key)
}

// offer is the node's half of an exchange, from its secret.
func offer(seed secret.Value) (*ecdh.PrivateKey, *mlkem.DecapsulationKey768, error) {
	b := seed.Reveal()
	if len(b) != seedSize {
		return nil, nil, fmt.Errorf("secret of a key offer: %d octets, want %d", len(b), seedSize)
	}
	classic, err := ecdh.X25519().NewPrivateKey(b[:keySize])
	if err != nil {
		return nil, nil, err
	}
	quantum, err := mlkem.NewDecapsulationKey768(b[keySize:])
	return classic, quantum, err
}

// startRekey sends KRQ.
func (m *Machine) startRekey(ev StartRekey) {
	s := m.byLocal(ev.LocalID)
	if s == nil || m.cfg.Role != Initiator || m.cur == nil || s.State != session.Established || !s.OfferSecret.IsZero() || !s.NextPresharedKey.IsZero() {
		return
	}
	raw := make([]byte, seedSize)
	if _, err := io.ReadFull(m.cfg.Rand, raw); err != nil {
		m.rekeyFailed(s, wire.Result{Code: wire.CDNError, Error: wire.ErrorResources, Text: err.Error()}, false)
		return
	}
	seed := secret.New(raw)
	clear(raw)
	classic, quantum, err := offer(seed)
	if err != nil {
		panic(err) // any octets of that length are keys
	}
	s.OfferSecret = seed
	m.send(&wire.KeyRequest{
		LocalID: s.LocalID, RemoteID: s.RemoteID, KeyEpoch: s.KeyEpoch + 1,
		KeyShare: [32]byte(classic.PublicKey().Bytes()), EncapsulationKey: quantum.EncapsulationKey().Bytes(),
	})
}

// keyRequest takes KRQ at the gateway: the data plane is asked first, so that it
// answers with the new key before the node has it.
func (m *Machine) keyRequest(q *wire.KeyRequest) {
	s := m.named(q.LocalID, q.RemoteID)
	switch {
	case s == nil: // ended meanwhile
	case m.cfg.Role != Responder:
		m.disconnect(s, wire.Result{Code: wire.CDNFSMError, Cause: wire.CauseToken, Text: "changes of keys begin at the node"})
	case s.State != session.Established:
		m.disconnect(s, wire.Result{Code: wire.CDNFSMError, Text: fmt.Sprintf("KRQ in state %v", s.State)})
	case q.KeyEpoch != s.KeyEpoch+1 || !s.NextPresharedKey.IsZero():
		m.refuseKey(s, q.KeyEpoch, wire.Result{Code: wire.CDNError, Error: wire.ErrorRange, Cause: wire.CauseKeyEpoch})
	default:
		x, next, err := m.encapsulate(s, q)
		if err != nil {
			m.refuseKey(s, q.KeyEpoch, wire.Result{Code: wire.CDNError, Error: wire.ErrorRange, Cause: wire.CauseKeyExchange})
			return
		}
		s.NextPresharedKey, m.exchange = next, x
		m.ask(AskArm{*s})
	}
}

// encapsulate is the gateway's half of an exchange.
func (m *Machine) encapsulate(s *Session, q *wire.KeyRequest) (*exchange, secret.Value, error) {
	fail := func(err error) (*exchange, secret.Value, error) { return nil, secret.Value{}, err }
	peer, err := mlkem.NewEncapsulationKey768(q.EncapsulationKey)
	if err != nil {
		return fail(err)
	}
	raw := make([]byte, keySize)
	if _, err := io.ReadFull(m.cfg.Rand, raw); err != nil {
		return fail(err)
	}
	private, err := ecdh.X25519().NewPrivateKey(raw)
	if err != nil {
		return fail(err)
	}
	classic, err := secret.OfX25519(private).X25519(q.KeyShare)
	if err != nil {
		return fail(err)
	}
	quantum, encrypted := peer.Encapsulate()
	x := &exchange{
		epoch: q.KeyEpoch, nodeShare: q.KeyShare, encapsulation: q.EncapsulationKey,
		gatewayShare: [32]byte(private.PublicKey().Bytes()), encrypted: encrypted,
	}
	return x, x.next(s.ID, s.PresharedKey, classic, quantum), nil
}

// refuseKey sends KRP with a result.
func (m *Machine) refuseKey(s *Session, epoch uint32, res wire.Result) {
	m.do(RekeyFailed{*s, res, false})
	m.send(&wire.KeyReply{LocalID: s.LocalID, RemoteID: s.RemoteID, KeyEpoch: epoch, Result: &res})
}

// armed sends KRP after the gateway's decision.
func (m *Machine) armed(ev Armed) {
	s, x := m.byLocal(ev.LocalID), m.exchange
	m.exchange = nil
	if s == nil || x == nil {
		return
	}
	if ev.Refusal != nil {
		s.NextPresharedKey = secret.Value{}
		m.refuseKey(s, x.epoch, *ev.Refusal)
		return
	}
	m.send(&wire.KeyReply{LocalID: s.LocalID, RemoteID: s.RemoteID, KeyEpoch: x.epoch, KeyShare: x.gatewayShare, Ciphertext: x.encrypted})
}

// keyReply takes KRP at the node.
func (m *Machine) keyReply(r *wire.KeyReply) {
	s := m.named(r.LocalID, r.RemoteID)
	switch {
	case s == nil: // ended meanwhile
	case m.cfg.Role != Initiator || s.OfferSecret.IsZero() || r.KeyEpoch != s.KeyEpoch+1:
		m.disconnect(s, wire.Result{Code: wire.CDNFSMError, Text: fmt.Sprintf("KRP for key epoch %d in state %v", r.KeyEpoch, s.State)})
	case r.Result != nil:
		s.OfferSecret = secret.Value{}
		m.rekeyFailed(s, *r.Result, true)
	default:
		next, err := decapsulate(s, r)
		s.OfferSecret = secret.Value{}
		if err != nil {
			m.giveUpKey(s, wire.Result{Code: wire.CDNError, Error: wire.ErrorRange, Cause: wire.CauseKeyExchange, Text: err.Error()})
			return
		}
		s.NextPresharedKey = next
		m.do(KeyArmed{*s})
	}
}

// decapsulate completes an exchange at the node.
func decapsulate(s *Session, r *wire.KeyReply) (secret.Value, error) {
	private, key, err := offer(s.OfferSecret)
	if err != nil {
		return secret.Value{}, err
	}
	classic, err := secret.OfX25519(private).X25519(r.KeyShare)
	if err != nil {
		return secret.Value{}, errors.New("the gateway's key share is no good")
	}
	quantum, err := key.Decapsulate(r.Ciphertext)
	if err != nil {
		return secret.Value{}, err
	}
	x := &exchange{
		epoch: r.KeyEpoch, nodeShare: [32]byte(private.PublicKey().Bytes()), encapsulation: key.EncapsulationKey().Bytes(),
		gatewayShare: r.KeyShare, encrypted: r.Ciphertext,
	}
	return x.next(s.ID, s.PresharedKey, classic, quantum), nil
}

// confirmRekey sends KCN: the handshake with the new key, which the gateway
// cannot have answered without it, is proof enough to forget the old one.
func (m *Machine) confirmRekey(ev ConfirmRekey) {
	if s := m.armedSession(ev.LocalID, ev.KeyEpoch); s != nil {
		m.rekeyed(s)
		m.send(&wire.KeyChanged{LocalID: s.LocalID, RemoteID: s.RemoteID, KeyEpoch: ev.KeyEpoch})
	}
}

// failRekey sends KCN with a result.
func (m *Machine) failRekey(ev FailRekey) {
	if s := m.armedSession(ev.LocalID, ev.KeyEpoch); s != nil {
		m.giveUpKey(s, ev.Result)
	}
}

// armedSession is the session of an initiator with that key armed, nil if the
// change is over.
func (m *Machine) armedSession(id, epoch uint32) *Session {
	s := m.byLocal(id)
	if s == nil || m.cfg.Role != Initiator || s.NextPresharedKey.IsZero() || epoch != s.KeyEpoch+1 {
		return nil
	}
	return s
}

// giveUpKey tells the gateway that the old key stays.
func (m *Machine) giveUpKey(s *Session, res wire.Result) {
	m.rekeyFailed(s, res, false)
	m.send(&wire.KeyChanged{LocalID: s.LocalID, RemoteID: s.RemoteID, KeyEpoch: s.KeyEpoch + 1, Result: &res})
}

// keyChanged takes KCN at the gateway.
func (m *Machine) keyChanged(c *wire.KeyChanged) {
	s := m.named(c.LocalID, c.RemoteID)
	switch {
	case s == nil: // ended meanwhile
	case m.cfg.Role != Responder || s.NextPresharedKey.IsZero() || c.KeyEpoch != s.KeyEpoch+1:
		m.disconnect(s, wire.Result{Code: wire.CDNFSMError, Text: fmt.Sprintf("KCN for key epoch %d in state %v", c.KeyEpoch, s.State)})
	case c.Result != nil:
		m.rekeyFailed(s, *c.Result, true)
	default:
		m.rekeyed(s)
	}
}

// rekeyed forgets the old key.
func (m *Machine) rekeyed(s *Session) {
	s.PresharedKey, s.NextPresharedKey = s.NextPresharedKey, secret.Value{}
	s.KeyEpoch++
	m.dirty = true
	m.do(SessionRekeyed{m.view(s)})
}

// rekeyFailed forgets the new key.
func (m *Machine) rekeyFailed(s *Session, res wire.Result, remote bool) {
	s.NextPresharedKey = secret.Value{}
	m.dirty = true
	m.do(RekeyFailed{m.view(s), res, remote})
}
