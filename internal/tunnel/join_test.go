package tunnel

import (
	"crypto"
	"testing"

	"tunneld/internal/api"
	"tunneld/internal/auth"
)

// TestJoinKeyEndsWithTheInvite: what the gateway refuses for good leaves no key
// behind; what may go well the next time leaves the one it began with.
func TestJoinKeyEndsWithTheInvite(t *testing.T) {
	gw, node := newGatewayDaemon(t), newNodeDaemon(t, "alice")
	gw.run()
	node.run()
	t.Cleanup(node.end)
	invite := func() string {
		r, err := gw.m.Invite(t.Context(), api.InviteRequest{Node: "alice", TTLMillis: 60_000})
		if err != nil {
			t.Fatal(err)
		}
		return r.Code
	}
	withdrawn, good := invite(), invite()
	keyOf := func(text string) crypto.PublicKey {
		code, err := auth.ParseCode(text)
		if err != nil {
			t.Fatal(err)
		}
		key, err := auth.JoinKey(node.store, code)
		if err != nil {
			t.Fatal(err)
		}
		return key.Public()
	}
	tried := func(text string) (kept bool) {
		before := keyOf(text)
		if _, err := node.m.Join(t.Context(), api.JoinRequest{Code: text}); err == nil {
			t.Fatal("Join = nil, want an error")
		}
		return before.(interface{ Equal(crypto.PublicKey) bool }).Equal(keyOf(text))
	}
	if tried(withdrawn) {
		t.Error("the key of an invite that was withdrawn is still there")
	}
	gw.end()
	if !tried(good) {
		t.Error("the key of an invite is gone because nobody was reached")
	}
}
