package event

import "testing"

func TestSubscribeHasNoGap(t *testing.T) {
	var b Bus
	b.Publish(Event{Kind: DaemonStarted})
	past, next, cancel := b.Subscribe()
	defer cancel()
	b.Publish(Event{Kind: NodeInvited, Node: "alice"})
	if len(past) != 1 || past[0].Kind != DaemonStarted || past[0].Time.IsZero() {
		t.Fatalf("past = %v, want one stamped daemon-started", past)
	}
	if e := <-next; e.Kind != NodeInvited || e.Node != "alice" {
		t.Fatalf("next = %v, want node-invited of alice", e)
	}
}

func TestSlowReaderIsCutOff(t *testing.T) {
	var b Bus
	_, next, cancel := b.Subscribe()
	for range subscriberQueue + 1 {
		b.Publish(Event{Kind: NodeInvited})
	}
	n := 0
	for range next {
		n++
	}
	if n != subscriberQueue {
		t.Errorf("read %d events before the cut, want %d", n, subscriberQueue)
	}
	cancel() // must not panic after the cut
}

func TestHistoryIsBounded(t *testing.T) {
	var b Bus
	for range historySize + 10 {
		b.Publish(Event{Kind: NodeInvited})
	}
	past, _, cancel := b.Subscribe()
	defer cancel()
	if len(past) != historySize {
		t.Errorf("%d events remembered, want %d", len(past), historySize)
	}
}
