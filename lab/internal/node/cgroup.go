package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupMount is where the machine has its control groups.
const cgroupMount = "/sys/fs/cgroup"

// hierarchies returns the folders in which a cgroup lives: one with cgroup v2; one per controller with v1.
func hierarchies() (roots []string, unified bool) {
	var s unix.Statfs_t
	if err := unix.Statfs(cgroupMount, &s); err == nil && s.Type == unix.CGROUP2_SUPER_MAGIC {
		return []string{cgroupMount}, true
	}
	dirs, _ := filepath.Glob(cgroupMount + "/*")
	for _, d := range dirs {
		real, err := filepath.EvalSymlinks(d) // cpu and cpuacct may be names of cpu,cpuacct
		if err != nil || slices.Contains(roots, real) {
			continue
		}
		if err := unix.Statfs(real, &s); err == nil && (s.Type == unix.CGROUP_SUPER_MAGIC || s.Type == unix.CGROUP2_SUPER_MAGIC) {
			roots = append(roots, real)
		}
	}
	return roots, false
}

// CreateCgroup makes the cgroup that the pods' cgroups are below, with every controller that the machine has.
func CreateCgroup(name string) error {
	roots, unified := hierarchies()
	if len(roots) == 0 {
		return fmt.Errorf("make cgroup %s: no control groups are mounted on %s", name, cgroupMount)
	}
	for _, root := range roots {
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if unified {
			if err := errors.Join(delegate(root), delegate(dir)); err != nil {
				return fmt.Errorf("make cgroup %s: %w", name, err)
			}
			continue
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // empty in a new cpuset, which then takes no process
			value, err := os.ReadFile(filepath.Join(root, f))
			if err != nil {
				continue // not the cpuset hierarchy
			}
			if err := os.WriteFile(filepath.Join(dir, f), value, 0o644); err != nil {
				return fmt.Errorf("make cgroup: %w", err)
			}
		}
	}
	return nil
}

// delegate gives the children of a v2 cgroup the controllers that a kubelet works with. Some kernels cannot give all of them.
func delegate(dir string) error {
	for controller, must := range map[string]bool{"cpu": true, "memory": true, "pids": true, "cpuset": true, "io": false, "hugetlb": false} {
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
		if err != nil && must {
			return fmt.Errorf("enable controller %s: %w", controller, err)
		}
	}
	return nil
}

// CgroupExists says whether the cgroup is there.
func CgroupExists(name string) bool {
	roots, _ := hierarchies()
	return slices.ContainsFunc(roots, func(root string) bool {
		_, err := os.Stat(filepath.Join(root, name))
		return err == nil
	})
}

// RemoveCgroup kills every process in the cgroup and below, and removes it. One that is not there is no error.
func RemoveCgroup(name string) error {
	roots, _ := hierarchies()
	const tries, pause = 100, 50 * time.Millisecond // a killed process leaves its cgroup some moments later
	var left error
	for range tries {
		left = nil
		for _, root := range roots {
			left = errors.Join(left, empty(filepath.Join(root, name)))
		}
		if left == nil {
			return nil
		}
		time.Sleep(pause)
	}
	return fmt.Errorf("remove cgroup %s: %w", name, left)
}

// empty kills what is in a cgroup's folder and removes the folders, deepest first.
func empty(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var left error
	for _, d := range slices.Backward(dirs) {
		procs, _ := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		for _, p := range strings.Fields(string(procs)) {
			if pid, err := strconv.Atoi(p); err == nil && pid > 0 {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			left = errors.Join(left, fmt.Errorf("remove %s: %w", d, err))
		}
	}
	return left
}
