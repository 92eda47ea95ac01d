// Package control is the control connection and the sessions in it.
//
// [Machine] is the protocol: a pure function of state and event that gives
// actions. It has no socket, no clock and no disk; randomness comes from its
// configuration. [Conn] is the goroutine around it that turns octets and timers
// into events and actions into octets and timers; [Handler] is whoever decides
// (who may, which address) and keeps the journal.
//
// docs/protocol.md describes what is on the wire.
package control
