package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The kubelet sets these kernel settings of the whole machine when they differ from what it wants. In the lab it finds, in
// place of the settings, files which say what it wants.
var sysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// foreign are folders outside the lab's that the node's programs write to and that no option moves.
var foreign = []string{
	"/run/containerd",     // the shims' sockets, runc's state
	"/run/mount",          // mount(8)
	"/run/netns",          // the names of the pods' network namespaces
	"/var/lib/cni",        // results of the CNI programs
	"/var/lib/kubelet",    // device plug-ins
	"/var/log/containers", // the kubelet's links to logs
}

// Enclose gives the calling thread a mount namespace of its own and arranges it for the node's programs. All that they mount
// is inside: pods' volumes, root file systems, network namespaces. So it is gone when the last of them is gone, whatever
// ended them. The caller has locked its goroutine to the thread and never unlocks it. It returns folders of the machine that
// had to be made to be mounted over.
func (c Config) Enclose() (made []string, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("make mount namespace: %w", err)
	}
	// Mounts of the machine still come in; none goes out. Inside, containers share mounts as on any node.
	for _, flags := range []uintptr{unix.MS_REC | unix.MS_SLAVE, unix.MS_REC | unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", flags, ""); err != nil {
			return nil, fmt.Errorf("make mount namespace private: %w", err)
		}
	}
	for _, dir := range foreign {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return made, fmt.Errorf("make %s: %w", dir, err)
			}
			made = append(made, dir)
		}
		own := c.File(filepath.Join("foreign", strings.ReplaceAll(dir[1:], "/", "-")))
		if err := os.MkdirAll(own, 0o755); err != nil {
			return made, fmt.Errorf("make %s: %w", own, err)
		}
		if err := unix.Mount(own, dir, "", unix.MS_BIND, ""); err != nil {
			return made, fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	return made, c.hideSysctls()
}

func (c Config) hideSysctls() error {
	for name, value := range sysctls {
		real, own := filepath.Join("/proc/sys", name), c.File(filepath.Join("sysctl", filepath.Base(name)))
		if _, err := os.Stat(real); err != nil {
			continue // this kernel has no such setting, and the kubelet says so in its log
		}
		if err := os.MkdirAll(filepath.Dir(own), 0o755); err != nil {
			return fmt.Errorf("hide kernel setting %s: %w", name, err)
		}
		if err := os.WriteFile(own, []byte(value+"\n"), 0o644); err != nil {
			return fmt.Errorf("hide kernel setting %s: %w", name, err)
		}
		if err := unix.Mount(own, real, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("hide kernel setting %s: %w", name, err)
		}
	}
	return nil
}

// Join moves the calling thread into the mount namespace of a process of the node. The caller has locked its goroutine to the
// thread and never unlocks it.
func Join(pid int) error {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("join mount namespace of process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // a working directory shared with other threads forbids it
		return fmt.Errorf("join mount namespace of process %d: %w", pid, err)
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("join mount namespace of process %d: %w", pid, err)
	}
	return nil
}
