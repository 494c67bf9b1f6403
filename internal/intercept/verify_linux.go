package intercept

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// verifyTimeout is how long one test connection may take. A redirected one stays on the machine: it takes microseconds.
const verifyTimeout = 2 * time.Second

// ErrNotIntercepted says that the rules are installed and a test connection was not redirected as they ask.
var ErrNotIntercepted = errors.New("the rules are installed, but a test connection was not redirected")

// Verify proves the rules by real connections. It listens where the proxy will, connects from this user (root, who is not the
// proxy) to an address outside of the pod, and looks where the connection arrives and which destination the kernel remembers for
// it. With CAP_SETUID it also calls the pod's own address as the proxy's user, which must arrive at the inbound port; a
// connection from outside cannot be made from inside a pod, so for PREROUTING the read-back of Apply must do. A program that runs as
// the proxy's user itself tries that second connection only: the first one is not captured.
//
// The notes say what could not be tested and why. They are no failure: the proxy may be running already (a restarted init
// container), or the pod may have no route yet.
func Verify(ctx context.Context, o Options) (notes []string, err error) {
	proxy := os.Geteuid() == int(o.ProxyUID)
	if !proxy && os.Getegid() == int(o.ProxyGID) {
		return nil, fmt.Errorf("verify interception: this program runs as the proxy's own group %d, whose connections are not captured", o.ProxyGID)
	}
	families, err := podFamilies(routable)
	if err != nil {
		return nil, err
	}
	for _, f := range families {
		verify := verifyFamily
		if proxy {
			verify = verifyOwn
		}
		more, err := verify(ctx, o, f)
		notes = append(notes, more...)
		if err != nil {
			return notes, fmt.Errorf("verify interception: %w", err)
		}
	}
	return notes, nil
}

func verifyFamily(ctx context.Context, o Options, f family) (notes []string, err error) {
	out, err := listen(ctx, f, o.ProxyPort)
	if errors.Is(err, syscall.EADDRINUSE) {
		return []string{fmt.Sprintf("port %d is in use, so the proxy may be running already: the rules were read back, but not tried", o.ProxyPort)}, nil
	}
	if err != nil {
		return nil, err
	}
	defer out.Close()
	dst, err := outsideAddress(o, f)
	if err != nil {
		notes = append(notes, err.Error()+": outbound capture was not tried")
	} else if err := expect(out, dst, func() (net.Conn, error) { return dial(ctx, dst) }); err != nil {
		return notes, err
	}
	if _, has := ownAddress(f); !has || !hasCapability(unix.CAP_SETUID) {
		return notes, nil
	}
	more, err := verifyOwn(ctx, o, f)
	return append(notes, more...), err
}

// verifyOwn calls the pod's own address as the proxy's user.
func verifyOwn(ctx context.Context, o Options, f family) (notes []string, err error) {
	if !o.InboundPorts.All && len(o.InboundPorts.List) == 0 {
		return notes, nil
	}
	own, ok := ownAddress(f)
	if !ok {
		return []string{fmt.Sprintf("the pod has no address to try (%s)", f.network())}, nil
	}
	in, err := listen(ctx, f, o.InboundPort)
	if err != nil {
		return append(notes, fmt.Sprintf("inbound capture was not tried: %v", err)), nil
	}
	defer in.Close()
	// Any port will do: a call of the proxy to its own pod is captured whatever its port.
	self := netip.AddrPortFrom(own, o.ProxyPort-1)
	return notes, expect(in, self, func() (net.Conn, error) { return dialAs(o.ProxyUID, self) })
}

func (f family) network() string {
	if f.v6 {
		return "tcp6"
	}
	return "tcp4"
}

func listen(ctx context.Context, f family, port uint16) (*net.TCPListener, error) {
	any := "0.0.0.0"
	if f.v6 {
		any = "::"
	}
	l, err := new(net.ListenConfig).Listen(ctx, f.network(), net.JoinHostPort(any, strconv.Itoa(int(port))))
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

func dial(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
	return (&net.Dialer{Timeout: verifyTimeout}).DialContext(ctx, "tcp", dst.String())
}

// expect dials and wants the connection to arrive at l, with dst as its original destination.
func expect(l *net.TCPListener, dst netip.AddrPort, dialDst func() (net.Conn, error)) error {
	if err := l.SetDeadline(time.Now().Add(2 * verifyTimeout)); err != nil {
		return err
	}
	client, err := dialDst()
	if err != nil {
		return fmt.Errorf("%w: a connection to %s should have come to %s (%w); "+
			"look for other programs' rules before ours (nft list ruleset) and for the kernel modules nf_nat and xt_REDIRECT", ErrNotIntercepted, dst, l.Addr(), err)
	}
	defer client.Close()
	server, err := l.AcceptTCP()
	if err != nil {
		return fmt.Errorf("%w: a connection to %s was answered by another program than the one at %s (%w)", ErrNotIntercepted, dst, l.Addr(), err)
	}
	defer server.Close()
	got, err := originalDestination(server)
	if err != nil {
		return fmt.Errorf("read the original destination of a redirected connection: %w; is the kernel module nf_conntrack loaded?", err)
	}
	if got != dst {
		return fmt.Errorf("%w: a connection to %s came with the destination %s", ErrNotIntercepted, dst, got)
	}
	return nil
}

// originalDestination asks the kernel where a redirected connection wanted to go (SO_ORIGINAL_DST, linux/netfilter_ipv4.h), as Envoy
// does.
func originalDestination(c *net.TCPConn) (dst netip.AddrPort, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return dst, err
	}
	is6 := c.LocalAddr().(*net.TCPAddr).IP.To4() == nil
	var errno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		var buf [unix.SizeofSockaddrInet6]byte
		size := uint32(len(buf))
		level := uintptr(unix.SOL_IP)
		if is6 {
			level = unix.SOL_IPV6
		}
		const soOriginalDst = 80
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, level, soOriginalDst, uintptr(unsafe.Pointer(&buf)), uintptr(unsafe.Pointer(&size)), 0)
		port := binary.BigEndian.Uint16(buf[2:4])
		if is6 {
			dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(buf[8:24])), port)
		} else {
			dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(buf[4:8])), port)
		}
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return dst, err
}

