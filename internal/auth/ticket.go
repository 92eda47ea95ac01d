package auth

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"time"

	"tunneld/internal/session"
	"tunneld/internal/store"
)

// Why a ticket is not taken. Each is wrapped in a sentence.
var (
	ErrTicketForeign = errors.New("auth: not a ticket of this gateway for this node")
	ErrTicketOld     = errors.New("auth: ticket is too old")
	ErrTicketUsed    = errors.New("auth: ticket was used")
)

// Ticket is what a gateway has of a session, for the node to keep: docs/protocol.md,
// "Tickets". All times are absolute, on the wall clock.
type Ticket struct {
	Serial    uint64 // rises with each ticket of the gateway
	Until     time.Time
	Session   session.ID
	Network   string
	Owner     string   // of the addresses
	PeerKey   [32]byte // of the node, for this session
	KeyEpoch  uint32
	Addresses []netip.Addr
	Advertise []netip.Prefix
	Began     time.Time
	Extended  time.Duration // of its life, by request
	Resumes   uint64

	RxBytes, TxBytes uint64 // when it was sealed
}

// Buckets of tickets.
const (
	bucketTicketKeys = "ticket-keys" // number -> ticketKey; in the keys
	bucketTickets    = "tickets"     // session -> floor; "serials" -> serials; in the book
)

// ticketKey seals tickets for a day and opens them for as long as one lives.
type ticketKey struct {
	Key  []byte    `json:"key"`
	From time.Time `json:"from"`
}

// floor is what is known of the tickets of one session.
type floor struct {
	Lowest uint64    `json:"lowest"`         // acceptable serial
	Last   uint64    `json:"-"`              // given; known to this process alone
	Used   []byte    `json:"used,omitempty"` // SHA-256 of the ticket by which it was rebuilt
	Until  time.Time `json:"until"`          // no ticket of it lives longer

	Lease
}

// Lease is which addresses a session has that may come back by a ticket.
type Lease struct {
	Network   string       `json:"network"`
	Owner     string       `json:"owner"`
	Addresses []netip.Addr `json:"addresses"`
}

// serials are those of all tickets.
type serials struct {
	Reserved uint64 `json:"reserved"` // none beyond was given out
	Lowest   uint64 `json:"lowest"`   // none before is taken
}

const (
	keyLife  = 24 * time.Hour // of a key, as the one that seals
	reserve  = 4096           // serials that one write covers
	noTicket = math.MaxUint64 // Lowest of a session that ended

	ticketVersion = 1
	ticketHeader  = 1 + 4 // version, number of the key
)

// Tickets seals and opens the tickets of one gateway, and remembers which of them
// are of no more use. Its methods may be called from any goroutine.
type Tickets struct {
	keep    Keep
	gateway session.ID

	mu      sync.Mutex // guards everything below
	ring    map[uint32]cipher.AEAD
	since   map[uint32]time.Time
	current uint32
	all     serials
	next    uint64
	floors  map[session.ID]floor
	unsaved map[session.ID]bool
}

