package tunnel

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/store"
)

// bucketStories holds what happened to each session, live ones and those that
// are over: session -> storyV1.
const bucketStories = "stories"

// Bounds of a story: its beginning is kept, and its latest part.
const (
	storyHead = 4
	maxStory  = 64
)

type (
	storyV1 struct {
		Version       int
		Node, Network string
		Told          []toldV1
		Left          uint64 `json:",omitempty"` // events after the first storyHead that were dropped
	}
	toldV1 struct {
		At       time.Time
		Kind     event.Kind
		Cause    string          `json:",omitempty"`
		Request  session.ID      `json:",omitzero"`
		From     string          `json:",omitempty"`
		Counters *event.Counters `json:",omitempty"`
	}
)

// add appends what happened, in the order of time.
func (s *storyV1) add(e event.Event) {
	s.Version = stateVersion
	s.Node, s.Network = cmp.Or(s.Node, e.Node), cmp.Or(s.Network, e.Network)
	s.Told = append(s.Told, toldV1{e.Time, e.Kind, e.Cause, e.Request, e.From, e.Counters})
	if over := len(s.Told) - maxStory; over > 0 {
		s.Told = slices.Delete(s.Told, storyHead, storyHead+over)
		s.Left += uint64(over)
	}
}

// closed is the end of the story, nil if it goes on.
func (s *storyV1) closed() *toldV1 {
	for i := range s.Told {
		if t := &s.Told[len(s.Told)-1-i]; t.Kind == event.SessionClosed {
			return t
		}
	}
	return nil
}

// resumes counts those that are told; what was left out cannot be.
func (s *storyV1) resumes() (n uint64) {
	for _, t := range s.Told {
		if t.Kind == event.SessionResumed {
			n++
		}
	}
	return n
}

func (s *storyV1) last() time.Time { return s.Told[len(s.Told)-1].At }

// events are the story in the words of the bus.
func (s *storyV1) events(id session.ID) (all []event.Event) {
	for _, t := range s.Told {
		all = append(all, event.Event{
			Time: t.At, Kind: t.Kind, Session: id, Node: s.Node, Network: s.Network, Cause: t.Cause,
			Request: t.Request, From: t.From, Counters: t.Counters,
		})
	}
	return all
}

// stories writes down what happens to sessions. It happens under locks, so it is
// written a moment later; all that waits by then is one transaction. A kill may
// cost that moment, which heal mends as far as records tell.
type stories struct {
	j   *journal
	log *slog.Logger

	writing sync.Mutex // one write at a time, so that events keep their order

	mu      sync.Mutex // guards everything below
	pending map[session.ID][]event.Event
}

func newStories(j *journal, log *slog.Logger) *stories {
	return &stories{j: j, log: log, pending: map[session.ID][]event.Event{}}
}

// tell adds an event to the story of its session.
func (s *stories) tell(e event.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if waiting := s.pending[e.Session]; len(waiting) < maxStory { // a journal that cannot be written costs no more
		s.pending[e.Session] = append(waiting, e)
	}
}

// write makes durable what was told.
func (s *stories) write(context.Context) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	batch := s.pending
	s.pending = map[session.ID][]event.Event{}
	s.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	if err := s.j.addToStories(batch); err != nil {
		s.log.Error("stories not written", event.KeyErr, err)
		s.mu.Lock()
		defer s.mu.Unlock()
		for id, late := range s.pending {
			batch[id] = append(batch[id], late...)
		}
		s.pending = batch
	}
}

// of is the story of a session as far as it was told; nil: none was.
func (s *stories) of(id session.ID) (*storyV1, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	var v storyV1
	if _, err := s.j.get(bucketStories, id.String(), &v, &v.Version); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.pending[id] {
		v.add(e)
	}
	if len(v.Told) == 0 {
		return nil, nil
	}
	return &v, nil
}

// addToStories appends to stories, all in one transaction.
func (j *journal) addToStories(batch map[session.ID][]event.Event) error {
	return j.s.Update(func(tx store.Tx) error {
		for id, events := range batch {
			var v storyV1
			b, err := tx.Get(bucketStories, id.String())
			if err == nil {
				err = decode(b, &v, &v.Version)
			}
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			for _, e := range events {
				v.add(e)
			}
			if b, err = json.Marshal(v); err != nil {
				return err
			}
			if err := tx.Put(bucketStories, id.String(), b); err != nil {
				return err
			}
		}
		return nil
	})
}

// findStory is the story of a session by a beginning of its id, the newest.
func (j *journal) findStory(match func(session.ID) bool) (found session.ID, err error) {
	var newest time.Time
	err = j.eachStory(func(id session.ID, s *storyV1) {
		if match(id) && s.last().After(newest) {
			found, newest = id, s.last()
		}
	})
	return found, err
}

func (j *journal) eachStory(fn func(session.ID, *storyV1)) error {
	return j.each(bucketStories, func(key string, b []byte) error {
		id, err := session.ParseID(key)
		if err != nil {
			return err
		}
		var s storyV1
		if err := decode(b, &s, &s.Version); err != nil {
			return err
		}
		if len(s.Told) > 0 {
			fn(id, &s)
		}
		return nil
	})
}

// heal ends the stories of sessions that are over and whose end was not told,
// because the daemon was killed at that moment: with what the record of ends
// says, if it says anything.
func (s *stories) heal(live map[session.ID]bool) error {
	untold := map[session.ID]bool{}
	if err := s.j.eachStory(func(id session.ID, v *storyV1) {
		if v.closed() == nil && !live[id] {
			untold[id] = true
		}
	}); err != nil || len(untold) == 0 {
		return err
	}
	ends, err := s.j.endsOf(untold)
	if err != nil {
		return err
	}
	for id := range untold {
		e := event.Event{Time: time.Now(), Kind: event.SessionClosed, Session: id, Cause: "unknown: the daemon was killed"}
		if r := ends[id]; r != nil {
			counters := r.Counters.event()
			e.Time, e.Cause, e.Counters, e.Request = r.EndedAt, r.Cause, &counters, r.Request
		}
		s.tell(e)
	}
	return nil
}

// endsOf are the records of ends of some sessions.
func (j *journal) endsOf(ids map[session.ID]bool) (map[session.ID]*endedV2, error) {
	ends := map[session.ID]*endedV2{}
	err := j.eachEnd(func(id session.ID, b []byte) error {
		if !ids[id] {
			return nil
		}
		e, err := decodeEnd(b)
		ends[id] = e
		return err
	})
	return ends, err
}

// trimStories forgets the oldest of those that are over, beyond maxEnded.
func (j *journal) trimStories() error {
	type over struct {
		id session.ID
		at time.Time
	}
	var all []over
	if err := j.eachStory(func(id session.ID, s *storyV1) {
		if s.closed() != nil {
			all = append(all, over{id, s.last()})
		}
	}); err != nil || len(all) <= maxEnded {
		return err
	}
	slices.SortFunc(all, func(a, b over) int { return a.at.Compare(b.at) })
	return j.s.Update(func(tx store.Tx) error {
		for _, o := range all[:len(all)-maxEnded] {
			if err := tx.Delete(bucketStories, o.id.String()); err != nil {
				return err
			}
		}
		return nil
	})
}
