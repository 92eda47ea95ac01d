// Package house has no code: its tests hold the rules of the tree. Which room
// may import which, what a log line may say, what stands in every package,
// which parser a peer reaches and what fuzzes it, how tests wait, and that the
// documents speak of commands, keys and files that exist.
//
// A rule that fails names the place and the reason. A rule that is wrong is
// changed here, in the table that states it.
package house
