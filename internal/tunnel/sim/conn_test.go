package sim

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// conn drives one machine as control.Conn does, with the difference that time
// passes where a disk is written, and that everything can end between two
// actions.
type conn struct {
	w      *world
	h      *host
	m      *control.Machine
	hd     control.Handler
	role   control.Role
	id     uint32
	link   string // of the row on disk
	dead   bool
	done   func()              // when it is over, once
	undone func(control.Event) // for what was asked of it and comes too late: Conn.Do's ErrClosed

	ends   []*end        // not yet dropped
	lost   time.Duration // when one last ended or was given up
	timers [4]int        // number of the last arming; odd while armed
	grace  time.Duration // when the timer of the grace was to run out, as armed last
	seq    int

	inbox   []input
	busy    bool
	actions []control.Action
	at      int
	answer  control.Event
	ending  bool
	unsaved bool // the last Save failed
	remains bool // the Forget failed

	cur, next control.TransportID // as the checks understand them
	phase     string              // of next: "+" or "++"
	nr        uint16              // next expected, before the step
	suspended time.Duration       // since; -1: not
	remaining time.Duration       // of the grace when it began
	slack     time.Duration       // for which the host was frozen meanwhile
	wanted    map[control.TransportID]bool
	stolen    bool // by a thief: its wishes are not for the checks of a node
}

// input is an event on its way to the machine.
type input struct {
	ev     control.Event
	end    *end // what it came from
	attach *end
	first  *wire.Packet
	seq    int // of a timer's arming
	timer  bool
}

func (w *world) newConn(h *host, role control.Role, id uint32, link string, hd control.Handler) *conn {
	c := &conn{w: w, h: h, role: role, id: id, link: link, hd: hd, suspended: -1, wanted: map[control.TransportID]bool{}}
	h.conns = append(h.conns, c)
	return c
}

// config is what the machine is made with.
func (c *conn) config() control.Config {
	return control.Config{Role: c.role, LocalID: c.id, HostName: c.h.name, RouterID: 7, BootID: c.h.boot,
		MaxSessions: 8, Rand: c.w, Jitter: c.w.rng.Float64, Tickets: c.role == control.Responder}
}

func (c *conn) begins() { c.m = control.New(c.config()) }

// restored begins from a record, with what is left of its grace.
func (c *conn) restored(rec *control.Record, left time.Duration) {
	c.m = control.Restore(c.config(), rec)
	c.nr, c.suspended, c.remaining = rec.Nr, c.w.now, left
	c.post(input{ev: control.Started{Remaining: left}})
}

// parks goes on from the record on disk, as a connection does that was parked and
// is woken, if it is at rest.
func (c *conn) parks() {
	if !c.idle() || c.unsaved || len(c.ends) > 0 || !c.m.AtRest() {
		return
	}
	c.w.stats.parks++
	i, ok := c.h.disk.find(c.id)
	if !ok {
		broken("P3", "%s/%08x is at rest and not on disk", c.h.name, c.id)
	}
	rec, live := c.h.disk.rows[i].load(), c.m.Record()
	live.Major = rec.Major // worth no write of its own
	if a, b := encoded(rec), encoded(live); !bytes.Equal(a, b) {
		broken("P3", "%s/%08x is at rest as\n%s\nand on disk as\n%s", c.h.name, c.id, b, a)
	}
	for t := range c.timers {
		c.act(control.Disarm{Timer: control.Timer(t)})
	}
	c.w.logf("%s/%08x is parked, and woken", c.h.name, c.id)
	c.m = control.Restore(c.config(), rec)
	c.post(input{ev: control.Started{Remaining: max(0, c.grace-c.w.now), At: c.h.wall()}})
}

func encoded(r *control.Record) []byte {
	b, err := r.Encode()
	if err != nil {
		panic(err) // it was on disk
	}
	return b
}

// attach gives the machine a transport.
func (c *conn) attach(e *end, first *wire.Packet) { c.post(input{attach: e, first: first}) }

// do gives the machine a wish.
func (c *conn) do(ev control.Event) { c.post(input{ev: ev}) }

