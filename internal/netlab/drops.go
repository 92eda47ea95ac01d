package netlab

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// QueueDrops is how many packets the kernel has dropped on the host for want of
// room: in the queues of interfaces, and in those of UDP sockets. While no process
// reads from one it fills.
func (h *Host) QueueDrops() (n uint64, err error) {
	links, err := h.nl.LinkList()
	if err != nil {
		return 0, fmt.Errorf("host %s: %w", h.name, err)
	}
	for _, l := range links {
		if s := l.Attrs().Statistics; s != nil {
			n += s.TxDropped
		}
	}
	err = h.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		full, err := counterOf(string(b), "Udp:", "RcvbufErrors")
		n += full
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("host %s: %w", h.name, err)
	}
	return n, nil
}

// counterOf reads one counter of /proc/net/snmp: a line of names, and below it one
// of numbers.
func counterOf(snmp, protocol, name string) (uint64, error) {
	var names []string
	for line := range strings.Lines(snmp) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != protocol {
			continue
		}
		if i := slices.Index(names, name); i > 0 && i < len(fields) {
			return strconv.ParseUint(fields[i], 10, 64)
		}
		names = fields
	}
	return 0, fmt.Errorf("no %s %s in %q", protocol, name, snmp)
}
