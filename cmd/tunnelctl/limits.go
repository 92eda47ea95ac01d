package main

import (
	"fmt"
	"strings"

	"tunneld/internal/api"
)

// limitsOf tells what bounds a session; "" where nothing does, or where this end
// does not know.
func limitsOf(l api.Limits) string {
	var parts []string
	switch d := word(l.Direction); d {
	case "", "duplex":
	case "none":
		parts = append(parts, "nothing passes")
	default:
		parts = append(parts, d+" only")
	}
	if l.RateUp != nil {
		parts = append(parts, "up "+rate(*l.RateUp))
	}
	if l.RateDown != nil {
		parts = append(parts, "down "+rate(*l.RateDown))
	}
	return list(parts)
}

// rate is bits a second, as the configuration spells them.
func rate(bits uint64) string {
	for _, u := range []struct {
		name string
		size uint64
	}{{"Gbit", 1e9}, {"Mbit", 1e6}, {"kbit", 1e3}} {
		if bits >= u.size && bits%u.size == 0 {
			return fmt.Sprintf("%d%s", bits/u.size, u.name)
		}
	}
	return fmt.Sprintf("%dbit", bits)
}

// dropsOf tells how many packets were dropped, and why; "" if none was.
func dropsOf(rx, tx *api.Drops) string {
	var parts []string
	for _, way := range []struct {
		name string
		of   *api.Drops
	}{{"received", rx}, {"to be sent", tx}} {
		if way.of == nil {
			continue
		}
		d := way.of
		for _, cause := range []struct {
			name    string
			packets uint64
		}{
			{"gate", d.Gate}, {"deadline", d.Deadline}, {"direction", d.Direction}, {"rate", d.Rate},
			{"source", d.Source}, {"no key", d.NoKey}, {"congested", d.Congested}, {"unsent", d.Unsent},
		} {
			if cause.packets > 0 {
				parts = append(parts, fmt.Sprintf("%d %s (%s)", cause.packets, way.name, cause.name))
			}
		}
	}
	return strings.Join(parts, ", ")
}
