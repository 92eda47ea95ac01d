// Package netlab builds small networks out of nothing but this process: hosts
// are network namespaces, wires between them are user-space relays that delay,
// lose, reorder, duplicate and limit, and daemons run on the hosts as real
// processes with real TUN devices. Tests and the demo are built on it.
//
//	lab, err := netlab.New(netlab.Options{})
//	defer lab.Close()
//	a, err := lab.Host("a")
//	b, err := lab.Host("b")
//	wire, err := lab.Wire(a, "eth0", b, "eth0", netlab.Impairment{Delay: 10 * time.Millisecond})
//	err = a.SetAddr("eth0", "10.0.0.1/24")
//
//	 a                      this process                     b
//	┌──────────┐   ┌──────────────────────────────┐   ┌──────────┐
//	│ eth0 TAP │◄──┤ delay line ◄── relay ◄────── ├──►│ eth0 TAP │
//	│ tunneld  ├──►│ ──────► relay ──► delay line ├──►│ tunneld  │
//	└──────────┘   └──────────────────────────────┘   └──────────┘
//
// Everything is anonymous: a namespace lives as long as the thread, the
// descriptor and the processes that use it, a TAP as long as its descriptor,
// and a daemon is killed by the kernel when the thread that started it ends. So
// nothing but the laboratory's directory is left when this process is killed,
// and not even that when [Lab.Close] is called.
//
// Of the kernel it needs network namespaces, TUN/TAP, veth for [Lab.Veth], and
// nftables with NAT for [Lab.NAT]; not netem. See [Check].
package netlab
