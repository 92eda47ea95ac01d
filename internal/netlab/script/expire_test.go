package script

import (
	"path/filepath"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"tunneld/internal/auth"
	"tunneld/internal/store"
)

// expire puts a certificate into a stopped node's state that its own authority
// made, for its own key, and that ended an hour ago: the node was away for
// three months.
func (s *stage) expire(ts *testscript.TestScript, args []string) {
	atLeast(ts, args, 2)
	gateway, _, err := copyOfStore(filepath.Join(s.daemon(ts, args[1]).Dir(), "state"))
	ts.Check(err)
	defer gateway.Close()
	var authority *auth.Authority
	ts.Check(gateway.View(func(tx store.Tx) error {
		b, err := tx.Get("authority", "ca")
		if err == nil {
			authority, err = auth.UnmarshalAuthority(b)
		}
		return err
	}))
	node, err := store.Open(filepath.Join(s.daemon(ts, args[0]).Dir(), "state"))
	ts.Check(err)
	defer node.Close()
	ts.Check(node.Update(func(tx store.Tx) error {
		id, err := auth.LoadIdentity(tx, authority.Deployment(), auth.Node)
		if err != nil {
			return err
		}
		csr, err := auth.NewCSR(id.Key)
		if err != nil {
			return err
		}
		der, err := authority.Sign(csr, auth.Grant{
			Role: auth.Node, NodeName: id.Name, NodeID: id.ID, At: time.Now().Add(-auth.DefaultLifetime - time.Hour),
		})
		if err != nil {
			return err
		}
		old, err := auth.NewIdentity(id.Key, der, id.CA)
		if err != nil {
			return err
		}
		return old.Save(tx)
	}))
}

// outlive waits for the one thing that only time brings.
func (s *stage) outlive(ts *testscript.TestScript, args []string) {
	atLeast(ts, args, 1)
	code, err := auth.ParseCode(ts.ReadFile(args[0]))
	ts.Check(err)
	<-time.After(time.Until(code.ExpiresAt.Add(time.Millisecond)))
}
