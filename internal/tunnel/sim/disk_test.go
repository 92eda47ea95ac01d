package sim

import (
	"errors"
	"slices"

	"tunneld/internal/control"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/life"
	"tunneld/internal/tunnel/pool"
)

var errFull = errors.New("disk is full")

// disk is what a host remembers: the journal of internal/tunnel, with the same
// transactions. What is in here was synced.
type disk struct {
	full     bool
	eager    bool  // records are encoded when they are written
	rows     []row // in the order of keys, as the real store has them
	rests    map[string]rested
	holders  map[string]session.ID // of each network's addresses, by whoever was written last
	ended    map[session.ID]bool   // the record of ends (a gateway's)
	revoked  map[session.ID]bool
	serial   uint64 // of revocations
	rights   map[session.ID][]string
	unwanted map[string]bool // tunnels that are down
	ages     map[session.ID]*life.Ages
}

// row is a control connection.
type row struct {
	id   uint32
	link string
	rec  *control.Record // as it was saved, for the checks
	raw  []byte          // as it is written; nil: encoded when it is read, which saves time
}

// rested is a freed address of a network.
type rested struct {
	network string
	pool.Rest
}

func newDisk() *disk {
	return &disk{rests: map[string]rested{}, holders: map[string]session.ID{}, ended: map[session.ID]bool{}, revoked: map[session.ID]bool{},
		rights: map[session.ID][]string{}, unwanted: map[string]bool{}}
}

// commit is a transaction: fn changes the disk or fails without a change.
func (d *disk) commit(fn func() error) error {
	if d.full {
		return errFull
	}
	return fn()
}

func (d *disk) find(id uint32) (int, bool) {
	return slices.BinarySearchFunc(d.rows, id, func(r row, id uint32) int { return int(int64(r.id) - int64(id)) })
}

// record is what the disk has of a connection; nil if nothing.
func (d *disk) record(id uint32) *control.Record {
	if i, ok := d.find(id); ok {
		return d.rows[i].rec
	}
	return nil
}

func (d *disk) put(id uint32, link string, rec *control.Record) error {
	r := row{id: id, link: link, rec: rec}
	if d.eager {
		var err error
		if r.raw, err = rec.Encode(); err != nil {
			return err
		}
	}
	if i, ok := d.find(id); ok {
		d.rows[i] = r
	} else {
		d.rows = slices.Insert(d.rows, i, r)
	}
	return nil
}

func (d *disk) remove(id uint32) {
	if i, ok := d.find(id); ok {
		d.rows = slices.Delete(d.rows, i, i+1)
	}
}

// known reports whether the disk has a session in a connection.
func (d *disk) known(connection uint32, id session.ID) bool {
	rec := d.record(connection)
	return rec != nil && slices.ContainsFunc(rec.Sessions, func(s control.Session) bool { return s.ID == id })
}

// load reads a connection as a starting daemon does.
func (r row) load() *control.Record {
	raw, err := r.raw, error(nil)
	if raw == nil {
		raw, err = r.rec.Encode()
	}
	var rec *control.Record
	if err == nil {
		rec, err = control.DecodeRecord(raw)
	}
	if err != nil {
		broken("P3", "record of connection %08x cannot be read again: %v", r.id, err)
	}
	return rec
}
