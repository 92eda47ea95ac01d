package life

import (
	"testing"
	"time"

	"tunneld/internal/control/wire"
)

// minutes makes an instant far from the host's start.
func minutes(n int) Instant { return Instant(1000*time.Hour + time.Duration(n)*time.Minute) }

func TestEndsOfALife(t *testing.T) {
	wall := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	at := func(n int) time.Time { return wall.Add(time.Duration(n) * time.Minute) }
	for _, tt := range []struct {
		name string
		life Life
		wall time.Time // now; the instant is minute 10
		held bool
		want wire.Cause // reached; none: not yet
		hard Instant    // when the data plane stops it
	}{
		{"no terms", Life{}, at(10), false, wire.CauseNone, Never},
		{"absolute to come", Life{Terms: wire.Lifetime{Absolute: time.Hour}, Began: minutes(0)}, at(10), false, wire.CauseNone, minutes(60)},
		{"absolute reached", Life{Terms: wire.Lifetime{Absolute: 10 * time.Minute}, Began: minutes(0)}, at(10), false, wire.CauseAbsolute, minutes(10)},
		{"absolute reached by the wall clock alone", Life{Terms: wire.Lifetime{Absolute: time.Hour}, Began: minutes(0), BeganAt: at(-60)}, at(10), false, wire.CauseAbsolute, minutes(0)},
		{"a wall clock set back gives nothing", Life{Terms: wire.Lifetime{Absolute: 10 * time.Minute}, Began: minutes(0), BeganAt: at(500)}, at(10), false, wire.CauseAbsolute, minutes(10)},
		{"a node has no wall clock for it", Life{Terms: wire.Lifetime{Absolute: time.Hour}, Began: minutes(0)}, at(100_000), false, wire.CauseNone, minutes(60)},
		{"reauth to come", Life{Terms: wire.Lifetime{Reauth: 8 * time.Minute}, Proven: minutes(3)}, at(10), false, wire.CauseNone, minutes(11)},
		{"reauth reached", Life{Terms: wire.Lifetime{Reauth: 5 * time.Minute}, Proven: minutes(3)}, at(10), false, wire.CauseReauth, minutes(8)},
		{"the earlier of two", Life{Terms: wire.Lifetime{Reauth: 5 * time.Minute, Absolute: 9 * time.Minute}, Began: minutes(0), Proven: minutes(2)}, at(10), false, wire.CauseReauth, minutes(7)},
		{"idle reached, which stops no packets", Life{Terms: wire.Lifetime{Idle: 5 * time.Minute}, Active: minutes(5)}, at(10), false, wire.CauseIdle, Never},
		{"a packet passed", Life{Terms: wire.Lifetime{Idle: 5 * time.Minute}, Active: minutes(5), Packets: 3}, at(10), false, wire.CauseNone, Never},
		{"held is not idle", Life{Terms: wire.Lifetime{Idle: 5 * time.Minute}, Active: minutes(5)}, at(10), true, wire.CauseNone, Never},
		{"certificate over", Life{CertTo: at(9)}, at(10), false, wire.CauseExpired, minutes(9)},
		{"certificate good", Life{CertTo: at(11)}, at(10), false, wire.CauseNone, minutes(11)},
		{"grace stops packets and is the machine's to end", Life{GraceTo: minutes(9)}, at(10), false, wire.CauseNone, minutes(9)},
	} {
		if got := tt.life.HardTo(minutes(10), tt.wall); got != tt.hard {
			t.Errorf("%s: the data plane stops at %v, want %v", tt.name, time.Duration(got), time.Duration(tt.hard))
		}
		got := wire.CauseNone
		if reached, _ := tt.life.Look(minutes(10), tt.wall, 0, tt.held); reached != nil {
			got = reached.Cause
		}
		if got != tt.want {
			t.Errorf("%s: look = %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	wall := time.Now()
	l := Life{Terms: wire.Lifetime{Absolute: 100 * time.Minute, Reauth: 20 * time.Minute}, Began: minutes(0), Proven: minutes(0)}
	for _, tt := range []struct {
		now    int // minute
		warned wire.Cause
		next   Instant
	}{
		{0, wire.CauseNone, minutes(0).Plus(maxLook)},
		{18, wire.CauseReauth, minutes(18).Plus(maxLook)},
		{19, wire.CauseNone, minutes(19).Plus(maxLook)}, // once
	} {
		_, near := l.Look(minutes(tt.now), wall, 0, false)
		got := wire.CauseNone
		if near != nil {
			got = near.Cause
		}
		if got != tt.warned || l.CheckAt != tt.next {
			t.Errorf("minute %d: warned of %v, next look at %v, want %v, %v", tt.now, got, time.Duration(l.CheckAt), tt.warned, time.Duration(tt.next))
		}
	}
	l.Proven = minutes(19)
	if _, near := l.Look(minutes(38), wall, 0, false); near == nil || near.Cause != wire.CauseReauth {
		t.Error("an end that moved is not warned of again")
	}
	if _, near := l.Look(minutes(95), wall, 0, false); near != nil {
		t.Errorf("a session that is over is warned of %v", near.Cause)
	}
}

// TestLifeOutlivesItsProcess: a session is as old as the one of its clocks says
// that makes it older, whatever happened to host and wall clock meanwhile.
func TestLifeOutlivesItsProcess(t *testing.T) {
	wall := time.Now()
	now := minutes(0)
	saved := func(boot string, uptime Instant, at time.Time) *Ages {
		return &Ages{Age: time.Hour, Proven: time.Minute, HostBoot: boot, Uptime: time.Duration(uptime), At: at}
	}
	for _, tt := range []struct {
		name string
		ages *Ages
		want time.Duration // age
	}{
		{"same boot", saved("this boot", now.Plus(-time.Minute), wall.Add(-time.Minute)), 61 * time.Minute},
		{"same boot, clock set forward", saved("this boot", now.Plus(-time.Minute), wall.Add(-24*time.Hour)), 61 * time.Minute},
		{"same boot, clock set back", saved("this boot", now.Plus(-time.Minute), wall.Add(24*time.Hour)), 61 * time.Minute},
		{"rebooted", saved("another", now.Plus(time.Hour), wall.Add(-2*time.Minute)), 62 * time.Minute},
		{"rebooted with the clock set back", saved("another", now, wall.Add(time.Hour)), time.Hour},
		{"nobody knows", nil, 0},
	} {
		l := New(wire.Lifetime{Absolute: 8 * time.Hour}, 0, time.Time{}, now, wall)
		l.Restore(tt.ages, now, wall, "this boot")
		if got := now.Since(l.Began); got < tt.want-time.Second || got > tt.want+time.Second {
			t.Errorf("%s: age = %v, want %v", tt.name, got, tt.want)
		}
	}
	l := New(wire.Lifetime{Absolute: 8 * time.Hour}, 0, wall.Add(-3*time.Hour), now, wall) // journalled when it began
	l.Restore(saved("this boot", now, wall), now, wall, "this boot")
	if got := now.Since(l.Began); got < 3*time.Hour-time.Second {
		t.Errorf("age = %v, want the wall clock's 3h", got)
	}
	if endless := New(wire.Lifetime{}, 0, time.Time{}, now, wall); endless.Ages(now, wall, "this boot") != nil {
		t.Error("a session that nothing ends has ages to journal")
	}
}

// TestStoppedByAWrongClock: a deadline that was told while the wall clock stood
// ahead is told again when the clock is right, and no other is.
func TestStoppedByAWrongClock(t *testing.T) {
	wall := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now := Instant(time.Hour)
	l := New(wire.Lifetime{Absolute: 10 * time.Minute}, time.Hour, wall, now, wall)
	if l.Stopped(now, wall) {
		t.Error("stopped before any deadline was told")
	}
	if l.Deadline(now, wall); l.Stopped(now, wall) {
		t.Error("stopped before its time")
	}
	if l.Deadline(now, wall.Add(time.Hour)); l.Stopped(now, wall.Add(time.Hour)) || !l.Stopped(now, wall) {
		t.Error("a clock that stood an hour ahead: stopped is wrong")
	}
	if l.Deadline(now, wall); l.Stopped(now, wall) {
		t.Error("stopped though another deadline was told")
	}
	if late := now.Plus(time.Hour); l.Stopped(late, wall.Add(time.Hour)) {
		t.Error("a session whose time is over is not stopped by a wrong clock")
	}
}
