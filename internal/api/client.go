package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"tunneld/internal/session"
)

// What keeps a client from being heard. Test for them with errors.Is; the error
// itself is a *SocketError.
var (
	ErrNoDaemon     = errors.New("no daemon behind the socket")
	ErrNotPermitted = errors.New("not permitted on the socket")
)

// How long a client waits for an answer. A join asks a gateway far away; an up
// has its own time on top.
const (
	answerTimeout = 30 * time.Second
	joinTimeout   = 90 * time.Second
)

// SocketError says that the daemon's socket could not be used.
type SocketError struct {
	Path string
	Kind error // ErrNoDaemon or ErrNotPermitted
	Err  error // as the kernel put it
}

func (e *SocketError) Error() string {
	if e.Kind == ErrNotPermitted {
		return fmt.Sprintf("not permitted on the daemon's socket %s", e.Path)
	}
	return fmt.Sprintf("no daemon answers at %s: %v", e.Path, cause(e.Err))
}

// Unwrap makes both the kind and the cause testable.
func (e *SocketError) Unwrap() []error { return []error{e.Kind, e.Err} }

// Client asks the daemon behind one socket. Its methods may be called from any
// goroutine, mirror those of [Manager] and return *SocketError if nobody hears
// them, else *Error. It holds no connection between two calls.
type Client struct {
	path string
	http *http.Client
}

// Dial returns a client for the daemon whose socket is at path. It does not
// connect; the first call does.
func Dial(path string) *Client {
	c := &Client{path: path}
	c.http = &http.Client{
		Transport:     transport(c.dial),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// transport carries one request a connection.
func transport(dial func(ctx context.Context, network, addr string) (net.Conn, error)) http.RoundTripper {
	return &http.Transport{DialContext: dial, DisableKeepAlives: true}
}

func (c *Client) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if err := checkSocketPath(c.path); err != nil {
		return nil, &Error{Code: Usage, Message: err.Error()}
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.path)
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, &SocketError{Path: c.path, Kind: ErrNotPermitted, Err: err}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED),
		errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENOTSOCK), errors.Is(err, syscall.EPROTOTYPE):
		return nil, &SocketError{Path: c.path, Kind: ErrNoDaemon, Err: err}
	}
	return nil, err
}

// Version asks what the daemon is.
func (c *Client) Version(ctx context.Context) (Version, error) {
	return get[Version](ctx, c, "/v1/version", nil)
}

// Status asks for the daemon's tunnels, networks and problems.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "/v1/status", nil)
}

// Sessions asks for the sessions of a gateway.
func (c *Client) Sessions(ctx context.Context) ([]Session, error) {
	return get[[]Session](ctx, c, "/v1/sessions", nil)
}

// Session asks for one session and its history.
func (c *Client) Session(ctx context.Context, id string) (SessionDetail, error) {
	return get[SessionDetail](ctx, c, "/v1/session/show", url.Values{"id": {id}})
}

// KillSession closes a session of a gateway.
func (c *Client) KillSession(ctx context.Context, id, reason string) error {
	_, err := change[done](ctx, c, "/v1/session/kill", KillRequest{id, reason, conditionOf(ctx)}, answerTimeout)
	return err
}

// ReleaseSession lets a session of a gateway out of quarantine.
func (c *Client) ReleaseSession(ctx context.Context, id string) error {
	_, err := change[done](ctx, c, "/v1/session/release", ReleaseRequest{Session: id}, answerTimeout)
	return err
}

// Invite asks a gateway for an invite code.
func (c *Client) Invite(ctx context.Context, req InviteRequest) (InviteReply, error) {
	return change[InviteReply](ctx, c, "/v1/invite", withLists(req), answerTimeout)
}

// Nodes asks a gateway for the nodes it has invited.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	return get[[]Node](ctx, c, "/v1/node/list", nil)
}

// RevokeNode ends a node's rights and its sessions.
func (c *Client) RevokeNode(ctx context.Context, name string) error {
	_, err := change[done](ctx, c, "/v1/node/revoke", RevokeRequest{Node: name}, answerTimeout)
	return err
}

// Join enrols this node with an invite code.
func (c *Client) Join(ctx context.Context, req JoinRequest) (JoinReply, error) {
	return change[JoinReply](ctx, c, "/v1/join", req, joinTimeout)
}

// Up starts a tunnel and waits for its session, or does not with a wait of 0.
func (c *Client) Up(ctx context.Context, tunnel string, wait time.Duration) (Tunnel, error) {
	return post[Tunnel](ctx, c, "/v1/up", UpRequest{Tunnel: tunnel, WaitMillis: wait.Milliseconds()}, answerTimeout+wait)
}

// Down closes the session of a tunnel until the next Up.
func (c *Client) Down(ctx context.Context, tunnel string) error {
	_, err := change[done](ctx, c, "/v1/down", TunnelRequest{tunnel, conditionOf(ctx)}, answerTimeout)
	return err
}

// Suspend holds the session of a tunnel until Resume: everything is kept, nothing
// passes.
func (c *Client) Suspend(ctx context.Context, tunnel string) error {
	_, err := change[done](ctx, c, "/v1/suspend", TunnelRequest{tunnel, conditionOf(ctx)}, answerTimeout)
	return err
}

// Resume lets packets pass again that Suspend stopped.
func (c *Client) Resume(ctx context.Context, tunnel string) error {
	_, err := change[done](ctx, c, "/v1/resume", TunnelRequest{tunnel, conditionOf(ctx)}, answerTimeout)
	return err
}

