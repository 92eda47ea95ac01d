package netlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Disk is a file system in memory, of a small size, that a daemon has its state
// on and nobody else sees: it is mounted in a namespace that a process holds
// open, and ends with that.
type Disk struct {
	host   *Host
	dir    string
	holder *Process
}

// filler is the file that takes the room.
const filler = "filler"

// OnDisk moves the node's state directory, with what is in it, to a file system
// of its own. No process of the node may be running; those that are started from
// now on see the new one. size is as mount(8) has it.
func (d *Daemon) OnDisk(ctx context.Context, size string) (*Disk, error) {
	dir := filepath.Join(d.dir, "state")
	const script = `cp -a "$1" "$1.before" && mount -t tmpfs -o size="$2" none "$1" && cp -a "$1.before/." "$1" && touch "$1.before/mounted" && exec sleep infinity`
	holder, err := d.host.Start(filepath.Base(d.dir)+"-disk", "unshare", "--mount", "sh", "-c", script, "sh", dir, size)
	if err != nil {
		return nil, err
	}
	err = Poll(ctx, 10*time.Millisecond, func() (bool, error) {
		_, err := os.Stat(filepath.Join(dir+".before", "mounted"))
		if !holder.Running() {
			return false, fmt.Errorf("the disk of %s is not mounted, see its log", d.dir)
		}
		return err == nil, nil
	})
	if err != nil {
		return nil, err
	}
	d.Under("nsenter", "--mount", "--target", strconv.Itoa(holder.PID()), "--")
	return &Disk{host: d.host, dir: dir, holder: holder}, nil
}

// inside is a path on the disk, as seen from outside.
func (k *Disk) inside(name string) string {
	return filepath.Join("/proc", strconv.Itoa(k.holder.PID()), "root", k.dir, name)
}

// Fill takes all the room that is left.
func (k *Disk) Fill() error {
	f, err := os.Create(k.inside(filler))
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	return nil
}

// Empty gives it back.
func (k *Disk) Empty() error { return os.Remove(k.inside(filler)) }

// ReadOnly makes the disk read-only, or writable again. It is busy while anybody
// has a file open for writing.
func (k *Disk) ReadOnly(ctx context.Context, on bool) error {
	option := "remount,rw"
	if on {
		option = "remount,ro"
	}
	_, err := k.host.Run(ctx, "", "nsenter", "--mount", "--target", strconv.Itoa(k.holder.PID()), "--", "mount", "-o", option, k.dir)
	return err
}
