package api

import (
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
	past, next, err := s.manager.Events(r.Context(), follow)
	if err != nil {
		s.answer(w, r, nil, err)
		return
	}
	s.stream(w, r, past, next)
}

// stream writes until the caller leaves, the daemon stops, or the channel is
// closed because the caller does not keep up. A nil channel: no more than past.
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
	for next != nil {
		select {
		case <-r.Context().Done():
			sendWaiting(next, send)
			send(eventLine{Error: errStopping})
			return
		case e, ok := <-next:
			if !ok && r.Context().Err() != nil {
				send(eventLine{Error: errStopping})
				return
			}
			if !ok {
				send(eventLine{Error: errBehind})
				return
			}
			if !send(eventLine{Event: &e}) {
				return
			}
		}
	}
}

// sendWaiting sends what happened before the end and was not sent yet.
func sendWaiting(next <-chan Event, send func(eventLine) bool) {
	for {
		select {
		case e, ok := <-next:
			if !ok || !send(eventLine{Event: &e}) {
				return
			}
		default:
			return
		}
	}
}
