package intercept

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/selvage-mesh/selvage/internal/testneed"
)

// pods are two network namespaces joined by a cable: a pod with rules and its peer, with IPv4 and IPv6.
type pods struct {
	t         testing.TB
	pod, peer string
}

const (
	podIP4, peerIP4 = "10.88.0.2", "10.88.0.3"
	podIP6, peerIP6 = "fd88::2", "fd88::3"
)

var namespaceCount atomic.Int32

func newPods(t testing.TB, v6 bool) pods {
	t.Helper()
	testneed.Root(t)
	n := fmt.Sprintf("selvage-ic-%d-%d-", os.Getpid(), namespaceCount.Add(1))
	p := pods{t, n + "pod", n + "peer"}
	for _, ns := range []string{p.pod, p.peer} {
		ip(t, "netns", "add", ns)
		t.Cleanup(func() { ip(t, "netns", "del", ns) })
		ip(t, "-n", ns, "link", "set", "lo", "up")
	}
	ip(t, "link", "add", "eth0", "netns", p.pod, "type", "veth", "peer", "name", "eth0", "netns", p.peer)
	for _, end := range []struct{ ns, v4, v6 string }{{p.pod, podIP4, podIP6}, {p.peer, peerIP4, peerIP6}} {
		ip(t, "-n", end.ns, "addr", "add", end.v4+"/24", "dev", "eth0")
		if v6 {
			ip(t, "-n", end.ns, "addr", "add", end.v6+"/64", "dev", "eth0", "nodad")
		}
		ip(t, "-n", end.ns, "link", "set", "eth0", "up")
	}
	ip(t, "-n", p.pod, "route", "add", "default", "via", peerIP4)
	if v6 {
		ip(t, "-n", p.pod, "-6", "route", "add", "default", "via", peerIP6)
	}
	awaitLinkLocal(t, p.pod)
	return p
}

// awaitLinkLocal waits for the address that the kernel gives a device of its own accord, a moment after both ends are up.
func awaitLinkLocal(t testing.TB, ns string) {
	t.Helper()
	for range 1000 {
		out, err := exec.Command("ip", "-n", ns, "-6", "addr", "show", "dev", "eth0", "scope", "link").CombinedOutput()
		if err != nil {
			t.Fatalf("ip addr show: %v\n%s", err, out)
		}
		if strings.Contains(string(out), "fe80::") {
			return
		}
		time.Sleep(5 * time.Millisecond) // the kernel's event would want a netlink library for this one place
	}
	t.Fatalf("eth0 of %s has no link-local address", ns)
}

func ip(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// in runs f on a thread of its own inside a namespace. Sockets made there stay there.
func in(t testing.TB, ns string, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		file, err := os.Open("/run/netns/" + ns)
		if err == nil {
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
			file.Close()
		}
		if err == nil {
			defer func() { done <- nil }()
			f()
			return
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func (p pods) apply(o Options, b Backend) Result {
	p.t.Helper()
	var result Result
	var err error
	in(p.t, p.pod, func() { result, err = Apply(p.t.Context(), o, b) })
	if err != nil {
		p.t.Fatal(err)
	}
	if len(result.Warnings) > 0 {
		p.t.Errorf("warnings: %q", result.Warnings)
	}
	return result
}

// run gives the output of a command in the pod.
func (p pods) run(name string, args ...string) string {
	p.t.Helper()
	var out []byte
	var err error
	in(p.t, p.pod, func() { out, err = exec.Command(name, args...).Output() })
	if err != nil {
		p.t.Fatalf("%s: %v", name, err)
	}
	return string(out)
}

// serve answers every connection to addr in a namespace with "NAME ORIGINAL-DESTINATION", which shows where it arrived.
func (p pods) serve(ns, name, addr string) {
	p.t.Helper()
	var l net.Listener
	var err error
	in(p.t, ns, func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			dst, err := originalDestination(c.(*net.TCPConn))
			if err != nil { // not redirected: no entry
				dst = netip.MustParseAddrPort(c.LocalAddr().String())
			}
			fmt.Fprintf(c, "%s %s from %s", name, dst, c.RemoteAddr().(*net.TCPAddr).IP)
			c.Close()
		}
	}()
}

// call connects from a namespace as a user and gives what answered.
func (p pods) call(ns string, uid uint32, from, to string) (answer string) {
	p.t.Helper()
	var c net.Conn
	var err error
	in(p.t, ns, func() {
		if from == "" {
			c, err = dialAs(uid, netip.MustParseAddrPort(to))
			return
		}
		d := net.Dialer{Timeout: verifyTimeout, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err = d.Dial("tcp", to)
	})
	if errors.Is(err, unix.ECONNREFUSED) {
		return "refused"
	}
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(verifyTimeout)); err != nil {
		p.t.Fatal(err)
	}
	said, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(said)
}
