// Package script holds the stories of what both commands answer to bad input:
// real daemons on the hosts of a laboratory, one txtar file for each thing that
// can be wrong. Each story checks the sentence (it names the thing, the value
// and the way out), the exit status, and that nothing changed: state, files,
// interfaces, addresses, routes and filters are what they were.
//
// Beside them stands the test of the commands that README.md shows, which are
// taken from there and run.
package script
