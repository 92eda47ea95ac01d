// Command tunnelctl shows and steers the tunneld of this machine. It speaks to
// the daemon's Unix socket and to nothing else; see tunnelctl(1).
package main

import "os"

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
}
