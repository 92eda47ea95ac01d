package tunnel

import (
	"errors"
	"testing"

	"tunneld/internal/api"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/store"
)

// TestEndOutlivesAKillWithItsRequest: a gateway that is killed before it has told
// the story of an end tells it afterwards, with the wish that was behind it.
func TestEndOutlivesAKillWithItsRequest(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	sid, _ := session.ParseID(id)
	wish := session.NewID()
	if err := gw.m.KillSession(api.WithRequest(t.Context(), wish), id, "test"); err != nil {
		t.Fatal(err)
	}
	wait(t, "the record of the end", func() bool { return len(gw.ends()) == 1 })
	gw.end()
	j := &journal{gw.store}
	var v storyV1
	if ok, err := j.get(bucketStories, id, &v, &v.Version); !ok || err != nil || v.closed() == nil {
		t.Fatalf("story = %+v, %v; want it told to its end", v, err)
	}
	v.Told = v.Told[:len(v.Told)-1] // what a kill would have cost
	if err := j.put(bucketStories, id, v); err != nil {
		t.Fatal(err)
	}
	gw.run()
	d, err := gw.m.Session(t.Context(), sid.String())
	if err != nil || d.State != "closed" {
		t.Fatalf("Session = %+v, %v; want it closed", d, err)
	}
	last := d.History[len(d.History)-1]
	if last.Event != string(event.SessionClosed) || last.Request == nil || *last.Request != wish.String() || last.RxBytes == nil {
		t.Errorf("the story ends with %+v, want the end by request %v", last, wish)
	}
}

// TestEndsOfReleasesBefore: a record without a request is read, one of a release to
// come is not.
func TestEndsOfReleasesBefore(t *testing.T) {
	old := []byte(`{"Version":1,"Session":"d0d1d2d3-d4d5-46d7-98d9-dadbdcdddedf","Node":"alice","Network":"office","Cause":"test"}`)
	if e, err := decodeEnd(old); err != nil || e.Cause != "test" || !e.Request.IsZero() {
		t.Errorf("decodeEnd(version 1) = %+v, %v", e, err)
	}
	for _, v := range []string{"0", "3"} {
		if _, err := decodeEnd([]byte(`{"Version":` + v + `}`)); !errors.Is(err, store.ErrNewer) {
			t.Errorf("decodeEnd(version %s) = %v, want ErrNewer", v, err)
		}
	}
}
