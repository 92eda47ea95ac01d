package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"tunneld/internal/session"
)

// A request that changes something and must not be done twice carries an id
// that its caller made and the epoch, the present life of the server, that it
// was made for. Repeated after its answer was lost it has no second effect and
// gets the same answer; after a restart of the daemon it is refused, because
// nobody knows any more whether it was done.
const (
	headerRequest = "Tunneld-Request"
	headerEpoch   = "Tunneld-Epoch"
)

type requestKey struct{}

// withRequest gives a request the id its caller made, or a fresh one.
func withRequest(r *http.Request) (*http.Request, session.ID) {
	id, err := session.ParseID(r.Header.Get(headerRequest))
	if err != nil { // once says so, where it matters
		id = session.NewID()
	}
	return r.WithContext(WithRequest(r.Context(), id)), id
}

// WithRequest is a context of the request with that id.
func WithRequest(ctx context.Context, id session.ID) context.Context {
	return context.WithValue(ctx, requestKey{}, id)
}

// RequestOf is the id of the request that a Manager's method answers; zero for
// a context of another origin.
func RequestOf(ctx context.Context) session.ID {
	id, _ := ctx.Value(requestKey{}).(session.ID)
	return id
}

// maxAnswers is how many answers are kept for those who ask again; older ones go
// first.
const maxAnswers = 256

// errEpoch is the answer to a request of an earlier life of the daemon.
var errEpoch = &Error{
	Code:    Failed,
	Message: "the daemon was restarted while it was asked: whether it had done this is not known",
	Hint:    "look at `tunnelctl status`, `sessions` or `node list` before you ask again",
}

// answers are those of the requests of this epoch.
type answers struct {
	epoch session.ID

	mu    sync.Mutex // guards everything below
	byID  map[session.ID]*answered
	order []session.ID
}

// answered is one request with what it got.
type answered struct {
	asked  [sha256.Size]byte // path and body, for they must be the same
	done   chan struct{}     // closed when the rest is there
	status int
	body   []byte
}

func newAnswers() *answers {
	return &answers{epoch: session.NewID(), byID: map[session.ID]*answered{}}
}

// begin enters a request; first says that it is to be done now.
func (a *answers) begin(id session.ID, asked [sha256.Size]byte) (entry *answered, first bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.byID[id]; e != nil {
		if e.asked != asked {
			return nil, false, usagef("request %v was another one before", id)
		}
		return e, false, nil
	}
	if len(a.order) >= maxAnswers {
		oldest := a.byID[a.order[0]]
		select {
		case <-oldest.done:
		default:
			return nil, false, &Error{Code: Failed, Message: fmt.Sprintf("%d requests are under way", maxAnswers), Hint: "ask again when some of them are done"}
		}
		delete(a.byID, a.order[0])
		a.order = a.order[1:]
	}
	e := &answered{asked: asked, done: make(chan struct{})}
	a.byID[id] = e
	a.order = append(a.order, id)
	return e, true, nil
}

// once makes a handler do each request at most one time. What it does goes on
// when its caller leaves: he may come back for the answer.
func once(handle func(*server, http.ResponseWriter, *http.Request)) func(*server, http.ResponseWriter, *http.Request) {
	return func(s *server, w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(headerRequest) == "" { // a caller that does not mind
			handle(s, w, r)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			s.fail(w, usagef("the request cannot be read: %v", err))
			return
		}
		s.released(w)
		entry, first, err := s.enterOnce(r, body)
		if err != nil {
			s.fail(w, err)
			return
		}
		if first {
			s.doOnce(handle, entry, r, body)
		}
		select {
		case <-entry.done:
			s.sendAgain(w, entry)
		case <-r.Context().Done():
		}
	}
}

// enterOnce checks the id and the epoch of a request and enters it.
func (s *server) enterOnce(r *http.Request, body []byte) (*answered, bool, error) {
	id, err := session.ParseID(r.Header.Get(headerRequest))
	if err != nil {
		return nil, false, usagef("%s: %v", headerRequest, err)
	}
	if r.Header.Get(headerEpoch) != s.answers.epoch.String() {
		return nil, false, errEpoch
	}
	return s.answers.begin(id, sha256.Sum256(append([]byte(r.URL.RequestURI()+"\n"), body...)))
}

// doOnce runs the handler and keeps its answer.
func (s *server) doOnce(handle func(*server, http.ResponseWriter, *http.Request), entry *answered, r *http.Request, body []byte) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	stop := context.AfterFunc(s.life, cancel)
	again := r.Clone(ctx)
	again.Body = io.NopCloser(bytes.NewReader(body))
	s.running.Add(1) // this request is counted, so the count is not 0
	go func() {
		defer s.running.Done()
		defer cancel()
		defer stop()
		rec := &recorder{header: http.Header{}, status: http.StatusOK}
		handle(s, rec, again)
		entry.status, entry.body = rec.status, rec.body.Bytes()
		close(entry.done)
	}()
}

// sendAgain writes a kept answer.
func (s *server) sendAgain(w http.ResponseWriter, e *answered) {
	w.Header().Set("Content-Type", "application/json")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.WriteHeader(e.status)
	_, _ = w.Write(e.body) // a caller that left may ask again
}

// recorder keeps an answer instead of sending it.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }
