// Package api is the daemon's local interface: JSON over HTTP on a Unix socket.
// It holds the types, the server, which asks a [Manager], and the client, which
// is all that tunnelctl imports.
//
// Every verb has one path below /v1/ and one [class] of callers, both in the
// one table of routes.go. Whoever connects is known by the kernel's word
// (SO_PEERCRED, SO_PEERGROUPS), never by his own:
//
//	look        root, the daemon's own user, groups tunneld and tunneld-admin
//	use         the same
//	administer  root, the daemon's own user, group tunneld-admin
//
// A request carries its arguments as a JSON object in the body, or in the query
// for verbs that only read. An answer is a JSON value; a refusal is an [Error]
// under a status of 400 and above. Events are a stream of JSON lines.
package api
