package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"tunneld/internal/session"
)

// The two files of a state directory.
const (
	stateFile = "state.db" // bbolt: buckets and keys in clear, values sealed
	sealFile  = "seal.key" // the key that seals them
)

// lockTimeout is how long Open waits for another process to let go of the
// file: as long as a daemon that was told to stop may still be writing.
const lockTimeout = 500 * time.Millisecond

// mapSize is how much of the file is mapped from the start. Beyond it a commit
// that needs a larger map waits for every View to end. allocSize is by how much
// the file then grows at a time.
const (
	mapSize   = 64 << 20
	allocSize = 1 << 20
)

// The layout of state.db: two buckets at the top. meta holds the format (in
// clear, so that any version can read it) and a sealed word by which Open sees
// that seal.key belongs to this file; data holds the buckets of the callers.
var (
	metaBucket = []byte("meta")
	dataBucket = []byte("data")
	formatKey  = []byte("format")
	sealedKey  = []byte("sealed")
)

// sealedWord is what stands sealed under sealedKey.
const sealedWord = "tunneld state"

// Bolt is the Store of one node: a bbolt file in its state directory, sealed
// with a key beside it.
//
// What somebody sees who has state.db but not seal.key: the names of buckets
// and keys, how many there are, how long each value is and which changed
// between two copies. So keys hold names and identifiers, never secrets. An
// old value put back under its own key opens: whoever can write the file can
// turn time back, for one key or for all.
type Bolt struct {
	path   string
	db     *bbolt.DB
	id     session.ID
	sealer sealer

	turns   chan *turn    // from Update to the committer
	closing chan struct{} // closed by Close: no turn begins any more
	stopped chan struct{} // closed by the committer when it is gone
	once    sync.Once     // Close
	err     error         // of Close; read after once
	failed  error         // why no turn may begin any more; the committer's own
}

var _ Store = (*Bolt)(nil)

// Open opens the store in dir, which it makes (0700) if it is missing, and
// holds it until Close: a second Open, here or in another process, fails with
// ErrLocked. It starts one goroutine, which Close ends.
//
// Errors: ErrLocked; ErrNewer, when a later version wrote the file;
// ErrCorrupt, when the file or its key is not whole; else what the system
// said. Each names the file and the way out.
func Open(dir string) (*Bolt, error) { return open(dir, migrations) }

func open(dir string, steps []migration) (_ *Bolt, err error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, stateFile)
	db, err := openFile(path)
	if err != nil {
		return nil, err
	}
	b := &Bolt{
		path:    path,
		db:      db,
		turns:   make(chan *turn),
		closing: make(chan struct{}),
		stopped: make(chan struct{}),
	}
	if err := b.prepare(dir, steps); err != nil {
		db.Close()
		return nil, err
	}
	go b.commitLoop()
	return b, nil
}

func makeDir(dir string) error {
	_, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(dir, 0o700); err == nil {
			err = syncDir(filepath.Dir(dir))
		}
	}
	if err != nil {
		return fmt.Errorf("store: cannot make the state directory %s: %w: set state_dir to a directory that this user may write", dir, err)
	}
	return nil
}

// openFile opens and locks the bbolt file. bbolt may panic on a damaged one,
// and then leaves it open and locked, which is why the descriptor is kept here.
func openFile(path string) (*bbolt.DB, error) {
	var file *os.File
	var db *bbolt.DB
	err := guard(path, func() (err error) {
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout:         lockTimeout,
			InitialMmapSize: mapSize,
			OpenFile: func(name string, flag int, perm os.FileMode) (_ *os.File, err error) {
				file, err = os.OpenFile(name, flag, perm)
				return file, err
			},
		})
		return err
	})
	if err == nil {
		db.AllocSize = allocSize
		return db, nil
	}
	if file != nil { // closed already, unless bbolt panicked; then its map still holds the lock
		unix.Flock(int(file.Fd()), unix.LOCK_UN)
		file.Close()
	}
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("%w: %s is in use: stop the tunneld that runs on %s, or set another state_dir for this one", ErrLocked, path, filepath.Dir(path))
	case errors.Is(err, ErrCorrupt):
		return nil, err
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, bolterrors.ErrInvalidMapping):
		return nil, corrupt(path, err)
	}
	return nil, fmt.Errorf("store: cannot open %s: %w: state_dir must be a directory that this user may write", path, err)
}

// corrupt says that the file is damaged and what to do about it.
func corrupt(path string, err error) error {
	return fmt.Errorf("%w: %s: %w: restore it with %s from one backup, or move it away to begin anew (every node must then join again)", ErrCorrupt, path, err, sealFile)
}

