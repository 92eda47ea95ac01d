package noise

import (
	"encoding/binary"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"tunneld/internal/secret"
)

// The peers of the responder benchmarks take turns, so that none comes twice
// within 20 ms.
const benchPeers = 256

// cpu is the processor time this process has had: on a shared machine it says
// more than the clock.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure runs one a number of times and reports processor time for each.
func measure(b *testing.B, one func(i int)) {
	b.Helper()
	b.ReportAllocs()
	b.ResetTimer()
	begin := cpu()
	for i := range b.N {
		one(i)
	}
	b.StopTimer()
	b.ReportMetric(float64(cpu()-begin)/float64(b.N), "cpu-ns/op")
}

// initiations are n messages of benchPeers peers in turn, with rising stamps.
func initiations(b *testing.B, to PublicKey, keys []*StaticKey, n int) [][]byte {
	b.Helper()
	peers := make([]*Peer, len(keys))
	for i := range peers {
		peers[i] = NewPeer(to)
	}
	msgs := make([][]byte, n)
	for i := range msgs {
		var err error
		if msgs[i], _, err = keys[i%len(keys)].CreateInitiation(nil, peers[i%len(keys)], uint32(i+1), testStart, testWall); err != nil {
			b.Fatal(err)
		}
	}
	return msgs
}

func benchKeys(b *testing.B) []*StaticKey {
	keys := make([]*StaticKey, benchPeers)
	for i := range keys {
		keys[i] = newStatic(b)
	}
	return keys
}

// BenchmarkRespond is a responder's part of a handshake, from the datagram to
// the new keypair, without sockets.
func BenchmarkRespond(b *testing.B) {
	keys := benchKeys(b)
	b.Run("ours", func(b *testing.B) {
		us := newStatic(b)
		peers := map[PublicKey]*Peer{}
		for _, k := range keys {
			peers[k.Public()] = NewPeer(k.Public())
			if _, err := peers[k.Public()].staticShared(us); err != nil { // as the device does, before
				b.Fatal(err)
			}
		}
		msgs := initiations(b, us.Public(), keys, b.N)
		var out [ResponseSize]byte
		measure(b, func(i int) {
			var in Initiation
			var k Keys
			if !us.CheckMAC1(msgs[i]) {
				b.Fatal("mac1")
			}
			if err := us.ConsumeInitiation(&in, msgs[i]); err != nil {
				b.Fatal(err)
			}
			p := peers[in.Peer()]
			now := testStart.Add(time.Duration(i) * InitiationInterval)
			if err := in.Accept(p, now); err != nil {
				b.Fatal(err)
			}
			if _, err := in.CreateResponse(out[:0], p, uint32(i+1), now, &k, secret.Value{}); err != nil {
				b.Fatal(err)
			}
			NewKeypair(&k)
		})
	})
	b.Run("wireguard-go", func(b *testing.B) {
		private := randomSecret(b)
		us, err := NewStaticKey(private)
		if err != nil {
			b.Fatal(err)
		}
		dev := device.NewDevice(tuntest.NewChannelTUN().TUN(), newWire(), device.NewLogger(device.LogLevelSilent, ""))
		defer dev.Close()
		if err := dev.SetPrivateKey(device.NoisePrivateKey(private.Reveal())); err != nil {
			b.Fatal(err)
		}
		if err := dev.Up(); err != nil {
			b.Fatal(err)
		}
		for _, k := range keys {
			p, err := dev.NewPeer(device.NoisePublicKey(k.Public()))
			if err != nil {
				b.Fatal(err)
			}
			p.Start()
		}
		msgs := initiations(b, us.Public(), keys, b.N)
		var macs, own device.CookieChecker
		macs.Init(device.NoisePublicKey(us.Public()))
		own.Init(device.NoisePublicKey(us.Public()))
		last := make([]time.Time, benchPeers)
		measure(b, func(i int) {
			if wait := 25*time.Millisecond - time.Since(last[i%benchPeers]); wait > 0 {
				<-time.After(wait)
			}
			if !macs.CheckMAC1(msgs[i]) {
				b.Fatal("mac1")
			}
			p := dev.ConsumeMessageInitiation(foreignInitiation(msgs[i]))
			if p == nil {
				b.Fatal("refused")
			}
			last[i%benchPeers] = time.Now()
			if _, err := dev.CreateMessageResponse(p); err != nil {
				b.Fatal(err)
			}
			if err := p.BeginSymmetricSession(); err != nil {
				b.Fatal(err)
			}
			own.CheckMAC1(msgs[i][:ResponseSize]) // the cost of its mac1
		})
	})
}

// foreignInitiation is msg as wireguard-go's type.
func foreignInitiation(msg []byte) *device.MessageInitiation {
	m := &device.MessageInitiation{
		Type:   binary.LittleEndian.Uint32(msg),
		Sender: binary.LittleEndian.Uint32(msg[senderAt:]),
	}
	copy(m.Ephemeral[:], msg[initEphemeralAt:])
	copy(m.Static[:], msg[initStaticAt:])
	copy(m.Timestamp[:], msg[initStampAt:])
	return m
}

// BenchmarkInitiate is an initiator's part, both messages.
func BenchmarkInitiate(b *testing.B) {
	x, y := pair(b)
	b.Run("create", func(b *testing.B) {
		measure(b, func(i int) { initiate(b, x, uint32(i+1), testStart) })
	})
	b.Run("consume", func(b *testing.B) {
		answers, flights := make([][]byte, b.N), make([]*Handshake, b.N)
		for i := range answers {
			var msg []byte
			msg, flights[i] = initiate(b, x, uint32(i+1), testStart)
			y.peer.acceptedAt = 0
			answers[i], _ = answer(b, y, msg, uint32(i+1), testStart, secret.Value{})
		}
		measure(b, func(i int) {
			var k Keys
			if _, err := flights[i].ConsumeResponse(x.key, answers[i], testStart, &k); err != nil {
				b.Fatal(err)
			}
		})
	})
}

// BenchmarkCheckMAC1 is what a flood of strangers costs.
func BenchmarkCheckMAC1(b *testing.B) {
	x, y := pair(b)
	msg, _ := initiate(b, x, 1, testStart)
	measure(b, func(int) { y.key.CheckMAC1(msg) })
}

func BenchmarkTransport(b *testing.B) {
	x, y := pair(b)
	kx, ky := handshake(b, x, y, testStart)
	text := make([]byte, 1400)
	buf := make([]byte, 0, 2048)
	b.Run("seal 1400", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		measure(b, func(int) {
			n, _ := kx.NextCounters(1)
			kx.Seal(buf, n, text, 1420)
		})
	})
	b.Run("seal and open 1400", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		measure(b, func(int) {
			n, _ := kx.NextCounters(1)
			if _, err := ky.Open(kx.Seal(buf, n, text, 1420), testStart); err != nil {
				b.Fatal(err)
			}
		})
	})
	var timers Timers
	b.Run("timers of a batch", func(b *testing.B) {
		measure(b, func(i int) {
			timers.DataSent(testStart + Instant(i))
			timers.DataReceived(testStart + Instant(i))
		})
	})
	w := make(Window, WindowWords)
	b.Run("window", func(b *testing.B) {
		measure(b, func(i int) { w.Accept(uint64(i)) })
	})
}
