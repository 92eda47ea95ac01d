package native

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
	"tunneld/internal/tunnel/engine/memfile"
	"tunneld/internal/tunnel/engine/noise"
	"tunneld/internal/tunnel/engine/udp"
)

// A shelf is a keeper in this process.
type shelf struct {
	t    *testing.T
	kept map[string][]int
	fail error
}

func newShelf(t *testing.T) *shelf {
	s := &shelf{t: t, kept: make(map[string][]int)}
	t.Cleanup(func() {
		for name := range s.kept {
			s.Forget(name)
		}
	})
	return s
}

func (s *shelf) Keep(name string, fds ...int) error {
	for _, fd := range fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		s.kept[name] = append(s.kept[name], dup)
	}
	return s.fail
}

func (s *shelf) Forget(name string) error {
	for _, fd := range s.kept[name] {
		unix.Close(fd)
	}
	delete(s.kept, name)
	return s.fail
}

// inherited is what the next engine gets: the shelf is empty then, as this
// process may have one descriptor of the memory file only.
func (s *shelf) inherited() (all []Descriptor) {
	for name, fds := range s.kept {
		for _, fd := range fds {
			all = append(all, Descriptor{name, fd})
		}
	}
	clear(s.kept)
	return all
}

// A house is a gateway that is handed over, and a node that dials it.
type house struct {
	*loop
	shelf  *shelf
	config Config
	node   *loop
	id     session.ID
	own    engine.Session // as the gateway has it
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{shelf: newShelf(t), node: newLoop(t)}
	h.config = Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Keeper: h.shelf, Journal: session.ID{1}, AllowSwap: true}
	h.loop = newLoopOf(t, h.config)
	h.config.Listen = h.addr()
	h.id = sessions(h.node, h.loop, h.addr(), func(_, b *engine.Session) { h.own = *b })
	passesOn(t, h.node, h.loop, 1, 2, "before")
	passesOn(t, h.loop, h.node, 2, 1, "and back")
	return h
}

// next hands over to another engine, changed as told, which has the same key
// and no session yet.
func (h *house) next(change ...func(*Config)) {
	h.t.Helper()
	private := h.private
	if err := h.engine.HandOver(); err != nil {
		h.t.Fatal(err)
	}
	c := h.config
	c.Inherited = h.shelf.inherited()
	for _, f := range change {
		f(&c)
	}
	h.loop = newLoopOf(h.t, c)
	if err := h.device.SetPrivateKey(secret.New(private)); err != nil {
		h.t.Fatal(err)
	}
	h.private = private
}

func (h *house) add(s engine.Session) {
	h.t.Helper()
	if err := h.device.Add(s); err != nil {
		h.t.Fatal(err)
	}
}

func TestAdopted(t *testing.T) {
	h := newHouse(t)
	before, _ := h.node.device.Stats(h.id)
	h.next()
	if h.engine.Port() != h.config.Listen.Port() {
		t.Fatalf("the port is %d, want %d", h.engine.Port(), h.config.Listen.Port())
	}
	h.node.send(packet(1, 2, "while nobody reads"))
	h.add(h.own)
	h.engine.Settled()
	h.engine.Settled() // once more is nothing
	if got := h.receive(enginetest.Patience); string(got) != string(packet(1, 2, "while nobody reads")) {
		t.Errorf("what waited in the kernel arrives as %x", got)
	}
	passesOn(t, h.loop, h.node, 2, 1, "after") // to an endpoint that only the file knows
	after, err := h.node.device.Stats(h.id)
	if err != nil || !after.LastHandshake.Equal(before.LastHandshake) {
		t.Errorf("handshake at %v, want none after %v", after.LastHandshake, before.LastHandshake)
	}
}

// TestKeypairsAreNamed: the next process names the keypairs that it goes on with
// as the peer does, which then needs no handshake; one without them gets one.
func TestKeypairsAreNamed(t *testing.T) {
	h := newHouse(t)
	before, _ := h.node.device.Stats(h.id)
	h.next()
	h.add(h.own)
	h.engine.Settled()
	kept, err := h.device.Keypairs(h.id)
	if err != nil || len(kept) != 1 {
		t.Fatalf("keypairs %v, %v; want one", kept, err)
	}
	if err := h.node.device.PeerRestarted(h.id, append([]uint32{kept[0] + 1}, kept...)); err != nil {
		t.Fatal(err)
	}
	passesOn(t, h.node, h.loop, 1, 2, "with the keypair of before")
	if after, _ := h.node.device.Stats(h.id); !after.LastHandshake.Equal(before.LastHandshake) {
		t.Errorf("handshake at %v, want none after %v", after.LastHandshake, before.LastHandshake)
	}
	if err := h.node.device.PeerRestarted(h.id, []uint32{kept[0] + 1}); err != nil {
		t.Fatal(err)
	}
	enginetest.Eventually(t, "a handshake with a peer that has other keypairs", func() bool {
		after, _ := h.node.device.Stats(h.id)
		return after.LastHandshake.After(before.LastHandshake)
	})
	passesOn(t, h.node, h.loop, 1, 2, "with the keypair of that")
	if kept, err = h.device.Keypairs(h.id); err != nil || len(kept) != 2 {
		t.Errorf("keypairs %v, %v; want the present one and the one before", kept, err)
	}
}

