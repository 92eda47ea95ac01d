package control

import (
	"fmt"
	"strings"

	"tunneld/internal/control/wire"
)

// brief writes an action as the tables of these tests do: "send:ICRP@1" is a
// message on transport 1, "send:CDN/2.7@1" one with result code 2 and cause 7,
// "arm:hello" and "drop@2" explain themselves, notices are called by name:
// "SessionDown/3" is one with result code 3.
func brief(a Action) string {
	switch a := a.(type) {
	case Send:
		return fmt.Sprintf("send:%v%s@%d", a.Packet.Message.Type(), resultOf(a.Packet.Message), a.Transport)
	case Arm:
		return "arm:" + a.Timer.String()
	case Disarm:
		return "disarm:" + a.Timer.String()
	case Drop:
		return fmt.Sprintf("drop@%d", a.Transport)
	case AskAuthorize:
		return "ask:authorize"
	case AskSession:
		return "ask:session"
	case AskSetUp:
		return "ask:setup"
	case AskSign:
		return "ask:sign"
	case AskArm:
		return "ask:arm"
	case AskChange:
		return "ask:change"
	case AskExtend:
		return "ask:extend"
	case AskRefresh:
		return "ask:refresh"
	case ChangeRefused:
		return "ChangeRefused" + codes(a.Result)
	case RekeyFailed:
		return "RekeyFailed" + codes(a.Result)
	case Save:
		return "save"
	case Forget:
		return "forget"
	case SessionDown:
		return "SessionDown" + codes(a.Result)
	case SessionRefused:
		return "SessionRefused" + codes(a.Result)
	case Ended:
		return "Ended" + codes(a.Result)
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", a), "control.")
}

func resultOf(m wire.Message) string {
	switch m := m.(type) {
	case *wire.StopCCN:
		return codes(m.Result)
	case *wire.CDN:
		return codes(m.Result)
	case *wire.KeyReply:
		return codesOf(m.Result)
	case *wire.KeyChanged:
		return codesOf(m.Result)
	case *wire.ChangeAnswer:
		return codesOf(m.Result)
	}
	return ""
}

// codes is result code and, if there is one, cause.
func codes(r wire.Result) string {
	if r.Cause == wire.CauseNone {
		return fmt.Sprintf("/%d", r.Code)
	}
	return fmt.Sprintf("/%d.%d", r.Code, r.Cause)
}
