package tunnel

import (
	"testing"
	"time"

	"tunneld/internal/control/wire"
)

// minutes makes an instant far from the host's start.
func minutes(n int) bootTime { return bootTime(1000*time.Hour + time.Duration(n)*time.Minute) }

func TestEndsOfALife(t *testing.T) {
	wall := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	at := func(n int) time.Time { return wall.Add(time.Duration(n) * time.Minute) }
	for _, tt := range []struct {
		name string
		life life
		wall time.Time // now; the instant is minute 10
		held bool
		want wire.Cause // reached; none: not yet
		hard bootTime   // when the data plane stops it
	}{
		{"no terms", life{}, at(10), false, wire.CauseNone, never},
		{"absolute to come", life{terms: wire.Lifetime{Absolute: time.Hour}, began: minutes(0)}, at(10), false, wire.CauseNone, minutes(60)},
		{"absolute reached", life{terms: wire.Lifetime{Absolute: 10 * time.Minute}, began: minutes(0)}, at(10), false, wire.CauseAbsolute, minutes(10)},
		{"absolute reached by the wall clock alone", life{terms: wire.Lifetime{Absolute: time.Hour}, began: minutes(0), beganAt: at(-60)}, at(10), false, wire.CauseAbsolute, minutes(0)},
		{"a wall clock set back gives nothing", life{terms: wire.Lifetime{Absolute: 10 * time.Minute}, began: minutes(0), beganAt: at(500)}, at(10), false, wire.CauseAbsolute, minutes(10)},
		{"a node has no wall clock for it", life{terms: wire.Lifetime{Absolute: time.Hour}, began: minutes(0)}, at(100_000), false, wire.CauseNone, minutes(60)},
		{"reauth to come", life{terms: wire.Lifetime{Reauth: 8 * time.Minute}, proven: minutes(3)}, at(10), false, wire.CauseNone, minutes(11)},
		{"reauth reached", life{terms: wire.Lifetime{Reauth: 5 * time.Minute}, proven: minutes(3)}, at(10), false, wire.CauseReauth, minutes(8)},
		{"the earlier of two", life{terms: wire.Lifetime{Reauth: 5 * time.Minute, Absolute: 9 * time.Minute}, began: minutes(0), proven: minutes(2)}, at(10), false, wire.CauseReauth, minutes(7)},
		{"idle reached, which stops no packets", life{terms: wire.Lifetime{Idle: 5 * time.Minute}, active: minutes(5)}, at(10), false, wire.CauseIdle, never},
		{"a packet passed", life{terms: wire.Lifetime{Idle: 5 * time.Minute}, active: minutes(5), packets: 3}, at(10), false, wire.CauseNone, never},
		{"held is not idle", life{terms: wire.Lifetime{Idle: 5 * time.Minute}, active: minutes(5)}, at(10), true, wire.CauseNone, never},
		{"certificate over", life{certTo: at(9)}, at(10), false, wire.CauseExpired, minutes(9)},
		{"certificate good", life{certTo: at(11)}, at(10), false, wire.CauseNone, minutes(11)},
		{"grace stops packets and is the machine's to end", life{graceTo: minutes(9)}, at(10), false, wire.CauseNone, minutes(9)},
	} {
		if got := tt.life.hardTo(minutes(10), tt.wall); got != tt.hard {
			t.Errorf("%s: the data plane stops at %v, want %v", tt.name, time.Duration(got), time.Duration(tt.hard))
		}
		got := wire.CauseNone
		if reached, _ := tt.life.look(minutes(10), tt.wall, 0, tt.held); reached != nil {
			got = reached.cause
		}
		if got != tt.want {
			t.Errorf("%s: look = %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	wall := time.Now()
	l := life{terms: wire.Lifetime{Absolute: 100 * time.Minute, Reauth: 20 * time.Minute}, began: minutes(0), proven: minutes(0)}
	for _, tt := range []struct {
		now    int // minute
		warned wire.Cause
		next   bootTime
	}{
		{0, wire.CauseNone, minutes(0).plus(maxLook)},
		{18, wire.CauseReauth, minutes(18).plus(maxLook)},
		{19, wire.CauseNone, minutes(19).plus(maxLook)}, // once
	} {
		_, near := l.look(minutes(tt.now), wall, 0, false)
		got := wire.CauseNone
		if near != nil {
			got = near.cause
		}
		if got != tt.warned || l.checkAt != tt.next {
			t.Errorf("minute %d: warned of %v, next look at %v, want %v, %v", tt.now, got, time.Duration(l.checkAt), tt.warned, time.Duration(tt.next))
		}
	}
	l.proven = minutes(19)
	if _, near := l.look(minutes(38), wall, 0, false); near == nil || near.cause != wire.CauseReauth {
		t.Error("an end that moved is not warned of again")
	}
	if _, near := l.look(minutes(95), wall, 0, false); near != nil {
		t.Errorf("a session that is over is warned of %v", near.cause)
	}
}

// TestLifeOutlivesItsProcess: a session is as old as the one of its clocks says
// that makes it older, whatever happened to host and wall clock meanwhile.
func TestLifeOutlivesItsProcess(t *testing.T) {
	wall := time.Now()
	now := bootNow()
	saved := func(boot string, uptime bootTime, at time.Time) *agesV1 {
		return &agesV1{Age: time.Hour, Proven: time.Minute, HostBoot: boot, Uptime: time.Duration(uptime), At: at}
	}
	for _, tt := range []struct {
		name string
		ages *agesV1
		want time.Duration // age
	}{
		{"same boot", saved(hostBoot(), now.plus(-time.Minute), wall.Add(-time.Minute)), 61 * time.Minute},
		{"same boot, clock set forward", saved(hostBoot(), now.plus(-time.Minute), wall.Add(-24*time.Hour)), 61 * time.Minute},
		{"same boot, clock set back", saved(hostBoot(), now.plus(-time.Minute), wall.Add(24*time.Hour)), 61 * time.Minute},
		{"rebooted", saved("another", now.plus(time.Hour), wall.Add(-2*time.Minute)), 62 * time.Minute},
		{"rebooted with the clock set back", saved("another", now, wall.Add(time.Hour)), time.Hour},
		{"nobody knows", nil, 0},
	} {
		l := newLife(wire.Lifetime{Absolute: 8 * time.Hour}, 0, time.Time{})
		l.restore(tt.ages, now, wall)
		if got := now.since(l.began); got < tt.want-time.Second || got > tt.want+time.Second {
			t.Errorf("%s: age = %v, want %v", tt.name, got, tt.want)
		}
	}
	l := newLife(wire.Lifetime{Absolute: 8 * time.Hour}, 0, wall.Add(-3*time.Hour)) // journalled when it began
	l.restore(saved(hostBoot(), now, wall), now, wall)
	if got := now.since(l.began); got < 3*time.Hour-time.Second {
		t.Errorf("age = %v, want the wall clock's 3h", got)
	}
	if endless := newLife(wire.Lifetime{}, 0, time.Time{}); endless.ages(now, wall) != nil {
		t.Error("a session that nothing ends has ages to journal")
	}
}
