package xds_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// netns is a network namespace of the test's own: a pod without a container.
type netns struct {
	t    testing.TB
	name string
	ipv6 bool // intercept6 was called
}

var netnsCount atomic.Int32

func newNetns(t testing.TB) *netns {
	t.Helper()
	n := &netns{t: t, name: fmt.Sprintf("selxds-%d-%d", os.Getpid(), netnsCount.Add(1))}
	run(t, "", "ip", "netns", "add", n.name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", n.name).Run() })
	n.ip("link set lo up")
	return n
}

// run runs a program with stdin and fails the test with what it says when it fails.
func run(t testing.TB, stdin, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (n *netns) ip(args string) {
	n.t.Helper()
	run(n.t, "", "ip", append([]string{"-n", n.name}, strings.Fields(args)...)...)
}

// connect lays a cable between two namespaces. An address begins to hold at once: nobody else is there who could have it.
func connect(a *netns, addressA string, b *netns, addressB string) {
	a.t.Helper()
	n := netnsCount.Add(1)
	endA, endB := fmt.Sprintf("a%d", n), fmt.Sprintf("b%d", n)
	a.ip(fmt.Sprintf("link add %s type veth peer name %s netns %s", endA, endB, b.name))
	for _, end := range []struct {
		of                *netns
		addresses, device string
	}{{a, addressA, endA}, {b, addressB, endB}} {
		for _, address := range strings.Fields(end.addresses) {
			end.of.ip(fmt.Sprintf("addr add %s dev %s%s", address, end.device, noDAD(address)))
		}
		end.of.ip("link set " + end.device + " up")
	}
}

// noDAD is the option without which an IPv6 address cannot be used for its first second (duplicate address detection).
func noDAD(address string) string {
	if strings.Contains(address, ":") {
		return " nodad"
	}
	return ""
}

// interception is what an init container does, for one family: %[1]s is the sidecar's source address, %[2]s is loopback. It
// leads the pod's connections in to 15006 and out to 15001, except what the sidecar (uid 1337) itself sends.
const interception = `*nat
:INBOUND - [0:0]
:OUTBOUND - [0:0]
-A PREROUTING -p tcp -j INBOUND
-A OUTPUT -p tcp -j OUTBOUND
-A INBOUND -p tcp -m multiport --dports 15020,15021,15090 -j RETURN
-A INBOUND -p tcp -j REDIRECT --to-ports 15006
-A OUTBOUND -s %[1]s -o lo -j RETURN
-A OUTBOUND -o lo ! -d %[2]s -p tcp -m owner --uid-owner 1337 -j REDIRECT --to-ports 15006
-A OUTBOUND -m owner --uid-owner 1337 -j RETURN
-A OUTBOUND -o lo -j RETURN
-A OUTBOUND -p tcp -j REDIRECT --to-ports 15001
COMMIT
`

func (n *netns) intercept() {
	n.t.Helper()
	run(n.t, fmt.Sprintf(interception, "127.0.0.6/32", "127.0.0.1/32"), "ip", "netns", "exec", n.name, "iptables-restore")
}

// intercept6 is intercept for IPv6. Of that, the loopback device has only ::1 by itself.
func (n *netns) intercept6() {
	n.t.Helper()
	n.ipv6 = true
	n.ip("addr add ::6/128 dev lo nodad")
	run(n.t, fmt.Sprintf(interception, "::6/128", "::1/128"), "ip", "netns", "exec", n.name, "ip6tables-restore")
}

// inside runs f on a thread that is in the namespace. Sockets that f makes stay in it.
func (n *netns) inside(f func()) {
	n.t.Helper()
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		fd, err := os.Open("/run/netns/" + n.name)
		if err == nil {
			defer fd.Close()
			err = unix.Setns(int(fd.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			f()
		}
		failed <- err
	}()
	if err := <-failed; err != nil {
		n.t.Fatalf("enter network namespace %s: %v", n.name, err)
	}
}

func (n *netns) listen(address string) (l net.Listener) {
	n.t.Helper()
	var err error
	n.inside(func() { l, err = net.Listen("tcp", address) })
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { l.Close() })
	return l
}

// dial connects to an IP address and port.
func (n *netns) dial(_ context.Context, _, address string) (c net.Conn, err error) {
	n.inside(func() { c, err = net.DialTimeout("tcp", address, 10*time.Second) })
	return c, err
}
