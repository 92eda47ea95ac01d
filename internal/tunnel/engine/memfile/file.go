// Package memfile keeps live keypairs in memory that outlives the process: a
// memfd, which whoever holds a descriptor of it keeps alive. A process that is
// given the descriptor goes on where the last one was stopped or killed.
//
// The file has its whole size from the start, sealed, and is sparse: only what
// was used takes memory. So it never moves under the threads that seal and
// open, nobody can cut it off under them, and there is room for four keypairs
// each of 100,000 sessions and more. Slots are given out from the front; a mark
// in the header says how far, so that a new process looks at no page that was
// never used.
//
// The owner holds a classic lock (F_SETLK) on it for life. It belongs to the
// process, not to the description that others share by passing the descriptor
// around, and the kernel frees it only when the last thread of the process has
// ended: with the lock one knows that no instruction of the former owner will
// follow. Closing any descriptor of the file in the process frees it too, so
// there is exactly one.
package memfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"tunneld/internal/session"
)

// Errors of Adopt. Each but ErrInUse says that the file is of no use to us.
var (
	ErrForeign = errors.New("memfile: no memory file of ours")
	ErrVersion = errors.New("memfile: of another version")
	ErrBoot    = errors.New("memfile: from before the machine was started")
	ErrJournal = errors.New("memfile: of another journal")
	ErrInUse   = errors.New("memfile: in use by another process")
)

const (
	version = 1
	// capacity is how many keypairs fit.
	capacity = 1 << 19
	// maxHands is how many threads can say what they have in hand.
	maxHands   = 64
	headerSize = 2 * 4096
	fileSize   = headerSize + capacity*int(unsafe.Sizeof(Slot{}))
	seals      = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
)

var magic = [8]byte{'t', 'u', 'n', 'n', 'k', 'e', 'y', 's'}

// A header is the beginning of the file. Only high and the hands change.
type header struct {
	magic    [8]byte
	version  uint32
	slotSize uint32
	boot     session.ID // of the machine
	journal  session.ID
	mixing   [2]uint32     // of receiver indices
	high     atomic.Uint32 // slots from here on were never used
	_        [4096 - 60]byte
	hands    [maxHands]Hand
}

// A Hand is what one thread has taken from the kernel and not yet given back.
// Its own cache line.
type Hand struct {
	holds atomic.Uint32
	_     [60]byte
}

// Holds says how many packets the thread has in hand. A thread without a place
// in the file has none to say it in.
func (h *Hand) Holds(n int) {
	if h != nil {
		h.holds.Store(uint32(n))
	}
}

// A File is the memory file of this process. Its methods may be called from any
// goroutine.
type File struct {
	fd     int
	head   *header
	slots  []Slot
	unlock error // why the memory could not be locked; nil: it is

	mu    sync.Mutex // guards everything below
	free  []uint32   // slots below high
	hands [maxHands]bool
}

