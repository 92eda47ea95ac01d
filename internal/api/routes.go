package api

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

// A route is one verb: where it is, who may use it and what it does.
type route struct {
	verb   string // as tunnelctl names it
	method string
	path   string
	class  class
	handle func(s *server, w http.ResponseWriter, r *http.Request)
}

// routes is the whole interface. A verb that is not here does not exist, one
// without a class is refused to everybody.
func routes() []route {
	return []route{
		{"version", http.MethodGet, "/v1/version", look, read(version)},
		{"status", http.MethodGet, "/v1/status", look, read(status)},
		{"sessions", http.MethodGet, "/v1/sessions", look, read(sessions)},
		{"session show", http.MethodGet, "/v1/session/show", look, read(sessionShow, "id")},
		{"session kill", http.MethodPost, "/v1/session/kill", administer, once(write(sessionKill))},
		{"session release", http.MethodPost, "/v1/session/release", administer, once(write(sessionRelease))},
		{"invite", http.MethodPost, "/v1/invite", administer, once(write(invite))},
		{"node list", http.MethodGet, "/v1/node/list", look, read(nodeList)},
		{"node revoke", http.MethodPost, "/v1/node/revoke", administer, once(write(nodeRevoke))},
		{"drain", http.MethodPost, "/v1/drain", administer, once(write(drain))},
		{"join", http.MethodPost, "/v1/join", administer, once(write(join))},
		{"up", http.MethodPost, "/v1/up", use, write(up)},
		{"down", http.MethodPost, "/v1/down", use, once(write(down))},
		{"leave", http.MethodPost, "/v1/leave", administer, once(write(leave))},
		{"suspend", http.MethodPost, "/v1/suspend", use, once(write(suspend))},
		{"extend", http.MethodPost, "/v1/extend", use, once(write(extend))},
		{"resume", http.MethodPost, "/v1/resume", use, once(write(resume))},
		{"events", http.MethodGet, "/v1/events", look, (*server).events},
	}
}

// done is the answer of verbs that have nothing to tell.
type done struct{}

func version(_ context.Context, m Manager, _ url.Values) (Version, error) { return m.Version(), nil }

func status(ctx context.Context, m Manager, _ url.Values) (Status, error) { return m.Status(ctx) }

func sessions(ctx context.Context, m Manager, _ url.Values) ([]Session, error) {
	return m.Sessions(ctx)
}

func sessionShow(ctx context.Context, m Manager, query url.Values) (SessionDetail, error) {
	id := query.Get("id")
	if id == "" {
		return SessionDetail{}, missing("id")
	}
	return m.Session(ctx, id)
}

func sessionKill(ctx context.Context, m Manager, req KillRequest) (done, error) {
	if req.Session == "" {
		return done{}, missing("session")
	}
	return done{}, m.KillSession(ctx, req.Session, req.Reason)
}

func sessionRelease(ctx context.Context, m Manager, req ReleaseRequest) (done, error) {
	if req.Session == "" {
		return done{}, missing("session")
	}
	return done{}, m.ReleaseSession(ctx, req.Session)
}

func invite(ctx context.Context, m Manager, req InviteRequest) (InviteReply, error) {
	if req.Node == "" {
		return InviteReply{}, missing("node")
	}
	if req.TTLMillis <= 0 {
		return InviteReply{}, usagef("ttl_ms is %d, want more than 0", req.TTLMillis)
	}
	for _, p := range req.Advertise {
		if err := CheckPrefix(p); err != nil {
			return InviteReply{}, usagef("advertise: %v", err)
		}
	}
	return m.Invite(ctx, req)
}

func nodeList(ctx context.Context, m Manager, _ url.Values) ([]Node, error) { return m.Nodes(ctx) }

func nodeRevoke(ctx context.Context, m Manager, req RevokeRequest) (done, error) {
	if req.Node == "" {
		return done{}, missing("node")
	}
	return done{}, m.RevokeNode(ctx, req.Node)
}

// maxDrain bounds how long a drain may take.
const maxDrain = 24 * time.Hour

func drain(ctx context.Context, m Manager, req DrainRequest) (done, error) {
	if req.OverMillis < 0 || req.OverMillis > maxDrain.Milliseconds() {
		return done{}, usagef("over_ms is %d, want 0 to %d", req.OverMillis, maxDrain.Milliseconds())
	}
	return done{}, m.Drain(ctx, req)
}

func join(ctx context.Context, m Manager, req JoinRequest) (JoinReply, error) {
	if req.Code == "" {
		return JoinReply{}, missing("code")
	}
	return m.Join(ctx, req)
}

func up(ctx context.Context, m Manager, req UpRequest) (Tunnel, error) {
	if req.Tunnel == "" {
		return Tunnel{}, missing("tunnel")
	}
	if req.WaitMillis < 0 || req.WaitMillis > MaxWait.Milliseconds() {
		return Tunnel{}, usagef("wait_ms is %d, want 0 to %d", req.WaitMillis, MaxWait.Milliseconds())
	}
	return m.Up(ctx, req.Tunnel, time.Duration(req.WaitMillis)*time.Millisecond)
}

func down(ctx context.Context, m Manager, req TunnelRequest) (done, error) {
	if req.Tunnel == "" {
		return done{}, missing("tunnel")
	}
	return done{}, m.Down(ctx, req.Tunnel)
}

func leave(ctx context.Context, m Manager, req TunnelRequest) (done, error) {
	if req.Tunnel == "" {
		return done{}, missing("tunnel")
	}
	return done{}, m.Leave(ctx, req.Tunnel)
}

func suspend(ctx context.Context, m Manager, req TunnelRequest) (done, error) {
	if req.Tunnel == "" {
		return done{}, missing("tunnel")
	}
	return done{}, m.Suspend(ctx, req.Tunnel)
}

func resume(ctx context.Context, m Manager, req TunnelRequest) (done, error) {
	if req.Tunnel == "" {
		return done{}, missing("tunnel")
	}
	return done{}, m.Resume(ctx, req.Tunnel)
}

func extend(ctx context.Context, m Manager, req ExtendRequest) (Tunnel, error) {
	if req.Tunnel == "" {
		return Tunnel{}, missing("tunnel")
	}
	if req.ByMillis < 1000 {
		return Tunnel{}, usagef("by_ms is %d, want at least 1000", req.ByMillis)
	}
	return m.Extend(ctx, req.Tunnel, time.Duration(req.ByMillis)*time.Millisecond)
}

// CheckPrefix says what is wrong with a prefix that somebody wrote: that it is
// none, or that it has bits beyond its length, which is mostly a slip.
func CheckPrefix(p netip.Prefix) error {
	if !p.IsValid() {
		return fmt.Errorf("empty prefix; write it as 10.20.0.0/16")
	}
	if m := p.Masked(); m != p {
		return fmt.Errorf("%v has bits beyond its length; the prefix is %v", p, m)
	}
	return nil
}

func usagef(format string, args ...any) *Error {
	return &Error{Code: Usage, Message: fmt.Sprintf(format, args...)}
}

func missing(key string) *Error { return usagef("the request has no %q", key) }
