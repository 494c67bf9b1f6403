// Package forward publishes ports of a lab on the machine's loopback. A forwarder is a process inside the lab's network
// namespace that was handed its listening sockets by a process outside: a socket stays in the namespace it was made in.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// dialTimeout bounds how long a caller waits for an address inside that does not answer.
const dialTimeout = 5 * time.Second

// Listen makes a listening socket on 127.0.0.1, at port when it is free, else at any, and returns it as a file to hand over.
func Listen(ctx context.Context, port int) (file *os.File, address string, err error) {
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil && port != 0 {
		l, err = listen.Listen(ctx, "tcp4", "127.0.0.1:0")
	}
	if err != nil {
		return nil, "", fmt.Errorf("listen on loopback: %w", err)
	}
	defer l.Close()
	file, err = l.(*net.TCPListener).File()
	if err != nil {
		return nil, "", fmt.Errorf("listen on loopback: %w", err)
	}
	return file, l.Addr().String(), nil
}

// Run serves the sockets that were handed over as file descriptors 3, 4, …: connections of the first go to targets[0]
// (HOST:PORT), and so on. It ends with ctx.
func Run(ctx context.Context, targets []string, log *slog.Logger) error {
	group, ctx := errgroup.WithContext(ctx)
	for i, target := range targets {
		f := os.NewFile(uintptr(3+i), target)
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("take over socket for %s: %w", target, err)
		}
		group.Go(func() error { return serve(ctx, l, target, log) })
	}
	return group.Wait()
}

func serve(ctx context.Context, l net.Listener, target string, log *slog.Logger) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		in, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept for %s: %w", target, err)
		}
		if err != nil { // such as too many open files: it passes
			log.Warn("cannot accept a connection", "target", target, "error", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		go func() {
			dialer := net.Dialer{Timeout: dialTimeout}
			out, err := dialer.DialContext(ctx, "tcp", target)
			if err != nil {
				in.Close()
				log.Debug("cannot reach the target", "target", target, "error", err)
				return
			}
			splice(in.(*net.TCPConn), out.(*net.TCPConn))
		}()
	}
}

// splice copies both ways and passes on each side's end of stream, as protocols with half-closed connections need.
func splice(a, b *net.TCPConn) {
	var wg sync.WaitGroup
	oneWay := func(dst, src *net.TCPConn) {
		_, err := io.Copy(dst, src)
		if err != nil { // reset: so shall the other side be
			_ = dst.SetLinger(0)
			dst.Close()
			src.Close()
			return
		}
		_ = dst.CloseWrite()
	}
	wg.Go(func() { oneWay(a, b) })
	wg.Go(func() { oneWay(b, a) })
	wg.Wait()
	a.Close()
	b.Close()
}