// Create makes an empty file for a daemon with that journal. mixing is kept for
// the next process.
func Create(journal session.ID, mixing [2]uint32) (*File, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("tunneld", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("tunneld", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f, err := create(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	f.head.version, f.head.slotSize = version, uint32(unsafe.Sizeof(Slot{}))
	f.head.boot, f.head.journal, f.head.mixing = boot, journal, mixing
	f.head.magic = magic
	return f, nil
}

func create(fd int) (*File, error) {
	if err := unix.Ftruncate(fd, int64(fileSize)); err != nil {
		return nil, fmt.Errorf("memory file of %d octets: %w", fileSize, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("memory file: seals: %w", err)
	}
	if err := lock(fd); err != nil {
		return nil, err
	}
	return mapped(fd)
}

// Adopt goes on with the file of a process before this one. It owns fd if it
// returns no error, and there must be no other descriptor of the file in this
// process.
func Adopt(fd int, journal session.ID) (*File, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd)
	var st unix.Stat_t
	switch have, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); {
	case err != nil:
		return nil, fmt.Errorf("%w: it has no seals: %w", ErrForeign, err)
	case have&seals != seals:
		return nil, fmt.Errorf("%w: its size is not sealed", ErrForeign)
	}
	switch err := unix.Fstat(fd, &st); {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrForeign, err)
	case st.Size < headerSize:
		return nil, fmt.Errorf("%w: it has %d octets", ErrForeign, st.Size)
	}
	if err := lock(fd); err != nil {
		return nil, err
	}
	if err := check(fd, st.Size, boot, journal); err != nil {
		return nil, err
	}
	return mapped(fd)
}

// check reads the header without mapping a file that may be too short for it.
func check(fd int, size int64, boot, journal session.ID) error {
	var b [unsafe.Sizeof(header{})]byte
	if _, err := unix.Pread(fd, b[:], 0); err != nil {
		return fmt.Errorf("%w: %w", ErrForeign, err)
	}
	h := (*header)(unsafe.Pointer(&b))
	switch {
	case h.magic != magic:
		return fmt.Errorf("%w: it begins with %x", ErrForeign, h.magic)
	case h.version != version:
		return fmt.Errorf("%w: it has %d, this program reads %d", ErrVersion, h.version, version)
	case h.slotSize != uint32(unsafe.Sizeof(Slot{})) || size != int64(fileSize) || h.high.Load() > capacity:
		return fmt.Errorf("%w: %d octets with slots of %d and %d in use: want %d with slots of %d", ErrForeign, size, h.slotSize, h.high.Load(), fileSize, unsafe.Sizeof(Slot{}))
	case h.boot != boot:
		return fmt.Errorf("%w: boot %v, now it is %v", ErrBoot, h.boot, boot)
	case h.journal != journal:
		return fmt.Errorf("%w: %v, ours is %v", ErrJournal, h.journal, journal)
	}
	return nil
}

// lock makes this process the owner of the file, for life.
func lock(fd int) error {
	l := unix.Flock_t{Type: unix.F_WRLCK}
	err := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &l)
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: lock: %w", ErrForeign, err)
	}
	l = unix.Flock_t{Type: unix.F_WRLCK}
	if unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &l) == nil && l.Type != unix.F_UNLCK {
		return fmt.Errorf("%w: end process %d first", ErrInUse, l.Pid)
	}
	return ErrInUse
}

// mapped maps a file of the right size, which is ours.
func mapped(fd int) (*File, error) {
	b, err := unix.Mmap(fd, 0, fileSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("memory file: %w", err)
	}
	f := &File{fd: fd, head: (*header)(unsafe.Pointer(&b[0]))}
	f.slots = unsafe.Slice((*Slot)(unsafe.Pointer(&b[headerSize])), capacity)
	for _, advice := range []int{unix.MADV_DONTDUMP, unix.MADV_DONTFORK} {
		if err := unix.Madvise(b, advice); err != nil {
			return nil, errors.Join(fmt.Errorf("memory file: madvise %d: %w", advice, err), unix.Munmap(b))
		}
	}
	f.unlock = lockMemory(b)
	return f, nil
}

// FD is the descriptor of the file, for whoever is to keep it: to be sent, not
// to be duplicated and closed in this process.
func (f *File) FD() int { return f.fd }

// Mixing is what Create was told.
func (f *File) Mixing() [2]uint32 { return f.head.mixing }

// Unlocked says why the memory could not be locked as a whole; nil if it is.
func (f *File) Unlocked() error { return f.unlock }

// Hand is a place for a thread to say what it has in hand; nil if all are
// taken.
func (f *File) Hand() *Hand {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.hands {
		if !f.hands[i] {
			f.hands[i] = true
			return &f.head.hands[i]
		}
	}
	return nil
}

// PutBack ends the use of a place.
func (f *File) PutBack(h *Hand) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.hands {
		if &f.head.hands[i] == h {
			h.Holds(0)
			f.hands[i] = false
		}
	}
}

// TakeLost returns how many packets the threads of the process before this one
// had in hand when it ended. It is for once, before any Hand is given out.
func (f *File) TakeLost() (n int) {
	for i := range f.head.hands {
		n += int(f.head.hands[i].holds.Swap(0))
	}
	return n
}

// Close gives the file up to whoever has another descriptor of it. What lies in
// it stays, and so does the mapping, because a caller may be on its way: it
// ends with the process.
func (f *File) Close() error { return unix.Close(f.fd) }

// bootID names this start of the machine.
func bootID() (session.ID, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return session.ID{}, fmt.Errorf("boot id of the machine: %w", err)
	}
	return session.ParseID(string(bytes.TrimSpace(b)))
}
