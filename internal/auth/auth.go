// Package auth says who is who: the deployment's certificate authority,
// certificates with deployment, node and role in them, invites, enrolment and
// revocation.
package auth
