// Package netns makes the network namespace that a lab lives in, and runs things inside it.
//
// The namespace has a name, which `ip netns` knows too, a loopback, and one bridge without ports that
// carries the lab's own address and the routes of the Service and Pod ranges. It has no way out: nothing in a lab can reach
// the network of the machine, and nothing of the lab shows in the machine's routes, firewall or sysctls.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// known is where iproute2 looks for network namespaces. The lab leaves a symbolic link there, and mounts elsewhere: iproute2
// may at any time bind that folder over itself, and what was mounted inside before can then not be unmounted any more.
const known = "/run/netns"

// Network describes the one device of a lab's namespace.
type Network struct {
	Device  string       // the bridge's name
	Address net.IP       // the lab's own address: EndpointSlices refuse loopback ones
	Ranges  []*net.IPNet // kept on Device: without these an address nobody serves would look for a default route
}

// Path returns the file of the namespace with that name.
func Path(name string) string { return filepath.Join("/run", name, "net") }

// Exists says whether there is a namespace with that name.
func Exists(name string) bool {
	var s unix.Statfs_t
	return unix.Statfs(Path(name), &s) == nil && s.Type == unix.NSFS_MAGIC
}

// Create makes the namespace and its network. It fails where the name is taken.
func Create(name string, n Network) error {
	if Exists(name) {
		return fmt.Errorf("make network namespace %s: it exists", name)
	}
	for _, dir := range []string{known, filepath.Dir(Path(name))} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make network namespace %s: %w", name, err)
		}
	}
	link := filepath.Join(known, name)
	if err := os.Symlink(Path(name), link); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make network namespace %s: %w", name, err)
	}
	f, err := os.OpenFile(Path(name), os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return fmt.Errorf("make network namespace %s: %w", name, err)
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, Path(name), "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return configure(n)
	})
	if err != nil {
		return errors.Join(fmt.Errorf("make network namespace %s: %w", name, err), Delete(name))
	}
	return nil
}

// Delete takes the name away; the namespace ends with the last process in it. A name that does not exist is no error.
func Delete(name string) error {
	for Exists(name) { // a bind mount may lie on another
		if err := unix.Unmount(Path(name), unix.MNT_DETACH); err != nil {
			return fmt.Errorf("delete network namespace %s: %w", name, err)
		}
	}
	for _, file := range []string{filepath.Join(known, name), Path(name)} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete network namespace %s: %w", name, err)
		}
	}
	_ = os.Remove(filepath.Dir(Path(name))) // unless others keep things there
	return nil
}

// Do runs f on a thread inside the namespace with that name; "" is the namespace of the caller. Processes that f starts are
// inside too. Goroutines that f starts are not.
func Do(name string, f func() error) error {
	if name == "" {
		return f()
	}
	return onThread(func() error {
		if err := Enter(name); err != nil {
			return err
		}
		return f()
	})
}

// Enter moves the calling thread into the namespace. The caller has locked its goroutine to the thread, and never unlocks it.
func Enter(name string) error {
	fd, err := unix.Open(Path(name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	return nil
}

// onThread runs f on a thread of its own, which ends with f: a thread that changed its namespaces is never used again.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

func configure(n Network) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	// A bridge and not a dummy device: some kernels have no dummy module.
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.Device
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge %s: %w", n.Device, err)
	}
	own := &net.IPNet{IP: n.Address, Mask: net.CIDRMask(32, 32)}
	if err := netlink.AddrAdd(bridge, &netlink.Addr{IPNet: own}); err != nil {
		return fmt.Errorf("add address %s: %w", n.Address, err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("set bridge %s up: %w", n.Device, err)
	}
	for _, r := range n.Ranges {
		route := &netlink.Route{LinkIndex: bridge.Attrs().Index, Dst: r, Scope: netlink.SCOPE_LINK, Src: n.Address}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("add route %s: %w", r, err)
		}
	}
	// The kernel resolves this file in the calling thread's namespace: the node forwards between its pods, the machine does not.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return fmt.Errorf("set ip_forward: %w", err)
	}
	return nil
}

// Possible says whether this process may make network namespaces.
func Possible() bool {
	return onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }) == nil
}
