package api

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// class says who may use a verb. The zero class is nobody, so that a verb that
// was forgotten is refused.
type class uint8

const (
	unclassified class = iota
	look               // reads; changes nothing
	use                // starts and stops this node's own tunnels
	administer         // gives and takes rights
	numClasses
)

// groupsOf are the groups whose members may use the verbs of a class; root and
// the daemon's own user always may.
var groupsOf = [numClasses][]string{
	look:       {Group, AdminGroup},
	use:        {Group, AdminGroup},
	administer: {AdminGroup},
}

// overflowID is what the kernel shows for users and groups that are not mapped
// into our user namespace (user_namespaces(7)): anybody, hence nobody.
const overflowID = 65534

// peer is who connected, as the kernel tells. It is the connecting process at
// the time of the connect, whoever holds the descriptor now.
type peer struct {
	uid    uint32
	groups []uint32 // the primary and all supplementary ones
}

// nobody is a peer that may nothing.
var nobody = peer{uid: overflowID}

// peerOf asks the kernel who is at the other end of conn.
func peerOf(conn net.Conn) (peer, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nobody, fmt.Errorf("%T has no peer credentials", conn)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nobody, err
	}
	var cred *unix.Ucred
	var groups []uint32
	var credErr, groupsErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		groups, groupsErr = peerGroups(fd)
	})
	if err := errors.Join(err, credErr, groupsErr); err != nil {
		return nobody, fmt.Errorf("peer credentials: %w", err)
	}
	return peer{uid: cred.Uid, groups: append(groups, cred.Gid)}, nil
}

// peerGroups reads SO_PEERGROUPS, for which x/sys has no function. A buffer
// that is too small is answered with ERANGE and the size that is needed.
func peerGroups(fd uintptr) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(4 * len(groups))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno != unix.ERANGE || int(size) <= 4*len(groups):
			return nil, errno
		}
		groups = make([]uint32, size/4)
	}
}

// guard decides who may what.
type guard struct {
	own    uint32 // the daemon's own user
	lookup func(group string) (gid uint32, ok bool)
}

// newGuard is the guard of this process on this host. Groups are looked up when
// they are needed, so that one made later counts.
func newGuard() guard { return guard{own: uint32(os.Geteuid()), lookup: lookupGroup} }

// permit reports whether p may use the verbs of class c.
func (g guard) permit(p peer, c class) bool {
	if c <= unclassified || c >= numClasses || p.uid == overflowID {
		return false
	}
	if p.uid == 0 || p.uid == g.own {
		return true
	}
	return slices.ContainsFunc(groupsOf[c], func(name string) bool {
		gid, ok := g.lookup(name)
		return ok && gid != overflowID && slices.Contains(p.groups, gid)
	})
}

// refusal says who may use the verb instead.
func (g guard) refusal(p peer, verb string, c class) *Error {
	who := []string{"root"}
	if g.own != 0 {
		who = append(who, "user "+userName(g.own))
	}
	if c < numClasses {
		for _, name := range groupsOf[c] {
			who = append(who, "members of group "+name)
		}
	}
	refusal := &Error{
		Code:    NotAllowed,
		Message: fmt.Sprintf("%s is not allowed for user %s; allowed are: %s", verb, userName(p.uid), strings.Join(who, ", ")),
		Hint:    "run it as root (sudo)",
	}
	if p.uid != overflowID && c > unclassified && c < numClasses {
		refusal.Hint += ", or be added to group " + groupsOf[c][0] + " and log in again"
	}
	return refusal
}

// userName is the name of a user of this host, or the number where it has none.
func userName(uid uint32) string {
	n := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(n); err == nil {
		return u.Username
	}
	return n
}