// post puts an input into the queue; one at a time is acted upon.
func (c *conn) post(in input) {
	if c.dead {
		return
	}
	c.inbox = append(c.inbox, in)
	c.nudge()
}

func (c *conn) nudge() {
	for !c.busy && !c.dead && len(c.inbox) > 0 {
		in := c.inbox[0]
		c.inbox = c.inbox[1:]
		c.take(in)
	}
}

func (c *conn) take(in input) {
	switch {
	case in.attach != nil:
		c.ends = append(c.ends, in.attach)
		in.attach.c = c
		if in.attach.told {
			defer c.post(input{ev: control.Detached{Transport: in.attach.l.id, At: c.h.wall(), Err: errCut}})
		}
		if in.first != nil {
			c.inbox = slices.Insert(c.inbox, 0, input{ev: control.Received{Transport: in.attach.l.id, Packet: in.first}, end: in.attach})
		}
		c.step(control.Attached{Transport: in.attach.l.id, Binding: in.attach.binding(), Beside: in.first != nil && in.attach.l.since < c.lost})
	case in.timer:
		e := in.ev.(control.Expired)
		if c.timers[e.Timer] == in.seq {
			e.At = c.h.wall()
			c.step(e)
		}
	default:
		if _, ok := in.ev.(control.Detached); ok {
			c.lost = c.w.now
		}
		c.step(in.ev)
	}
}

// maxSteps is far beyond what a schedule needs.
const maxSteps = 200000

// step runs the machine on one event and begins to do what it says.
func (c *conn) step(ev control.Event) {
	c.busy = true
	if c.w.stats.steps++; c.w.stats.steps > maxSteps {
		broken("quiet", "%d steps and no rest", maxSteps)
	}
	c.actions, c.at, c.answer = c.w.ghost.watch(c, ev), 0, nil
	c.perform()
}

// perform does actions in their order, as control.Conn does. It leaves off at a
// Save that takes time, and for good where the host is killed.
func (c *conn) perform() {
	for c.at < len(c.actions) {
		a := c.actions[c.at]
		if c.h.killedNow() {
			return
		}
		if s, ok := a.(control.Save); ok {
			c.save(s.Record)
			return
		}
		c.at++
		c.act(a)
		if c.dead {
			return
		}
	}
	if c.answer != nil {
		c.step(c.answer)
		return
	}
	c.busy = false
	c.w.ghost.rests(c)
	if c.m.State() == session.Closed && !c.ending {
		c.ending = true
		if !c.remains {
			c.over()
			return
		}
	}
	c.nudge()
}

// save writes the record: at once, or after a while in which others go on and
// the host may die. What was written and not yet synced when it died is there
// or not.
func (c *conn) save(rec *control.Record) {
	commit := func() {
		c.w.stats.saves++
		err := c.hd.Save(rec)
		c.unsaved = err != nil
		if err != nil {
			c.w.stats.full++
			c.w.logf("%s/%08x: not saved: %v", c.h.name, c.id, err)
			c.h.after(time.Second, c.saveAgain)
			c.step(control.SaveFailed{Err: err})
			return
		}
		c.at++
		c.perform()
	}
	if !c.w.chance(3) {
		commit()
		return
	}
	life, late := c.h.life, c.w.chance(2)
	c.w.after(c.w.between(0, 20*time.Millisecond), func() {
		switch {
		case !c.dead:
			commit()
		case late && c.h.life == life+1 && !c.h.up: // it died between write and sync, and the write was kept
			c.hd.Save(rec)
		}
	})
}

// saveAgain writes what could not be written, as control.Conn does.
func (c *conn) saveAgain() {
	if c.dead || !c.unsaved {
		return
	}
	if c.busy || c.hd.Save(c.m.Record()) != nil {
		c.h.after(time.Second, c.saveAgain)
		return
	}
	c.unsaved = false
}

