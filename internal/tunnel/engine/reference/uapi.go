package reference

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"tunneld/internal/tunnel/engine"
)

// A request is text of WireGuard's configuration protocol
// (https://www.wireguard.com/xplatform/#configuration-protocol). It may hold
// keys: it is wiped after use and never logged.
type request struct{ b []byte }

// newRequest makes a request with room for that many prefixes, so that no
// copies of keys stay behind where it grew.
func newRequest(prefixes int) *request {
	return &request{make([]byte, 0, 512+64*prefixes)}
}

func (r *request) line(key, value string) {
	r.b = append(append(append(append(r.b, key...), '='), value...), '\n')
}

func (r *request) key(key string, value []byte) {
	r.b = append(append(r.b, key...), '=')
	r.b = append(hex.AppendEncode(r.b, value), '\n')
}

// peer begins the part of one peer, which must be there if update is set:
// without that line a peer just removed would come back.
func (r *request) peer(k engine.PublicKey, update bool) {
	r.key("public_key", k[:])
	if update {
		r.line("update_only", "true")
	}
}

// allow adds and removes prefixes, in this order, so that no packet of a
// prefix that stays is without a peer in between.
func (r *request) allow(add, remove []netip.Prefix) {
	for _, p := range add {
		r.line("allowed_ip", p.String())
	}
	for _, p := range remove {
		r.line("allowed_ip", "-"+p.String())
	}
}

// keepalive sets the interval, rounded up to whole seconds.
func (r *request) keepalive(d time.Duration) {
	seconds := min((d+time.Second-1)/time.Second, 65535)
	r.line("persistent_keepalive_interval", strconv.Itoa(int(max(seconds, 0))))
}

// status is what the configuration protocol tells of a peer that we ask for.
type status struct {
	endpoint      netip.AddrPort
	lastHandshake time.Time
}

// parseStatus reads the answer to a get. It holds private keys; the caller
// wipes it.
func parseStatus(text []byte) (map[engine.PublicKey]status, error) {
	all := make(map[engine.PublicKey]status)
	var key engine.PublicKey
	var s status
	var seconds int64
	for line := range bytes.Lines(text) {
		name, value, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte("="))
		if !ok {
			return nil, fmt.Errorf("wireguard status: a line without =")
		}
		var err error
		switch string(name) {
		case "public_key":
			s, seconds = status{}, 0
			if hex.DecodedLen(len(value)) != len(key) {
				return nil, fmt.Errorf("wireguard status: public key of %d digits", len(value))
			}
			_, err = hex.Decode(key[:], value)
		case "endpoint":
			if len(value) > 0 {
				s.endpoint, err = netip.ParseAddrPort(string(value))
			}
		case "last_handshake_time_sec":
			seconds, err = strconv.ParseInt(string(value), 10, 64)
		case "last_handshake_time_nsec":
			var nanos int64
			nanos, err = strconv.ParseInt(string(value), 10, 64)
			if seconds != 0 || nanos != 0 {
				s.lastHandshake = time.Unix(seconds, nanos)
			}
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("wireguard status: %s: %w", name, err)
		}
		all[key] = s
	}
	return all, nil
}
