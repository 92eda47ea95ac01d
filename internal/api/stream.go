package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// eventLine is one line of the stream of events: an event, or, as the last
// line, why the stream ended before its reader wanted.
type eventLine struct {
	*Event
	Error *Error `json:"error,omitempty"`
}

// errBehind ends the stream of a reader that is slower than what happens.
var errBehind = &Error{
	Code:    Failed,
	Message: "this reader of events fell behind and was cut off",
	Hint:    "ask again: the daemon remembers the last events",
}

// events answers with the remembered events, one JSON object a line, and with
// follow=true goes on with each that happens.
func (s *server) events(w http.ResponseWriter, r *http.Request) {
	query, err := s.queryOnly(w, r, "follow")
	if err != nil {
		s.fail(w, err)
		return
	}
	follow, err := strconv.ParseBool(query.Get("follow"))
	if err != nil && query.Has("follow") {
		s.fail(w, usagef("follow is %q, want true or false", query.Get("follow")))
		return
	}
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		s.fail(w, &Error{Code: Failed, Message: "there are " + strconv.Itoa(maxStreams) + " readers of events already; stop one of them"})
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	past, next, err := s.manager.Events(ctx, follow)
	if err != nil {
		cancel()
		s.answer(w, r, nil, err)
		return
	}
	s.stream(w, r, past, next)
	cancel()
	if next != nil {
		for range next { // nobody wants it any more
		}
	}
}

// stream writes until the channel is closed, because the daemon stops or the
// caller does not keep up, or until nothing can be written. A nil channel: no
// more than past.
func (s *server) stream(w http.ResponseWriter, r *http.Request, past []Event, next <-chan Event) {
	control := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	limit := func() { _ = control.SetWriteDeadline(time.Now().Add(writeTimeout)) }
	send := func(line eventLine) bool {
		limit()
		return enc.Encode(line) == nil && control.Flush() == nil
	}
	w.Header().Set("Content-Type", "application/jsonl")
	w.WriteHeader(http.StatusOK)
	limit()
	_ = control.Flush() // so that the caller knows that it is heard
	for i := range past {
		if !send(eventLine{Event: &past[i]}) {
			return
		}
	}
	if next == nil {
		return
	}
	for e := range next {
		if !send(eventLine{Event: &e}) {
			return
		}
	}
	if r.Context().Err() != nil {
		send(eventLine{Error: errStopping})
		return
	}
	send(eventLine{Error: errBehind})
}