// TestNotAdopted: what the journal does not name live, or names with another
// key, is wiped when the engine has settled.
func TestNotAdopted(t *testing.T) {
	_, stranger := enginetest.NewKey(t)
	for name, add := range map[string]func(*house){
		"no session":  func(*house) {},
		"another key": func(h *house) { s := h.own; s.PeerKey = stranger; h.add(s) },
		"another session": func(h *house) {
			s := h.own
			s.ID = session.NewID()
			h.add(s)
		},
	} {
		h := newHouse(t)
		h.next()
		finds := h.engine.legacy.finds[h.id]
		if len(finds) != 1 || finds[0].Slot.ID.Load() == 0 {
			t.Fatalf("%s: %d keypairs before, want 1", name, len(finds))
		}
		add(h)
		h.engine.Settled()
		if s := finds[0].Slot; s.ID.Load() != 0 || s.Keys != (noise.Keys{}) {
			t.Errorf("%s: the keypair is left in the file", name)
		}
	}
}

// TestClosedUntilAdded: an adopted keypair moves nothing through a closed gate.
func TestClosedUntilAdded(t *testing.T) {
	h := newHouse(t)
	h.next()
	closed := h.own
	closed.Gate = engine.Closed
	h.add(closed)
	h.engine.Settled()
	h.node.send(packet(1, 2, "to a closed gate"))
	enginetest.Eventually(t, "the packet is dropped", func() bool {
		s, _ := h.device.Stats(h.id)
		return s.RxDropped.Total() == 1
	})
	if err := h.device.SetGate(h.id, engine.Open); err != nil {
		t.Fatal(err)
	}
	passesOn(t, h.node, h.loop, 1, 2, "to an open one")
}

// TestSettlesByItself: a control plane that says nothing stops nobody for ever.
func TestSettlesByItself(t *testing.T) {
	h := newHouse(t)
	h.next()
	h.add(h.own)
	h.node.send(packet(1, 2, "at last"))
	if got := h.receive(enginetest.Patience); string(got) != string(packet(1, 2, "at last")) {
		t.Errorf("an engine that nobody told to moves %x", got)
	}
}

// TestForeignLegacy: what does not fit is refused, and the engine begins anew.
func TestForeignLegacy(t *testing.T) {
	h := newHouse(t)
	h.next(func(c *Config) { c.Journal = session.ID{2} })
	if n := len(h.engine.legacy.finds); n != 0 {
		t.Errorf("%d keypairs of another journal", n)
	}
	h.add(h.own)
	if err := h.node.device.Handshake(h.id, true); err != nil {
		t.Fatal(err)
	}
	passesOn(t, h.node, h.loop, 1, 2, "with new keys")
}

// TestForeignSockets: sockets bound elsewhere are not used.
func TestForeignSockets(t *testing.T) {
	conns, err := udp.Listen(netip.MustParseAddrPort("127.0.0.1:0"), 1)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := conns[0].SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	s := newShelf(t)
	if err := raw.Control(func(fd uintptr) { err = s.Keep(socketName, int(fd)) }); err != nil {
		t.Fatal(err)
	}
	bound := udp.LocalAddr(conns[0])
	conns[0].Close()
	for _, c := range []struct {
		addr string
		fits bool
	}{{"127.0.0.1:0", true}, {bound.String(), true}, {"127.0.0.2:0", false}, {":0", false}, {"127.0.0.1:1", false}} {
		addr, err := net.ResolveUDPAddr("udp", c.addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := isBoundTo(bound, addr.AddrPort()); got != c.fits {
			t.Errorf("a socket at %v for %s: %v, want %v", bound, c.addr, got, c.fits)
		}
	}
	e, err := New(Config{Listen: netip.MustParseAddrPort("127.0.0.2:0"), Keeper: s, Inherited: s.inherited(), AllowSwap: true})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if e.sockets[0].Local == bound {
		t.Errorf("the engine listens at %v", bound)
	}
}

// TestKeeperFails: an engine works without its keeper.
func TestKeeperFails(t *testing.T) {
	s := newShelf(t)
	s.fail = errors.New("no room")
	a := newLoopOf(t, Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Keeper: s, AllowSwap: true})
	b := newLoop(t)
	sessions(a, b, b.addr())
	passesOn(t, a, b, 1, 2, "all the same")
}

// TestKeyMemory: without a keeper keys lie where everything else does; with one
// the memory file says.
func TestKeyMemory(t *testing.T) {
	h := newHouse(t)
	if k := h.node.engine.KeyMemory(); k.Unlocked != engine.ErrOrdinaryMemory || k.Limited {
		t.Errorf("without a keeper: %+v, want ordinary memory", k)
	}
	want := h.engine.legacy.file.Unlocked()
	if k := h.engine.KeyMemory(); k.Unlocked != want || k.Limited != errors.Is(want, memfile.ErrLimit) {
		t.Errorf("with one: %+v, want what the memory file says: %v", k, want)
	}
}
