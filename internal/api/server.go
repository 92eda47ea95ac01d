package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"tunneld/internal/event"
)

// Bounds of the server. Callers are local and mostly trusted; the bounds are
// there so that one of them cannot keep the others out or the daemon busy.
const (
	maxBody    = 64 << 10 // octets of a request's body
	maxHeader  = 8 << 10  // octets of a request's header
	maxConns   = 64       // connections at a time; more wait in the kernel's backlog
	maxStreams = 32       // readers of events at a time, so that half is kept for the rest

	headerTimeout = 5 * time.Second  // for a request's header
	bodyTimeout   = 10 * time.Second // for the whole request
	idleTimeout   = 30 * time.Second // between two requests
	writeTimeout  = 10 * time.Second // for an answer, or for one event
	stopTimeout   = time.Second      // for answers under way when the daemon stops
)

// MaxWait is how long a caller may let `up` wait.
const MaxWait = time.Hour

// server answers requests on one socket.
type server struct {
	manager  Manager
	log      *slog.Logger
	identify func(net.Conn) (peer, error) // peerOf; tests have other connections
	guard    guard
	routes   map[string]route // by path
	answers  *answers         // of requests that must not be done twice
	locks    locks            // what is being changed, and by whom
	life     context.Context  // ends with serve
	streams  chan struct{}    // one token for each reader of events
	refused  rate.Sometimes   // bounds the log lines that a refused caller can cause

	mu      sync.Mutex // guards everything below
	stopped bool
	running sync.WaitGroup // requests; Add only while not stopped
}

func newServer(m Manager, log *slog.Logger) *server {
	s := &server{
		manager:  m,
		log:      log,
		identify: peerOf,
		guard:    newGuard(),
		routes:   make(map[string]route),
		answers:  newAnswers(),
		life:     context.Background(),
		streams:  make(chan struct{}, maxStreams),
		refused:  rate.Sometimes{First: 8, Interval: time.Second},
	}
	for _, rt := range routes() {
		s.routes[rt.path] = rt
	}
	return s
}

// Serve answers requests that come in on l, a listener of [Listen], by asking m,
// until ctx ends; then requests under way get their answer, at most for a second,
// and Serve returns nil when all of them are gone. It owns l and closes it. An
// error means that l broke.
func Serve(ctx context.Context, l net.Listener, m Manager, log *slog.Logger) error {
	return newServer(m, log).serve(ctx, l)
}

func (s *server) serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.life = ctx
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withPeer,
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(s.newListener(l)) }()
	var err error
	select {
	case err = <-failed:
		cancel()
		srv.Close()
	case <-ctx.Done():
		grace, release := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer release()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
		<-failed
	}
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.running.Wait()
	if err != nil {
		return fmt.Errorf("api: %w", err)
	}
	return nil
}

// enter counts a request in, unless the server has stopped.
func (s *server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.running.Add(1)
	}
	return !s.stopped
}

// ServeHTTP finds the verb, asks the guard and lets the verb answer.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.enter() {
		s.fail(w, errStopping)
		return
	}
	defer s.running.Done()
	w.Header().Set(headerEpoch, s.answers.epoch.String())
	p := peerFrom(r.Context())
	rt, ok := s.routes[r.URL.Path]
	switch {
	case !ok:
		s.fail(w, &Error{
			Code:    NoSuch,
			Message: fmt.Sprintf("the daemon knows no %q: it is older or newer than this program", r.URL.Path),
			Hint:    "compare the two with `tunnelctl version`; a daemon goes on with its old program until it is restarted",
		})
	case !s.guard.permit(p, rt.class):
		s.refused.Do(func() {
			s.log.Warn("local request refused", event.KeyEvent, rt.verb, event.KeyUser, userName(p.uid))
		})
		s.fail(w, s.guard.refusal(p, rt.verb, rt.class))
	case rt.method != r.Method:
		s.fail(w, usagef("%s wants %s, not %s", rt.path, rt.method, r.Method))
	default:
		r, id := withRequest(r)
		if rt.class == administer {
			s.log.Info("local request", event.KeyEvent, rt.verb, event.KeyUser, userName(p.uid), event.Request(id))
		}
		rt.handle(s, w, r)
	}
}

