package upstream

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// trace remembers how far the newest attempt to connect came and the error as the network or TLS gave it: gRPC keeps only text.
type trace struct {
	mu        sync.Mutex
	connected bool // TCP is there: an error is the handshake's or the server's
	secured   bool // TLS is there
	alerted   bool // the server ended TLS with an alert after the handshake: it does not take our certificate
	err       error
}

// alertWait is how long a write that failed waits for the reader to come upon the alert that the server sent before it closed.
const alertWait = time.Second

func (t *trace) dialed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.connected, t.secured, t.alerted, t.err = err == nil, false, false, err
}

func (t *trace) shook(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.secured, t.err = err == nil, err
}

func (t *trace) alert() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.alerted = true
}

func (t *trace) read() (connected, secured, alerted bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.connected, t.secured, t.alerted, t.err
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
	if err != nil {
		return conn, info, err
	}
	return &tracingConn{Conn: conn, trace: c.trace, readEnded: make(chan struct{})}, info, nil
}

func (c *tracingCredentials) Clone() credentials.TransportCredentials {
	return &tracingCredentials{c.TransportCredentials.Clone(), c.trace}
}

// tracingConn notes an alert. With TLS 1.3 the server judges our certificate when the handshake is over on our side: its alert is in
// our receive buffer while we already write, and what the write says of it ("broken pipe") is not the cause.
type tracingConn struct {
	net.Conn
	trace     *trace
	once      sync.Once
	readEnded chan struct{}
}

func (c *tracingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		if isAlert(err) {
			c.trace.alert()
		}
		c.once.Do(func() { close(c.readEnded) })
	}
	return n, err
}

// Write relies on gRPC's reader, which is in Read from before the first write until the connection is closed.
func (c *tracingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil {
		timer := time.NewTimer(alertWait)
		defer timer.Stop()
		select {
		case <-c.readEnded:
		case <-timer.C:
		}
	}
	return n, err
}

// isAlert tells an alert that the peer sent: crypto/tls has no exported type for it, but this operation.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}
