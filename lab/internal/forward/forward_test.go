package forward

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"testing"
)

// echo serves one connection: it answers in capitals of its own only once the client has ended its side.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(c)
				_, _ = c.Write(append([]byte("got: "), b...))
			}()
		}
	}()
	return l.Addr().String()
}

func publish(t *testing.T, target string) string {
	t.Helper()
	file, address, err := Listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	done := make(chan error, 1)
	ctx := t.Context()
	go func() { done <- serve(ctx, l, target, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return address
}

func TestAHalfClosedConnectionStillGetsItsAnswer(t *testing.T) {
	c, err := net.Dial("tcp4", publish(t, echo(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "got: hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestATargetThatIsNotThereEndsTheConnection(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	l.Close()
	c, err := net.Dial("tcp4", publish(t, nobody))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := bufio.NewReader(c).ReadByte(); err == nil {
		t.Error("somebody answered")
	}
}

func TestATakenPortIsReplacedByAFreeOne(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	file, address, err := Listen(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	if address == taken.Addr().String() {
		t.Error("two listen on one port")
	}
}