// OpenTickets reads the ring of keys and the book's part about tickets.
func OpenTickets(k Keep, gateway session.ID, now time.Time, longest time.Duration) (*Tickets, error) {
	t := &Tickets{
		keep: k, gateway: gateway, ring: map[uint32]cipher.AEAD{}, since: map[uint32]time.Time{},
		floors: map[session.ID]floor{}, unsaved: map[session.ID]bool{},
	}
	err := k.Keys.View(func(tx store.Tx) error {
		return tx.Each(bucketTicketKeys, func(key string, b []byte) error {
			var v ticketKey
			var number uint32
			if err := json.Unmarshal(b, &v); err != nil {
				return err
			}
			if _, err := fmt.Sscanf(key, "%08x", &number); err != nil {
				return err
			}
			return t.addKey(number, v)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("ticket keys: %w", err)
	}
	if err := t.loadFloors(); err != nil {
		return nil, fmt.Errorf("book of tickets: %w", err)
	}
	return t, t.Rotate(now, longest)
}

func (t *Tickets) loadFloors() error {
	return t.keep.Book.View(func(tx store.Tx) error {
		return tx.Each(bucketTickets, func(key string, b []byte) error {
			if key == "serials" {
				return json.Unmarshal(b, &t.all)
			}
			id, err := session.ParseID(key)
			if err != nil {
				return err
			}
			var f floor
			err = json.Unmarshal(b, &f)
			t.floors[id] = f
			return err
		})
	})
}

func (t *Tickets) addKey(number uint32, k ticketKey) error {
	block, err := aes.NewCipher(k.Key)
	if err != nil {
		return err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block) // a day's tickets are far from 2^32
	if err != nil {
		return err
	}
	t.ring[number], t.since[number] = aead, k.From
	if t.current == 0 || k.From.After(t.since[t.current]) {
		t.current = number
	}
	return nil
}

// Rotate makes a new key when the one that seals is a day old, forgets those
// whose last ticket is over, and what the book says of such tickets. longest is
// how long a ticket may live.
func (t *Tickets) Rotate(now time.Time, longest time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	age := now.Sub(t.since[t.current])
	fresh := t.current == 0 || age >= keyLife || age < 0 // a clock that was set back would keep it for ever
	var number uint32
	var key ticketKey
	if fresh {
		number, key = t.newKey(now)
	}
	var old []uint32
	for n, from := range t.since {
		if n != t.current && now.Sub(from) > keyLife+longest {
			old = append(old, n)
		}
	}
	if fresh || len(old) > 0 {
		err := t.keep.Keys.Update(func(tx store.Tx) error {
			for _, n := range old {
				if err := tx.Delete(bucketTicketKeys, keyName(n)); err != nil {
					return err
				}
			}
			if !fresh {
				return nil
			}
			return putJSON(tx, bucketTicketKeys, keyName(number), key)
		})
		if err != nil {
			return fmt.Errorf("ticket keys: %w", err)
		}
	}
	for _, n := range old {
		delete(t.ring, n)
		delete(t.since, n)
	}
	if fresh {
		t.current = 0
		if err := t.addKey(number, key); err != nil {
			return err
		}
		t.current = number
	}
	return t.trimLocked(now)
}

func keyName(n uint32) string { return fmt.Sprintf("%08x", n) }

func (t *Tickets) newKey(now time.Time) (uint32, ticketKey) {
	k := ticketKey{Key: make([]byte, 32), From: now.Round(0).UTC()}
	rand.Read(k.Key) // never fails
	for {
		var b [4]byte
		rand.Read(b[:])
		if n := binary.BigEndian.Uint32(b[:]); n != 0 && t.ring[n] == nil {
			return n, k
		}
	}
}

// trimLocked forgets what is known of sessions none of whose tickets lives. The
// lowest serial that counts for all rises with what is left.
func (t *Tickets) trimLocked(now time.Time) error {
	lowest := t.next
	var gone []session.ID
	for id, f := range t.floors {
		if now.After(f.Until) {
			gone = append(gone, id)
		} else if f.Lowest != noTicket {
			lowest = min(lowest, f.Lowest)
		}
	}
	all := t.all
	all.Lowest = max(all.Lowest, lowest)
	if len(gone) == 0 && all == t.all {
		return nil
	}
	err := t.keep.Book.Update(func(tx store.Tx) error {
		for _, id := range gone {
			if err := tx.Delete(bucketTickets, id.String()); err != nil {
				return err
			}
		}
		return putJSON(tx, bucketTickets, "serials", all)
	})
	if err != nil {
		return fmt.Errorf("book of tickets: %w", err)
	}
	t.all = all
	for _, id := range gone {
		delete(t.floors, id)
		delete(t.unsaved, id)
	}
	return nil
}

// Seal makes the next ticket of a session for node. It and the one before are
// taken from now on: the node may not have got it when all is lost. Save makes
// that durable.
func (t *Tickets) Seal(node session.ID, v Ticket) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	serial, err := t.serialLocked()
	if err != nil {
		return nil, err
	}
	v.Serial, v.Until, v.Began = serial, v.Until.Round(0).UTC(), v.Began.Round(0).UTC()
	f := t.floors[v.Session]
	if f.Last == 0 {
		f.Last = max(f.Lowest, 1) // the one before, if any, is of an earlier process
	}
	f.Lowest, f.Last = f.Last, serial
	f.Until, f.Lease = v.Until, Lease{v.Network, v.Owner, v.Addresses}
	t.floors[v.Session], t.unsaved[v.Session] = f, true
	plain, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	head := binary.BigEndian.AppendUint32([]byte{ticketVersion}, t.current)
	return t.ring[t.current].Seal(head, nil, plain, t.whose(head, node)), nil
}

// whose is what a ticket is bound to beside its contents.
func (t *Tickets) whose(head []byte, node session.ID) []byte {
	ad := append([]byte("tunneld ticket"), head...)
	return append(append(ad, t.gateway[:]...), node[:]...)
}

// serialLocked gives out the next serial, and reserves more on disk where none is
// left: after a restart the rest of the old ones is passed over.
func (t *Tickets) serialLocked() (uint64, error) {
	if t.next == 0 || t.next > t.all.Reserved {
		all, next := t.all, max(t.next, t.all.Reserved+1)
		all.Reserved = next + reserve
		err := t.keep.Book.Update(func(tx store.Tx) error { return putJSON(tx, bucketTickets, "serials", all) })
		if err != nil {
			return 0, fmt.Errorf("book of tickets: %w", err)
		}
		t.all, t.next = all, next
	}
	t.next++
	return t.next - 1, nil
}

// Open reads a ticket that node shows. The error wraps one of the three above.
func (t *Tickets) Open(b []byte, node session.ID, now time.Time) (Ticket, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, err := t.unseal(b, node)
	if err != nil {
		return Ticket{}, fmt.Errorf("%w: %w", ErrTicketForeign, err)
	}
	f, known := t.floors[v.Session]
	hash := sha256.Sum256(b)
	switch {
	case known && string(f.Used) == string(hash[:]):
		return Ticket{}, fmt.Errorf("%w: ticket %d of session %v", ErrTicketUsed, v.Serial, v.Session)
	case known && f.Lowest == noTicket:
		return Ticket{}, fmt.Errorf("%w: session %v has ended", ErrTicketOld, v.Session)
	case v.Serial < f.Lowest || v.Serial < t.all.Lowest:
		return Ticket{}, fmt.Errorf("%w: ticket %d of session %v, the lowest that counts is %d", ErrTicketOld, v.Serial, v.Session, max(f.Lowest, t.all.Lowest))
	case !now.Before(v.Until):
		return Ticket{}, fmt.Errorf("%w: ticket %d was good until %s", ErrTicketOld, v.Serial, v.Until.Format(time.RFC3339))
	}
	return v, nil
}

var errUnsealed = errors.New("it does not open")

func (t *Tickets) unseal(b []byte, node session.ID) (v Ticket, err error) {
	if len(b) < ticketHeader || b[0] != ticketVersion {
		return v, errUnsealed
	}
	head, sealed := b[:ticketHeader], b[ticketHeader:]
	aead := t.ring[binary.BigEndian.Uint32(head[1:])]
	if aead == nil {
		return v, errUnsealed
	}
	plain, err := aead.Open(nil, nil, sealed, t.whose(head, node))
	if err != nil {
		return v, errUnsealed
	}
	return v, json.Unmarshal(plain, &v)
}

// Used: the session was rebuilt by this ticket, which is not taken a second time,
// nor is any before it.
func (t *Tickets) Used(v Ticket, b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	hash := sha256.Sum256(b)
	f := t.floors[v.Session]
	f.Used, f.Lowest, f.Until = hash[:], v.Serial+1, v.Until
	t.floors[v.Session], t.unsaved[v.Session] = f, true
	t.next = max(t.next, f.Lowest) // of a book that was lost
}

// Ended: no ticket of the session is taken any more.
func (t *Tickets) Ended(id session.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f, ok := t.floors[id]; ok {
		f.Lowest = noTicket
		t.floors[id], t.unsaved[id] = f, true
	}
}

// Leases are the addresses of sessions that may be rebuilt.
func (t *Tickets) Leases(now time.Time) (all []Lease) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.floors {
		if f.Lowest != noTicket && now.Before(f.Until) {
			all = append(all, f.Lease)
		}
	}
	return all
}

// Save writes into the book what Seal, Used and Ended have changed. What is lost
// with a process that was killed before leaves older tickets good a little longer.
func (t *Tickets) Save() error {
	t.mu.Lock()
	changed := make(map[session.ID]floor, len(t.unsaved))
	for id := range t.unsaved {
		changed[id] = t.floors[id]
	}
	clear(t.unsaved)
	t.mu.Unlock()
	if len(changed) == 0 {
		return nil
	}
	err := t.keep.Book.Update(func(tx store.Tx) error { // nobody waits for it with a ticket in hand
		for id, f := range changed {
			if err := putJSON(tx, bucketTickets, id.String(), f); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range changed {
		t.unsaved[id] = true
	}
	return fmt.Errorf("book of tickets: %w", err)
}
