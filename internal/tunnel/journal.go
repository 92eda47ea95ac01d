package tunnel

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/store"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/life"
	"tunneld/internal/tunnel/pool"
)

// Buckets of the store that the manager keeps; internal/auth has its own.
const (
	bucketConnections = "connections" // LocalID -> connectionV1
	bucketLeases      = "leases"      // network/address -> leaseV1: each address given back, and to whom it belongs
	bucketNetworks    = "networks"    // name -> networkV1
	bucketTunnels     = "tunnels"     // name -> tunnelV1
	bucketCounters    = "counters"    // session -> countersV1
)

// stateVersion is the version of every shape below.
const stateVersion = 1

type (
	connectionV1 struct {
		Version int
		Link    string     // the gateways dialled; empty at a gateway
		Record  []byte     // control.Record
		Seen    netip.Addr `json:",omitzero"` // where a gateway's node was last
	}
	leaseV1 struct {
		Version int
		pool.Rest
	}
	networkV1 struct {
		Version    int
		PrivateKey []byte
		Interface  string
	}
	tunnelV1 struct {
		Version   int
		Down      bool   // by `tunnelctl down`, remembered until `up`
		Interface string // kept once it was chosen
		Endpoint  netip.AddrPort
		Held      bool // by `tunnelctl suspend`, remembered until `resume`
	}
	countersV1 struct {
		Version          int
		RxBytes, TxBytes uint64
		Ages             *life.Ages `json:",omitempty"` // of a session that time ends
		// The stamps of the last handshakes accepted from the peer and sent to it.
		Accepted, Sent engine.Stamp `json:",omitzero"`
	}
)

// journal is the store in the manager's own words.
type journal struct{ s store.Store }

func connectionKey(localID uint32) string { return fmt.Sprintf("%08x", localID) }

// saveConnection makes a control connection durable, if check agrees in the
// same transaction; a nil check agrees.
func (j *journal) saveConnection(link string, seen netip.Addr, r *control.Record, check func(store.Tx) error) error {
	b, err := savedConnection{link, r, seen}.encode()
	if err != nil {
		return err
	}
	return j.s.Update(func(tx store.Tx) error {
		if check != nil {
			if err := check(tx); err != nil {
				return err
			}
		}
		return tx.Put(bucketConnections, connectionKey(r.LocalID), b)
	})
}

// savedConnection is a connectionV1 as it is used.
type savedConnection struct {
	link   string
	record *control.Record
	seen   netip.Addr
}

func (c savedConnection) encode() ([]byte, error) {
	raw, err := c.record.Encode()
	if err != nil {
		return nil, err
	}
	return json.Marshal(connectionV1{stateVersion, c.link, raw, c.seen})
}

func decodeConnection(b []byte) (savedConnection, error) {
	var v connectionV1
	if err := decode(b, &v, &v.Version); err != nil {
		return savedConnection{}, err
	}
	r, err := control.DecodeRecord(v.Record)
	return savedConnection{v.Link, r, v.Seen}, err
}

// newest is when the youngest of its sessions began.
func (c savedConnection) newest() (at time.Time) {
	for _, s := range c.record.Sessions {
		if s.Began.After(at) {
			at = s.Began
		}
	}
	return at
}

// eachConnection walks the connections in which this node has a role. fn must
// not call the store.
func (j *journal) eachConnection(role control.Role, fn func(savedConnection)) error {
	return j.each(bucketConnections, func(_ string, b []byte) error {
		c, err := decodeConnection(b)
		if err == nil && c.record.Role == role {
			fn(c)
		}
		return err
	})
}

func (j *journal) connectionsOf(role control.Role) (all []savedConnection, err error) {
	err = j.eachConnection(role, func(c savedConnection) { all = append(all, c) })
	return all, err
}

// connection reads one connection.
func (j *journal) connection(localID uint32) (c savedConnection, err error) {
	err = j.s.View(func(tx store.Tx) error {
		c, err = getConnection(tx, localID)
		return err
	})
	return c, err
}

func getConnection(tx store.Tx, localID uint32) (savedConnection, error) {
	b, err := tx.Get(bucketConnections, connectionKey(localID))
	if err != nil {
		return savedConnection{}, err
	}
	return decodeConnection(b)
}

