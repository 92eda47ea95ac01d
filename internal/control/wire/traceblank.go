package wire

import (
	"fmt"
	"slices"
)

// shown says how many octets of a value a trace shows; of AVPs that are not here
// it shows none. Left out is what proves something: Key Proof, Ticket, and the MAC at
// the end of Resume Proof. Ids, numbers, public keys, certificates and requests for
// them are no secrets, see docs/security.md.
var shown = showing(avpMaxValue,
	avpResultCode.attr, avpTieBreaker.attr, avpHostName.attr, avpVendorName.attr, avpReceiveWindow.attr, avpSerial.attr,
	avpCircuitErrors.attr, avpRouterID.attr, avpAssignedID.attr, avpPseudowires.attr, avpLocalID.attr, avpRemoteID.attr,
	avpRemoteEnd.attr, avpPWType.attr, avpCircuitStatus.attr, avpFailover.attr, avpRecovery.attr, avpSessionState.attr,
	avpVersion.attr, avpCapabilities.attr, avpBootID.attr, avpKeyShare.attr, avpCursor.attr, avpRecoveryBootID.attr,
	avpPublicKey.attr, avpKeyEpoch.attr, avpSession.attr, avpAdvertise.attr, avpAddress.attr, avpPeer.attr, avpRoute.attr,
	avpReplaceRoutes.attr, avpMTU.attr, avpTimers.attr, avpStatistics.attr, avpCause.attr, avpRequestID.attr, avpCSR.attr,
	avpCertificate.attr, avpEncapsulation.attr, avpCiphertext.attr, avpLifetime.attr, avpTryGateway.attr, avpLeaving.attr, avpDelay.attr,
	avpCheckpoint.attr, avpStamp.attr, avpKeypair.attr, avpExpires.attr, avpFloor.attr,
).and(proofMACAt, avpProof.attr)

// proofMACAt is where the MAC begins in a Resume Proof, after generation and
// attempt.
const proofMACAt = 16

// An avpKey is what a kind of AVP is known by.
type avpKey struct{ vendor, number uint16 }

// visible is how many octets of each kind may be seen.
type visible map[avpKey]int

func showing(octets int, kinds ...*attr) visible { return visible{}.and(octets, kinds...) }

func (v visible) and(octets int, kinds ...*attr) visible {
	for _, a := range kinds {
		v[avpKey{a.vendor, a.number}] = octets
	}
	return v
}

// maxNotes bounds what is said of one message: how many AVPs it has is for a
// peer to choose.
const maxNotes = 8

// blank returns a copy of message in which nothing is left but what may be seen,
// and notes that name what lost something.
func blank(message []byte) (out []byte, notes []string) {
	out = slices.Clone(message)
	rest := out[min(headerLen, len(out)):]
	for len(rest) > 0 {
		a, next, err := splitAVP(rest)
		if err != nil {
			clear(rest)
			return out, append(notes, "zeroed: octets that are no AVP")
		}
		if hide := a.value[min(shown.of(a), len(a.value)):]; len(hide) > 0 {
			clear(hide)
			if note := "zeroed: " + a.title(); len(notes) < maxNotes && !slices.Contains(notes, note) {
				notes = append(notes, note)
			}
		}
		rest = next
	}
	return out, notes
}

// of is how many octets of an AVP's value may be seen. A hidden AVP's are not
// what they would be in the open (RFC 3931, section 5.3).
func (v visible) of(a rawAVP) int {
	switch {
	case a.hidden:
		return 0
	case a.number == numMessageType: // whoever's message it is
		return 2
	}
	return v[avpKey{a.vendor, a.number}]
}

// title is what a note calls an AVP.
func (a rawAVP) title() string {
	for _, known := range []*attr{avpKeyProof.attr, avpProof.attr, avpTicket.attr} {
		if known.vendor == a.vendor && known.number == a.number {
			return known.name
		}
	}
	return fmt.Sprintf("AVP %d of vendor %d", a.number, a.vendor)
}
