// Package e2e holds the tests of the two commands from end to end: real
// daemons, one process on each host of a laboratory, joined by wires that
// misbehave. Each test reads as a story of what a user does and what must then
// be true; nothing in it looks inside a daemon.
//
// With $TUNNELD_LONG set to 1 a frozen laptop sleeps past WireGuard's 180 s.
package e2e
