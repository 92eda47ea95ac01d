package tunnel

import (
	"context"
	"sync"
)

// chores is one worker for what a control connection's handler may not do
// itself, because it concerns other connections: handlers never wait for each
// other. A chore of the same name that has not begun yet is done once.
type chores struct {
	mu    sync.Mutex // guards everything below
	queue []string
	work  map[string]func(context.Context)
	wake  chan struct{} // of length 1
}

func newChores() *chores {
	return &chores{work: map[string]func(context.Context){}, wake: make(chan struct{}, 1)}
}

// add queues a chore. The queue is bounded by the number of names, which are
// those of networks, sessions and connections.
func (c *chores) add(name string, fn func(context.Context)) {
	c.mu.Lock()
	if _, waiting := c.work[name]; !waiting {
		c.queue = append(c.queue, name)
	}
	c.work[name] = fn
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *chores) next() func(context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		return nil
	}
	name := c.queue[0]
	c.queue = c.queue[1:]
	fn := c.work[name]
	delete(c.work, name)
	return fn
}

// run does chores until ctx ends.
func (c *chores) run(ctx context.Context) {
	for {
		select {
		case <-c.wake:
		case <-ctx.Done():
			return
		}
		for fn := c.next(); fn != nil && ctx.Err() == nil; fn = c.next() {
			fn(ctx)
		}
	}
}
