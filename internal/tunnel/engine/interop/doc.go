// Package interop has tests alone: the engines speak to each other, each kind
// at either end, and to ends that others wrote, which find what two copies of
// ourselves agree on. Hosts are network namespaces, with an engine in a process
// of its own on each.
package interop