// suspendedTogether is how many records are changed in one transaction.
const suspendedTogether = 256

// suspended notes that connections which a killed process left have been suspended
// since at: however often the daemon is killed, that is when their grace began.
func (j *journal) suspended(localIDs []uint32, at time.Time) error {
	for ids := range slices.Chunk(localIDs, suspendedTogether) {
		err := j.s.Update(func(tx store.Tx) error {
			for _, id := range ids {
				c, err := getConnection(tx, id)
				if err != nil {
					return err
				}
				c.record.SuspendedAt = at
				b, err := c.encode()
				if err != nil {
					return err
				}
				if err := tx.Put(bucketConnections, connectionKey(id), b); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (j *journal) forgetConnection(localID uint32) error {
	return j.s.Update(func(tx store.Tx) error { return tx.Delete(bucketConnections, connectionKey(localID)) })
}

func (j *journal) put(bucket, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return j.s.Update(func(tx store.Tx) error { return tx.Put(bucket, key, b) })
}

func (j *journal) delete(bucket, key string) error {
	return j.s.Update(func(tx store.Tx) error { return tx.Delete(bucket, key) })
}

// get reads a value; ok is false if there is none.
func (j *journal) get(bucket, key string, v any, version *int) (ok bool, err error) {
	err = j.s.View(func(tx store.Tx) error {
		b, err := tx.Get(bucket, key)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		ok = true
		return decode(b, v, version)
	})
	return ok, err
}

func (j *journal) each(bucket string, fn func(key string, b []byte) error) error {
	return j.s.View(func(tx store.Tx) error {
		return tx.Each(bucket, func(key string, b []byte) error {
			if err := fn(key, b); err != nil {
				return fmt.Errorf("state of %s %q: %w", bucket, key, err)
			}
			return nil
		})
	})
}

func decode(b []byte, v any, version *int) error {
	if err := json.Unmarshal(b, v); err != nil {
		return err
	}
	if *version != stateVersion {
		return fmt.Errorf("%w: version %d, this daemon knows %d", store.ErrNewer, *version, stateVersion)
	}
	return nil
}

// networkState returns the private key and the interface name of a network. The
// first time it makes a key, which is kept once the network is open.
func (j *journal) networkState(name string) (v networkV1, err error) {
	ok, err := j.get(bucketNetworks, name, &v, &v.Version)
	if err != nil || ok {
		return v, err
	}
	key, _, err := newKeyPair()
	if err != nil {
		return v, err
	}
	return networkV1{PrivateKey: key.Reveal()}, nil
}

func (j *journal) tunnelState(name string) (v tunnelV1, err error) {
	v.Version = stateVersion
	_, err = j.get(bucketTunnels, name, &v, &v.Version)
	return v, err
}

func (j *journal) saveTunnel(name string, v tunnelV1) error {
	v.Version = stateVersion
	return j.put(bucketTunnels, name, v)
}

// counters are a session's inner octets before this process, by session.
func (j *journal) counters() (all map[session.ID]countersV1, err error) {
	all = map[session.ID]countersV1{}
	err = j.each(bucketCounters, func(key string, b []byte) error {
		id, err := session.ParseID(key)
		if err != nil {
			return err
		}
		var v countersV1
		if err := decode(b, &v, &v.Version); err != nil {
			return err
		}
		all[id] = v
		return nil
	})
	return all, err
}

// saveCounters writes the counters of live sessions and removes those of gone
// ones, in one transaction.
func (j *journal) saveCounters(live map[session.ID]countersV1, gone []session.ID) error {
	return j.s.Update(func(tx store.Tx) error {
		for id, v := range live {
			v.Version = stateVersion
			b, err := json.Marshal(v)
			if err != nil {
				return err
			}
			if err := tx.Put(bucketCounters, id.String(), b); err != nil {
				return err
			}
		}
		for _, id := range gone {
			if err := tx.Delete(bucketCounters, id.String()); err != nil {
				return err
			}
		}
		return nil
	})
}

// newKeyPair makes an X25519 pair.
func newKeyPair() (private secret.Value, public [32]byte, err error) {
	return keyPair(nil)
}
