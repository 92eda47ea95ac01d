// Command tunneld is the daemon: session control for encrypted tunnels. This
// package holds flags, exit codes, signals and the log's form; it builds the
// parts and waits for them. See tunneld(8).
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr, os.Getenv))
}
