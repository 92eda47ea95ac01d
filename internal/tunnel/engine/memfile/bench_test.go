package memfile

import (
	"testing"

	"tunneld/internal/tunnel/engine/noise"
)

// BenchmarkPacket seals and opens packets with keypairs in ordinary memory and
// in the file.
func BenchmarkPacket(b *testing.B) {
	ours, theirs := keys(5, now), keys(6, now)
	theirs.Send, theirs.Receive = ours.Receive, ours.Send
	for name, pairs := range map[string]func(*File) (*noise.Keypair, *noise.Keypair){
		"memory": func(*File) (*noise.Keypair, *noise.Keypair) {
			return noise.NewKeypair(ours), noise.NewKeypair(theirs)
		},
		"file": func(f *File) (*noise.Keypair, *noise.Keypair) {
			from, _ := f.Keypair(ours, aboutOf(1))
			to, _ := f.Keypair(theirs, aboutOf(2))
			return from, to
		},
	} {
		b.Run(name, func(b *testing.B) {
			f, err := Create(journal, [2]uint32{})
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			from, to := pairs(f)
			buf, packet := make([]byte, 0, 256), make([]byte, 64)
			for b.Loop() {
				n, _ := from.NextCounters(1)
				if _, err := to.Open(from.Seal(buf, n, packet, 1420), now); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
