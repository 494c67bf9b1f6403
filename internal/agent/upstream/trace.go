package upstream

import (
	"context"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
)

// trace remembers how far the newest attempt to connect came and the error as the network or TLS gave it: gRPC keeps only text.
type trace struct {
	mu        sync.Mutex
	connected bool // TCP is there: an error is the handshake's or the server's
	secured   bool // TLS is there
	err       error
}

func (t *trace) dialed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.connected, t.secured, t.err = err == nil, false, err
}

func (t *trace) shook(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.secured, t.err = err == nil, err
}

func (t *trace) read() (connected, secured bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.connected, t.secured, t.err
}

// tracingCredentials is TLS that notes how the handshake went.
type tracingCredentials struct {
	credentials.TransportCredentials
	trace *trace
}

func (c *tracingCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err() // gRPC ends the handshake by closing the connection; the cause is the time
	}
	c.trace.shook(err)
	return conn, info, err
}

func (c *tracingCredentials) Clone() credentials.TransportCredentials {
	return &tracingCredentials{c.TransportCredentials.Clone(), c.trace}
}
