// Package auth says who is who: the deployment's certificate authority,
// certificates with deployment, node and role in them, invites, enrolment and
// revocation.
//
// A deployment is one authority and everybody it signed for. A node's name is
// for people and may be given again; its id is for machines and names one life
// of that name, from enrolment to revocation. What a node may do stands in the
// gateway's registry under that id, never in a certificate or a request.
//
// Nothing here opens a connection: the enrolment functions work on any
// io.ReadWriter and an exporter of its TLS secrets.
package auth

import (
	"errors"
	"fmt"
)

// Errors that callers branch on. Each is wrapped in a sentence that names what
// was found and what was wanted.
var (
	ErrRevoked         = errors.New("auth: revoked")
	ErrExpired         = errors.New("auth: certificate expired")
	ErrOtherDeployment = errors.New("auth: certificate of another deployment")
	ErrWrongRole       = errors.New("auth: certificate of the wrong role")
	ErrWrongNode       = errors.New("auth: certificate of another node")
	ErrBadCertificate  = errors.New("auth: not a certificate of tunneld")

	ErrName        = errors.New("auth: not a name")
	ErrNameTaken   = errors.New("auth: node is enrolled already")
	ErrNoNode      = errors.New("auth: no such node")
	ErrInitialised = errors.New("auth: gateway exists already")

	// ErrInviteRefused is all that somebody learns who cannot show the
	// invite's secret; the others are told to its holder.
	ErrInviteRefused   = errors.New("auth: invite not known or not shown to be held")
	ErrInviteExpired   = errors.New("auth: invite expired")
	ErrInviteUsed      = errors.New("auth: invite used already")
	ErrInviteWithdrawn = errors.New("auth: invite withdrawn")
	ErrEnrol           = errors.New("auth: enrolment failed")
)

// Role is what a certificate lets its holder be.
type Role uint8

// The roles. A gateway may be dialled and may dial; a node may only dial.
const (
	Node Role = 1 + iota
	Gateway
)

// String writes the role as it stands in a certificate.
func (r Role) String() string {
	switch r {
	case Node:
		return "node"
	case Gateway:
		return "gateway"
	}
	return fmt.Sprintf("role(%d)", uint8(r))
}

func parseRole(s string) (Role, bool) {
	switch s {
	case "node":
		return Node, true
	case "gateway":
		return Gateway, true
	}
	return 0, false
}

// maxName is the longest name, in octets.
const maxName = 63

// ValidName checks the name of a node, network or tunnel: 1 to 63 letters,
// digits, "-", "_" and ".", beginning with a letter or digit. Such a name is
// safe in a path, in a URI and as an argument. The error wraps ErrName.
func ValidName(s string) error {
	if s == "" {
		return fmt.Errorf("%w: it is empty", ErrName)
	}
	if len(s) > maxName {
		return fmt.Errorf("%w: %.64q... has %d octets, at most %d are possible", ErrName, s, len(s), maxName)
	}
	for i := range len(s) {
		c := s[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || c != '-' && c != '_' && c != '.') {
			return fmt.Errorf("%w: %q (use letters and digits, and after the first of them also - _ and .)", ErrName, s)
		}
	}
	return nil
}