// prepare checks the file, finds or makes the key, and brings the format up to
// date. What it makes is on disk when it returns.
func (b *Bolt) prepare(dir string, steps []migration) error {
	if err := b.check(); err != nil {
		return err
	}
	format, err := b.format()
	if err != nil {
		return err
	}
	if latest := len(steps) + 1; format > latest {
		return fmt.Errorf("%w: %s has format %d, this tunneld reads up to %d: run the newer tunneld, or restore the backup made before the upgrade", ErrNewer, b.path, format, latest)
	}
	key, err := readSealKey(filepath.Join(dir, sealFile))
	if errors.Is(err, fs.ErrNotExist) && format == 0 {
		key, err = makeSealKey(filepath.Join(dir, sealFile))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is missing and nothing in %s opens without it: restore it from the backup, or move %s away to begin anew (every node must then join again)", ErrCorrupt, filepath.Join(dir, sealFile), b.path, stateFile)
	}
	if err != nil {
		return err
	}
	if b.sealer, err = newSealer(key); err != nil {
		return err
	}
	b.id = journalID(key)
	if format == 0 {
		err = b.initialise(len(steps) + 1)
	} else {
		err = b.migrate(format, steps)
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// check walks the whole tree once: a file cut short kills the process when its
// missing pages are touched, and bbolt, whose pages have no checksum, follows a
// damaged one anywhere. (Its own Check does so in a goroutine of its own, where
// no guard reaches.)
func (b *Bolt) check() error {
	info, err := os.Stat(b.path)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return guard(b.path, func() error {
		return b.db.View(func(tx *bbolt.Tx) error {
			if have, want := info.Size(), tx.Size(); have < want {
				return corrupt(b.path, fmt.Errorf("it is cut short: %d of at least %d octets", have, want))
			}
			return tx.ForEach(func(name []byte, bucket *bbolt.Bucket) error {
				if err := checkBucket(bucket, 0); err != nil {
					return corrupt(b.path, fmt.Errorf("bucket %.64q: %w", name, err))
				}
				return nil
			})
		})
	})
}

// checkBucket compares the two ways to a key: walking finds them in ascending
// order, and looking each up finds the same pair.
func checkBucket(b *bbolt.Bucket, depth int) error {
	if depth > 2 {
		return errors.New("buckets inside buckets inside buckets")
	}
	var last []byte
	return b.ForEach(func(key, value []byte) error {
		if last != nil && bytes.Compare(last, key) >= 0 {
			return fmt.Errorf("key %.64q stands after %.64q", key, last)
		}
		last = key
		if value != nil {
			if got := b.Get(key); !bytes.Equal(got, value) {
				return fmt.Errorf("key %.64q is not where it should be", key)
			}
			return nil
		}
		inner := b.Bucket(key)
		if inner == nil {
			return fmt.Errorf("bucket %.64q is not where it should be", key)
		}
		return checkBucket(inner, depth+1)
	})
}

// format reads the version of the layout, 0 for a file that was just made.
func (b *Bolt) format() (version int, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		if meta == nil {
			if name, _ := tx.Cursor().First(); name != nil {
				return corrupt(b.path, fmt.Errorf("it is no state of tunneld: a bucket %q and no %q", name, metaBucket))
			}
			return nil
		}
		text := meta.Get(formatKey)
		if version, err = strconv.Atoi(string(text)); err != nil || version < 1 {
			return corrupt(b.path, fmt.Errorf("format %q is no version", text))
		}
		return nil
	})
	return version, err
}

// initialise writes the layout into an empty file.
func (b *Bolt) initialise(format int) error {
	err := b.db.Update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucket(metaBucket)
		if err != nil {
			return err
		}
		if _, err := tx.CreateBucket(dataBucket); err != nil {
			return err
		}
		if err := meta.Put(sealedKey, b.sealer.seal(string(metaBucket), string(sealedKey), []byte(sealedWord))); err != nil {
			return err
		}
		return meta.Put(formatKey, []byte(strconv.Itoa(format)))
	})
	if err != nil {
		return fmt.Errorf("store: %s: %w", b.path, err)
	}
	return nil
}

// ID names this journal, among all there are.
func (b *Bolt) ID() session.ID { return b.id }

// View runs fn on the state as the last Update left it.
func (b *Bolt) View(fn func(Tx) error) error {
	err := b.db.View(func(tx *bbolt.Tx) error {
		t := &boltTx{store: b, tx: tx}
		defer t.end()
		return fn(t)
	})
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	return err
}

// Close waits for the transactions that have begun, ends the committer and
// lets go of the file. Updates that wait for their turn fail with ErrClosed.
// It may be called more than once, but not from inside a transaction.
func (b *Bolt) Close() error {
	b.once.Do(func() {
		close(b.closing)
		<-b.stopped
		b.err = b.db.Close()
	})
	return b.err
}

// guard turns a panic or a memory fault of bbolt, which is how it meets a
// damaged page, into ErrCorrupt. No code of a caller may run inside it.
func guard(path string, fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = corrupt(path, fmt.Errorf("a page is not what it should be: %v", r))
		}
	}()
	return fn()
}
