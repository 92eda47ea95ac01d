package store

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/crypto/chacha20poly1305"

	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// sealVersion is the first octet of every sealed value, so that another way of
// sealing can stand beside this one.
const sealVersion = 1

// errUnsealed says that a value is not what was put under its key.
var errUnsealed = errors.New("the value does not open: it was changed, moved, or sealed with another key")

// A sealer seals values with XChaCha20-Poly1305: version, nonce, ciphertext,
// tag. Its nonce of 192 bits may be drawn at random for ever. The 96 bits of
// AES-GCM may be drawn 2^32 times under one key, which a busy gateway's
// checkpoints use up in weeks, and a counter would have to be on disk before
// each use.
type sealer struct{ aead cipher.AEAD }

func newSealer(key secret.Value) (sealer, error) {
	aead, err := chacha20poly1305.NewX(key.Reveal())
	if err != nil {
		return sealer{}, fmt.Errorf("store: sealing key: %w", err)
	}
	return sealer{aead}, nil
}

// journalID derives a name from the sealing key, of which it tells nothing: a
// journal has one for as long as it has that key.
func journalID(key secret.Value) (id session.ID) {
	sum := sha256.Sum256(append([]byte("tunneld journal id\x00"), key.Reveal()...))
	copy(id[:], sum[:])
	return id
}

// seal seals value for one place: it opens nowhere else.
func (s sealer) seal(bucket, key string, value []byte) []byte {
	out := make([]byte, 1+chacha20poly1305.NonceSizeX, 1+chacha20poly1305.NonceSizeX+len(value)+chacha20poly1305.Overhead)
	out[0] = sealVersion
	nonce := out[1:]
	rand.Read(nonce) // never fails
	return s.aead.Seal(out, nonce, value, place(bucket, key))
}

// open returns the value in memory of its own.
func (s sealer) open(bucket, key string, sealed []byte) ([]byte, error) {
	const head = 1 + chacha20poly1305.NonceSizeX
	if len(sealed) < head || sealed[0] != sealVersion {
		return nil, errUnsealed
	}
	value, err := s.aead.Open([]byte{}, sealed[1:head], sealed[head:], place(bucket, key))
	if err != nil {
		return nil, errUnsealed
	}
	return value, nil
}

// place is the associated data: bucket and key, the first with its length so
// that no two places read the same.
func place(bucket, key string) []byte {
	ad := binary.AppendUvarint(nil, uint64(len(bucket)))
	return append(append(ad, bucket...), key...)
}

// readSealKey reads the key, and refuses one that others may read: whoever
// made it so may have left copies. fs.ErrNotExist if there is none.
func readSealKey(path string) (secret.Value, error) {
	info, err := os.Stat(path)
	if err != nil {
		return secret.Value{}, fmt.Errorf("store: %w", err)
	}
	if rights := info.Mode().Perm(); rights&^0o600 != 0 {
		return secret.Value{}, fmt.Errorf("store: %s has rights %04o and may be read by others: run chmod 600 %s, and replace the deployment's keys if somebody did", path, rights, path)
	}
	b, err := os.ReadFile(path)
	defer clear(b)
	if err != nil {
		return secret.Value{}, fmt.Errorf("store: %w", err)
	}
	if len(b) != chacha20poly1305.KeySize {
		return secret.Value{}, fmt.Errorf("%w: %s has %d octets, want %d: restore it from the backup", ErrCorrupt, path, len(b), chacha20poly1305.KeySize)
	}
	return secret.New(b), nil
}

// makeSealKey makes the key, once. It appears whole or not at all, and is on
// disk when makeSealKey returns.
func makeSealKey(path string) (secret.Value, error) {
	b := make([]byte, chacha20poly1305.KeySize)
	rand.Read(b) // never fails
	defer clear(b)
	if err := writeFile(path, b); err != nil {
		return secret.Value{}, fmt.Errorf("store: cannot make %s: %w", path, err)
	}
	return secret.New(b), nil
}

// writeFile writes a file of rights 0600 that must not be there yet. The lock
// on state.db keeps a second writer away from the temporary name.
func writeFile(path string, b []byte) (err error) {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}
