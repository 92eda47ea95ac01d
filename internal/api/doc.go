// Package api is the daemon's local interface: JSON over HTTP on a Unix socket.
// It holds the types, the server, which asks a [Manager], and the client, which
// is all that tunnelctl imports.
package api
