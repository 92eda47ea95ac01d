package netlab

import "testing"

func TestCounterOf(t *testing.T) {
	const snmp = "Icmp: InMsgs\nIcmp: 7\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors\nUdp: 1 2 3 4 5\nUdpLite: InDatagrams\nUdpLite: 9\n"
	if n, err := counterOf(snmp, "Udp:", "RcvbufErrors"); n != 5 || err != nil {
		t.Errorf("RcvbufErrors = %d, %v, want 5", n, err)
	}
	if n, err := counterOf(snmp, "Udp:", "InMsgs"); err == nil {
		t.Errorf("a counter of another protocol = %d, want an error", n)
	}
}
