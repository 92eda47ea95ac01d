package tunnel

import (
	"crypto"
	"time"

	"tunneld/internal/auth"
	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
)

// renewal is a certificate that was asked for and did not come yet.
type renewal struct {
	id      session.ID
	key     crypto.Signer
	askedAt time.Time
}

// renewalRetry is how long an answer is waited for.
const renewalRetry = 10 * time.Minute

// renewCertificates asks for a new certificate wherever two thirds of the
// present one's life are over; a gateway renews its own.
func (m *Manager) renewCertificates() {
	if g := m.gateway; g != nil {
		g.renewOwn(time.Now())
	}
	type request struct {
		conn *control.Conn
		ev   control.RenewCertificate
	}
	var requests []request
	m.mu.Lock()
	for _, l := range m.links {
		if ev, ok := l.renewalDue(time.Now()); ok {
			requests = append(requests, request{l.conn, ev})
		}
	}
	m.mu.Unlock()
	for _, r := range requests {
		r.conn.Do(m.ctx, r.ev)
	}
}

// renewalDue prepares a request if one is due; the caller holds Manager.mu.
func (l *link) renewalDue(now time.Time) (control.RenewCertificate, bool) {
	if l.conn == nil || !l.up || (l.renewing != nil && now.Sub(l.renewing.askedAt) < renewalRetry) {
		return control.RenewCertificate{}, false
	}
	_, id, err := l.m.whoAnswers(l.way.Gateways[0])
	if err != nil || now.Before(auth.RenewAt(id.Certificate)) {
		return control.RenewCertificate{}, false
	}
	key, err := auth.NewKey()
	if err != nil {
		l.m.log.Error("certificate not renewed", event.KeyErr, err)
		return control.RenewCertificate{}, false
	}
	csr, err := auth.NewCSR(key)
	if err != nil {
		l.m.log.Error("certificate not renewed", event.KeyErr, err)
		return control.RenewCertificate{}, false
	}
	l.renewing = &renewal{session.NewID(), key, now}
	return control.RenewCertificate{RequestID: l.renewing.id, CSR: csr}, true
}

// renewed keeps the certificate that came; the caller holds Manager.mu.
func (l *link) renewed(a control.CertificateRenewed) {
	r := l.renewing
	if r == nil || r.id != a.RequestID {
		return
	}
	if a.Result != nil {
		l.m.log.Warn("certificate not renewed", event.KeyPeer, l.key, event.KeyCause, a.Result.Describe(wire.TypeStopCCN))
		return
	}
	l.renewing = nil
	if err := l.keepRenewed(r.key, a.Certificate); err != nil {
		l.m.log.Error("certificate not renewed", event.KeyPeer, l.key, event.KeyErr, err)
		return
	}
	l.m.log.Info("certificate renewed", event.KeyPeer, l.key)
	l.m.publish(event.Event{Kind: event.NodeRenewed, Node: l.m.cfg.Node.Name})
}

// keepRenewed puts the new certificate in the place of the old one.
func (l *link) keepRenewed(key crypto.Signer, certificate []byte) error {
	_, old, err := l.m.whoAnswers(l.way.Gateways[0])
	if err != nil {
		return err
	}
	id, err := auth.NewIdentity(key, certificate, old.CA)
	if err != nil {
		return err
	}
	return l.m.store.Update(id.Save)
}

// renewOwn gives the gateway itself a new certificate when it is due.
func (g *gateway) renewOwn(now time.Time) {
	if now.Before(auth.RenewAt(g.registry.Identity().Certificate)) {
		return
	}
	id, err := g.registry.RenewGateway(now)
	if err != nil {
		g.m.log.Error("the gateway's certificate is not renewed", event.KeyErr, err)
		return
	}
	g.m.log.Info("certificate renewed", event.KeyNode, id.Name)
}