// forget removes the record; the connection is not over before that is done.
func (c *conn) forget() {
	if err := c.hd.Forget(); err != nil {
		c.w.logf("%s/%08x: not forgotten: %v", c.h.name, c.id, err)
		c.remains = true
		c.h.after(time.Second, c.forget)
		return
	}
	if c.remains {
		c.remains = false
		if c.ending {
			c.over()
		}
	}
}

func (c *conn) act(a control.Action) {
	switch a := a.(type) {
	case control.Forget:
		c.unsaved = false
		c.forget()
	case control.Send:
		c.send(a)
	case control.Drop:
		c.lost = c.w.now
		if e := c.end(a.Transport); e != nil {
			c.ends = slices.DeleteFunc(c.ends, func(o *end) bool { return o == e })
			if c.role == control.Initiator && a.Err != nil && strings.Contains(a.Err.Error(), "took over") {
				c.h.after(time.Second, e.drop) // it lingers, so that the gateway sees SCCCN before its end
				return
			}
			e.drop()
		}
	case control.Arm:
		c.arm(a.Timer, a.After)
	case control.Disarm:
		c.seq++
		c.timers[a.Timer] = c.seq
	case control.AskAuthorize:
		c.answer = control.Authorized{Transport: a.Transport, Refusal: c.hd.Authorize(a)}
	case control.AskSession:
		grant, refusal := c.hd.Grant(a)
		c.answer = control.Granted{LocalID: a.LocalID, Grant: grant, Refusal: refusal}
	case control.AskSetUp:
		c.answer = control.SetUp{LocalID: a.Session.LocalID, Refusal: c.hd.SetUp(a.Session)}
	case control.AskArm:
		c.answer = control.Armed{LocalID: a.Session.LocalID, Refusal: c.hd.(control.KeyHandler).Arm(a.Session)}
	case control.AskChange:
		c.answer = control.Changed{LocalID: a.Session.LocalID, Refusal: c.hd.(control.ChangeHandler).Change(a.Session)}
	case control.AskExtend:
		c.answer = c.hd.(control.ChangeHandler).Extend(a)
	case control.AskRefresh:
		c.answer = c.hd.(control.ChangeHandler).Refresh(a)
	case control.AskTicket:
		c.answer = control.Ticketed{LocalID: a.Session.LocalID, Ticket: c.hd.(control.TicketHandler).Ticket(a.Session)}
	case control.AskSign:
		cert, refusal := c.hd.Sign(a)
		c.answer = control.Signed{RequestID: a.RequestID, Certificate: cert, Refusal: refusal}
	default:
		c.hd.Notify(a)
	}
}

func (c *conn) end(id control.TransportID) *end {
	for _, e := range c.ends {
		if e.l.id == id {
			return e
		}
	}
	return nil
}

func (c *conn) send(a control.Send) {
	e := c.end(a.Transport)
	if e == nil {
		broken("fencing", "%s sends %v on transport %d, which it does not have", c.h.name, a.Packet.Message.Type(), a.Transport)
	}
	c.w.ghost.sends(c, a)
	b, err := a.Packet.Append(nil)
	if err != nil {
		broken("wire", "Append(%v) = %v", a.Packet.Message.Type(), err)
	}
	e.send(b)
}

func (c *conn) arm(t control.Timer, d time.Duration) {
	c.seq++
	seq := c.seq
	c.timers[t] = seq
	if t == control.TimerGrace {
		c.grace = c.w.now + d
	}
	c.h.after(d, func() {
		if c.timers[t] == seq {
			c.post(input{ev: control.Expired{Timer: t}, timer: true, seq: seq})
		}
	})
}

// over is the end of control.Conn.Run: the transports that are left are closed.
func (c *conn) over() {
	c.dead = true
	for _, e := range c.ends {
		e.drop()
	}
	for _, in := range c.inbox {
		if c.undone != nil {
			c.undone(in.ev)
		}
	}
	c.h.conns = slices.DeleteFunc(slices.Clone(c.h.conns), func(o *conn) bool { return o == c })
	if c.done != nil {
		c.done()
	}
}

// idle reports whether nothing is being done and nothing waits.
func (c *conn) idle() bool { return !c.busy && !c.dead && len(c.inbox) == 0 }