// dialAs connects with a socket that belongs to uid: the packet filter's owner match goes by who made the socket.
func dialAs(uid uint32, dst netip.AddrPort) (net.Conn, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	domain, addr := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(dst.Port()), Addr: dst.Addr().As16()})
	if dst.Addr().Is4() {
		domain, addr = unix.AF_INET, &unix.SockaddrInet4{Port: int(dst.Port()), Addr: dst.Addr().As4()}
	}
	// Of this thread only: the raw call, not Go's, which would change all of them.
	// It cannot fail: it returns who it was before.
	before, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, before, 0, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "test connection")
	defer file.Close()
	timeout := unix.NsecToTimeval(int64(verifyTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, addr); err != nil {
		return nil, fmt.Errorf("connect as user %d: %w", uid, err)
	}
	return net.FileConn(file)
}

// outsideAddress picks a destination that the rules capture and that the pod has a route to, not through the loopback device. Nothing
// is sent there when the rules work.
func outsideAddress(o Options, f family) (netip.AddrPort, error) {
	port := uint16(80)
	anywhere := false // captured by its port alone
	if i := slices.IndexFunc(o.IncludeOutboundPorts, func(p uint16) bool { return !slices.Contains(o.ExcludeOutboundPorts, p) }); i >= 0 {
		port, anywhere = o.IncludeOutboundPorts[i], true
	}
	for slices.Contains(o.ExcludeOutboundPorts, port) || port == o.ProxyPort || port == o.InboundPort {
		port++
	}
	candidates := []netip.Addr{netip.MustParseAddr("192.0.2.1")} // TEST-NET-1, RFC 5737
	if f.v6 {
		candidates = []netip.Addr{netip.MustParseAddr("2001:db8::1")} // documentation, RFC 3849
	}
	if own, ok := ownPrefix(f); ok {
		candidates = append(candidates, own.Masked().Addr().Next(), own.Masked().Addr().Next().Next())
	}
	for _, prefix := range o.OutboundRanges.List {
		if prefix.Addr().Is6() == f.v6 {
			candidates = append(candidates, prefix.Addr(), prefix.Addr().Next())
		}
	}
	captured := false
	for _, addr := range candidates {
		if !o.captures(addr, anywhere) {
			continue
		}
		captured = true
		if dst := netip.AddrPortFrom(addr, port); leavesPod(dst, o.ExcludeInterfaces) {
			return dst, nil
		}
	}
	if !captured {
		return netip.AddrPort{}, errors.New("no address to try is in the captured ranges")
	}
	return netip.AddrPort{}, fmt.Errorf("the pod has no route to an address that is captured (%s)", f.network())
}

// captures says whether the rules capture connections to addr, as far as addresses go; anywhere says that the port is captured
// outside of the captured ranges too.
func (o Options) captures(addr netip.Addr, anywhere bool) bool {
	in := func(p netip.Prefix) bool { return p.Contains(addr) }
	return !slices.ContainsFunc(o.ExcludeOutboundRanges, in) && (anywhere || o.OutboundRanges.All || slices.ContainsFunc(o.OutboundRanges.List, in))
}

// leavesPod asks the kernel's routing: connecting a UDP socket sends nothing. The devices of excluded do not count.
func leavesPod(dst netip.AddrPort, excluded []string) bool {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(dst))
	if err != nil {
		return false
	}
	defer c.Close()
	local := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	return !local.IsLoopback() && local != dst.Addr() && !slices.ContainsFunc(excluded, func(device string) bool { return hasAddress(device, local) })
}

// hasAddress reports whether the network device has the address.
func hasAddress(device string, addr netip.Addr) bool {
	d, err := net.InterfaceByName(device)
	if err != nil {
		return false
	}
	own, err := d.Addrs()
	return err == nil && slices.ContainsFunc(own, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr() == addr
	})
}

// ownPrefix is the pod's address of a family, with its network.
func ownPrefix(f family) (netip.Prefix, bool) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Prefix{}, false
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is6() == f.v6 && p.Addr().IsGlobalUnicast() && p.Addr() != f.passthrough.Addr() {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

func ownAddress(f family) (netip.Addr, bool) {
	p, ok := ownPrefix(f)
	return p.Addr(), ok
}
