package intercept

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// in6Ifreq is struct in6_ifreq of linux/ipv6.h.
type in6Ifreq struct {
	addr      [16]byte
	prefixLen uint32
	ifindex   int32
}

const loopbackIndex = 1 // the kernel makes lo first in every network namespace

// addLoopbackAddress gives the loopback device an IPv6 address. The kernel has 127.0.0.0/8 there by itself, but of IPv6 only ::1.
func addLoopbackAddress(addr netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("add %s to the loopback device: %w", addr, err)
	}
	defer unix.Close(fd)
	req := in6Ifreq{addr: addr.As16(), prefixLen: 128, ifindex: loopbackIndex}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&req)))
	if errno != 0 && !errors.Is(errno, unix.EEXIST) {
		return fmt.Errorf("add %s to the loopback device: %w", addr, errno)
	}
	return nil
}