// Drain announces that the gateway goes, or stays.
func (c *Client) Drain(ctx context.Context, req DrainRequest) error {
	_, err := change[done](ctx, c, "/v1/drain", req, answerTimeout)
	return err
}

// Extend asks for a longer life of a tunnel's session.
func (c *Client) Extend(ctx context.Context, tunnel string, by time.Duration) (Tunnel, error) {
	return change[Tunnel](ctx, c, "/v1/extend", ExtendRequest{tunnel, by.Milliseconds(), conditionOf(ctx)}, answerTimeout)
}

// Leave closes the session of a tunnel and forgets the tunnel.
func (c *Client) Leave(ctx context.Context, tunnel string) error {
	_, err := change[done](ctx, c, "/v1/leave", TunnelRequest{tunnel, conditionOf(ctx)}, answerTimeout)
	return err
}

// Events calls each for every remembered event, oldest first, and with follow
// for each that happens, until ctx ends, each returns an error, which Events
// returns, or the daemon ends the stream, which is an *Error.
func (c *Client) Events(ctx context.Context, follow bool, each func(Event) error) error {
	query := url.Values{}
	if follow {
		query.Set("follow", "true")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	late := time.AfterFunc(answerTimeout, cancel) // for the beginning of the answer only
	resp, err := c.ask(ctx, http.MethodGet, "/v1/events", query, nil, nil)
	if !late.Stop() && err != nil {
		return noAnswer(answerTimeout)
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var line eventLine
		switch err := dec.Decode(&line); {
		case errors.Is(err, io.EOF) && !follow:
			return nil
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return gone()
		case line.Error != nil:
			return line.Error
		case line.Event == nil:
			continue // something a newer daemon says
		}
		if err := each(*line.Event); err != nil {
			return err
		}
	}
}

// repeats is how often a request whose answer was lost is made again.
const repeats = 3

// change makes a request that must not be done twice: it has an id, and if its
// answer is lost it is made again under the same one.
func change[A any](ctx context.Context, c *Client, path string, req any, timeout time.Duration) (answer A, err error) {
	body, err := json.Marshal(req)
	if err != nil {
		return answer, usagef("the request cannot be written: %v", err)
	}
	epoch, err := c.epoch(ctx)
	if err != nil {
		return answer, err
	}
	once := http.Header{headerRequest: {session.NewID().String()}, headerEpoch: {epoch}}
	for try := 0; ; try++ {
		answer, err = exchange[A](ctx, c, http.MethodPost, path, nil, body, once, timeout)
		if !errors.Is(err, errLost) || try == repeats {
			return answer, err
		}
	}
}

// epoch asks for the present life of the daemon.
func (c *Client) epoch(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
	defer cancel()
	resp, err := c.ask(ctx, http.MethodGet, "/v1/version", nil, nil, nil)
	if err != nil {
		if context.Cause(ctx) == errNoAnswer {
			return "", noAnswer(answerTimeout)
		}
		return "", err
	}
	defer resp.Body.Close()
	return resp.Header.Get(headerEpoch), nil
}

func get[A any](ctx context.Context, c *Client, path string, query url.Values) (A, error) {
	return exchange[A](ctx, c, http.MethodGet, path, query, nil, nil, answerTimeout)
}

func post[A any](ctx context.Context, c *Client, path string, req any, timeout time.Duration) (A, error) {
	var none A
	body, err := json.Marshal(req)
	if err != nil {
		return none, usagef("the request cannot be written: %v", err)
	}
	return exchange[A](ctx, c, http.MethodPost, path, nil, body, nil, timeout)
}

// exchange asks and reads the answer. Keys that it does not know are ignored:
// the daemon may be newer.
func exchange[A any](ctx context.Context, c *Client, method, path string, query url.Values, body []byte, header http.Header, timeout time.Duration) (answer A, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errNoAnswer)
	defer cancel()
	late := func(err error) error {
		if context.Cause(ctx) == errNoAnswer {
			return noAnswer(timeout)
		}
		return err
	}
	resp, err := c.ask(ctx, method, path, query, body, header)
	if err != nil {
		return answer, late(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return answer, late(gone())
	}
	return withLists(answer), nil
}

// ask sends a request; an answer of 400 and above becomes the *Error in it.
func (c *Client) ask(ctx context.Context, method, path string, query url.Values, body []byte, header http.Header) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "tunneld", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, usagef("the request cannot be made: %v", err)
	}
	maps.Copy(req.Header, header)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, askError(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var answer Error
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&answer); err != nil || answer.Message == "" {
		return nil, &Error{Code: Failed, Message: fmt.Sprintf("whatever listens at %s is no tunneld: it answers %q", c.path, resp.Status)}
	}
	return nil, &answer
}

// askError takes the wrapping of package net/http off, which names a URL that
// nobody asked for.
func askError(ctx context.Context, err error) error {
	if e, ok := errors.AsType[*SocketError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return gone()
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	return &Error{Code: Failed, Message: fmt.Sprintf("the daemon's socket: %v", err)}
}

var errNoAnswer = errors.New("no answer in time")

func noAnswer(timeout time.Duration) *Error {
	return &Error{Code: Failed, Message: fmt.Sprintf("the daemon gave no answer within %v", timeout)}
}

// errLost is wrapped by the error of a request whose answer did not come through.
var errLost = errors.New("answer lost")

func gone() error {
	return &lost{&Error{Code: Failed, Message: "the daemon went away before it had answered", Hint: "look at its log"}}
}

// lost is an *Error and errLost.
type lost struct{ answer *Error }

func (l *lost) Error() string { return l.answer.Error() }

func (l *lost) Unwrap() []error { return []error{l.answer, errLost} }