// read makes a handler of a verb whose arguments are in the query, of which it
// knows those in keys.
func read[A any](ask func(context.Context, Manager, url.Values) (A, error), keys ...string) func(*server, http.ResponseWriter, *http.Request) {
	return func(s *server, w http.ResponseWriter, r *http.Request) {
		query, err := s.queryOnly(w, r, keys...)
		if err != nil {
			s.fail(w, err)
			return
		}
		answer, err := ask(r.Context(), s.manager, query)
		s.answer(w, r, answer, err)
	}
}

// write makes a handler of a verb whose arguments are in the body.
func write[Q, A any](ask func(context.Context, Manager, Q) (A, error)) func(*server, http.ResponseWriter, *http.Request) {
	return func(s *server, w http.ResponseWriter, r *http.Request) {
		var req Q
		if _, err := parseQuery(r); err != nil {
			s.fail(w, err)
			return
		}
		if err := decode(w, r, &req); err != nil {
			s.fail(w, err)
			return
		}
		s.released(w)
		if c, ok := any(req).(changer); ok {
			free, err := s.locks.take(c.changes(), s.holderOf(r))
			if err != nil {
				s.fail(w, err)
				return
			}
			defer free()
		}
		ctx := r.Context()
		if c, ok := any(req).(conditional); ok {
			ctx = WithIfSerial(ctx, c.ifSerial())
		}
		answer, err := ask(ctx, s.manager, req)
		s.answer(w, r, answer, err)
	}
}

// holderOf says who asks for a change.
func (s *server) holderOf(r *http.Request) holder {
	return holder{userName(peerFrom(r.Context()).uid), s.routes[r.URL.Path].verb, RequestOf(r.Context())}
}

// queryOnly reads the arguments of a request that may have no body. One that
// nobody reads would hold the connection for as long as its sender likes.
func (s *server) queryOnly(w http.ResponseWriter, r *http.Request, keys ...string) (url.Values, error) {
	if r.ContentLength != 0 {
		return nil, usagef("%s takes no body", r.URL.Path)
	}
	query, err := parseQuery(r, keys...)
	if err == nil {
		s.released(w)
	}
	return query, err
}

// released takes back the time limit of a request that has been read, which
// would otherwise end a verb that takes long: for package net/http a connection
// whose reads time out is a caller who left.
func (s *server) released(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // only recorders of tests cannot
}

func parseQuery(r *http.Request, keys ...string) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, usagef("query: %v", err)
	}
	for key := range query {
		if !slices.Contains(keys, key) {
			return nil, usagef("unknown key %q in the query", key)
		}
	}
	return query, nil
}

// decode reads the one JSON object of a request, strictly: a key that is not
// known may change the meaning of the others.
func decode(w http.ResponseWriter, r *http.Request, into any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			return usagef("more than one JSON value in the request")
		}
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return usagef("the request has more than %d octets", tooLarge.Limit)
	}
	return usagef("the request is not understood: %v", err)
}

// answer writes what a verb returned.
func (s *server) answer(w http.ResponseWriter, r *http.Request, answer any, err error) {
	if err != nil {
		if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
			err = errStopping // or the caller left and reads nothing
		}
		s.fail(w, err)
		return
	}
	s.send(w, http.StatusOK, withLists(answer))
}

// fail writes an error.
func (s *server) fail(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Code: Failed, Message: err.Error()}
	}
	s.send(w, httpStatus(e.Code), e)
}

func (s *server) send(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // a value that cannot be written, such as a time in the year 10000
		status = http.StatusInternalServerError
		b, _ = json.Marshal(&Error{Code: Failed, Message: fmt.Sprintf("the answer cannot be written: %v", err)})
	}
	w.Header().Set("Content-Type", "application/json")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // a caller that left needs no answer
}

// errStopping is the answer to requests that a stop of the daemon cuts short.
var errStopping = &Error{Code: Failed, Message: "the daemon is stopping"}

func httpStatus(c Code) int {
	switch c {
	case Usage:
		return http.StatusBadRequest
	case NotAllowed:
		return http.StatusForbidden
	case NoSuch:
		return http.StatusNotFound
	case Stale:
		return http.StatusPreconditionFailed
	}
	return http.StatusInternalServerError
}
