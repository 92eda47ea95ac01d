package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Directions that a network may have, as its nodes see them.
const (
	DirectionDuplex = "duplex" // both ways
	DirectionUp     = "up"     // what nodes send passes, and nothing else
	DirectionDown   = "down"   // what nodes receive passes, and nothing else
)

// Rate bounds what passes a session one way, in bits a second; zero: nothing
// does.
type Rate uint64

// Units of a Rate, the smallest first.
const (
	kbit Rate = 1000
	mbit      = 1000 * kbit
	gbit      = 1000 * mbit
)

// Bounds of a Rate that is written.
const (
	minRate = 8 * kbit
	maxRate = 1000 * gbit
)

var rateUnits = []struct {
	name string
	size Rate
}{{"Gbit", gbit}, {"Mbit", mbit}, {"kbit", kbit}}

// String is the rate in the largest unit that leaves no rest.
func (r Rate) String() string {
	for _, u := range rateUnits {
		if r >= u.size && r%u.size == 0 {
			return fmt.Sprintf("%d%s", r/u.size, u.name)
		}
	}
	return fmt.Sprintf("%dbit", uint64(r))
}

// parseRate reads a whole number with its unit, whatever the bounds.
func parseRate(text string) (Rate, bool) {
	for _, u := range rateUnits {
		number, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil || number[0] == '+' || n > math.MaxUint64/uint64(u.size) {
			return 0, false
		}
		return Rate(n) * u.size, true
	}
	return 0, false
}

// CheckRate reads a rate of somebody who writes one elsewhere; "" is none.
func CheckRate(text string) (Rate, error) {
	if text == "" {
		return 0, nil
	}
	r, ok := parseRate(text)
	if !ok {
		return 0, fmt.Errorf("%q is no rate: %s", text, rateHint)
	}
	return r, r.check()
}

// check says why nobody can want a rate, or nil.
func (r Rate) check() error {
	if r < minRate || r > maxRate {
		return fmt.Errorf("%v is out of range: write a rate from %v to %v", r, minRate, maxRate)
	}
	return nil
}

// CheckDirection says why text is no direction, or nil.
func CheckDirection(text string) error {
	switch text {
	case DirectionDuplex, DirectionUp, DirectionDown:
		return nil
	}
	return fmt.Errorf("%q is no direction: write %q, %q for what nodes send alone, or %q for what they receive alone", text, DirectionDuplex, DirectionUp, DirectionDown)
}

const rateHint = `write a whole number and a unit of bits a second in quotes, as in "512kbit", "20Mbit" or "1Gbit"`

func (t *table) rate(key string, to *Rate) {
	v, path, ok := t.get(key)
	if !ok {
		return
	}
	text, ok := v.(string)
	if !ok {
		t.d.wrong(path, v, strings.TrimPrefix(rateHint, "write "))
		return
	}
	r, ok := parseRate(text)
	switch {
	case !ok:
		t.d.problem(path, "%q is no rate: %s", text, rateHint)
	case r == 0:
		t.d.problem(path, "%q would let nothing pass: remove the key for no bound, or write direction for one way only", text)
	}
	*to = r
}

// limits checks what bounds the sessions of a network.
func (d *decoder) limits(path string, n *Network) {
	for _, r := range []struct {
		key string
		v   Rate
	}{{"rate_up", n.RateUp}, {"rate_down", n.RateDown}} {
		if err := r.v.check(); r.v != 0 && err != nil {
			d.problem(join(path, r.key), "%v", err)
		}
	}
	if err := CheckDirection(n.Direction); err != nil {
		d.problem(join(path, "direction"), "%v", err)
	}
}
