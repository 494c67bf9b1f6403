package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/selvage-mesh/selvage/lab/internal/cluster"
	"github.com/selvage-mesh/selvage/lab/internal/fault"
	"github.com/selvage-mesh/selvage/lab/internal/netns"
	"github.com/selvage-mesh/selvage/lab/internal/node"
	"github.com/selvage-mesh/selvage/lab/internal/proc"
	"github.com/selvage-mesh/selvage/lab/internal/progress"
	"github.com/selvage-mesh/selvage/lab/internal/state"
)

// grace is how long a program may take to end by itself.
const grace = 3 * time.Second

// entries are the names in a lab's folder that belong to the lab. Anything else in there is somebody's, and stays.
var entries = []string{"etcd", "pki", "node", "logs", "kubeconfig", "audit-policy.yaml", "mesh.yaml", "shop.yaml", labFile}

const (
	labFile  = "lab.json"
	lockFile = "lock"
)

// Down ends the lab in the folder and removes what it made, in whatever state a killed run left it. It says whether there was
// anything to end.
func Down(ctx context.Context, path string, p *progress.Reporter) (found bool, err error) {
	dir, err := state.Open(path)
	if errors.Is(err, state.ErrBroken) {
		// What it said is lost, but everything of a lab is also found by its marker and by the folder's path.
		p.Note(err.Error())
		err = os.Remove(dir.File(labFile))
		found = true
	}
	if err != nil {
		return false, err
	}
	if _, err := os.Stat(dir.Path()); errors.Is(err, fs.ErrNotExist) {
		found = leftovers(dir)
		if found {
			return true, end(ctx, dir, p)
		}
		return false, nil
	}
	if !found && !dir.Exists() && !leftovers(dir) {
		return false, nil
	}
	unlock, err := lock(dir)
	if err != nil {
		return false, err
	}
	defer unlock()
	if err := end(ctx, dir, p); err != nil {
		return true, err
	}
	return true, removeFiles(dir)
}

// lock is dir.Lock with what to do when another command holds it.
func lock(dir *state.Dir) (func(), error) {
	unlock, err := dir.Lock()
	if errors.Is(err, state.ErrBusy) {
		return nil, &fault.Fault{Problem: "lab " + Shown(dir.Path()) + " is being changed", Cause: err,
			Next: "wait for it, or end it with Ctrl-C where it runs, or take another --dir"}
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, &fault.Fault{Problem: "lab " + Shown(dir.Path()) + " belongs to another user", Cause: err, Next: "run it with sudo"}
	}
	return unlock, err
}

// leftovers says whether anything of the lab is there outside its folder.
func leftovers(dir *state.Dir) bool {
	marked, err := proc.Marked(dir.Path())
	_, gone := os.Stat(runDir(dir))
	return gone == nil || netns.Exists(dir.Name()) || node.CgroupExists(dir.Name()) || err == nil && len(marked) > 0
}

// runDir is the folder of the container runtime's sockets.
func runDir(dir *state.Dir) string { return "/run/" + dir.Name() }

// end stops every process of the lab, in an order in which none waits for one that is gone, and undoes what was done to the
// machine. The files stay.
func end(ctx context.Context, dir *state.Dir, p *progress.Reporter) error {
	step := p.Step("ending the lab")
	ids := dir.Lab().Identities
	var errs []error
	stop := func(names ...string) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for _, name := range names {
			if id, ok := ids[name]; ok {
				wg.Go(func() {
					if err := proc.Stop(ctx, id, grace); err != nil {
						mu.Lock()
						errs = append(errs, fmt.Errorf("%s: %w", name, err))
						mu.Unlock()
					}
				})
			}
		}
		wg.Wait()
	}
	stop(forwardSample, forwardMesh, selvaged, node.DNS, node.KubeProxy, node.Kubelet)
	errs = append(errs, node.RemoveCgroup(dir.Name())) // and with it every container
	stop(node.Containerd)
	stop(cluster.Scheduler, cluster.ControllerManager)
	stop(cluster.APIServer) // before etcd: without etcd its orderly end takes a minute
	stop(cluster.Etcd, forwardAPI)
	made := slices.Concat(dir.Lab().Made, inherited(runDir(dir)))
	errs = append(errs, killMarked(ctx, dir), netns.Delete(dir.Name()), os.RemoveAll(runDir(dir)))
	errs = append(errs, removeMade(made))
	if err := errors.Join(errs...); err != nil {
		step.Fail()
		return err
	}
	step.Done("lab ended: no process, network or mount is left")
	return nil
}

// heirloom is the file in a lab's run folder that names folders of the machine which another lab has made and this one uses.
const heirloom = "made"

// removeMade removes folders of the machine that this lab had to make. While another lab with a node runs it has its own
// folders mounted over them, and removing them would unmount those; so that lab is told to remove them at its end.
func removeMade(made []string) error {
	if len(made) == 0 {
		return nil
	}
	if others, _ := filepath.Glob("/run/selvage-*"); len(others) > 0 {
		f, err := os.OpenFile(filepath.Join(others[0], heirloom), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("leave folders to another lab: %w", err)
		}
		defer f.Close()
		_, err = f.WriteString(strings.Join(made, "\n") + "\n")
		return err
	}
	for _, dir := range made {
		_ = os.Remove(dir) // unless somebody has put something into it by now
	}
	return nil
}

// inherited are the folders that other labs have left to this one.
func inherited(run string) []string {
	text, err := os.ReadFile(filepath.Join(run, heirloom))
	if err != nil {
		return nil
	}
	return strings.Fields(string(text))
}

// killMarked ends what is not written down: a process whose start was the last thing that a killed run did, or a child that
// outlived its parent.
func killMarked(ctx context.Context, dir *state.Dir) error {
	const rounds = 5 // a process may start another while it is being killed
	for range rounds {
		ids, err := proc.Marked(dir.Path())
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			return nil
		}
		for _, id := range ids {
			if err := proc.Stop(ctx, id, 0); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("end lab %s: processes with its marker keep appearing", dir.Path())
}

// removeFiles removes the lab's files, and the folder when nothing else is inside.
func removeFiles(dir *state.Dir) error {
	if err := removeEntries(dir, func(string) bool { return true }); err != nil {
		return err
	}
	left, err := os.ReadDir(dir.Path())
	if err == nil && !slices.ContainsFunc(left, func(e os.DirEntry) bool { return e.Name() != lockFile }) {
		return os.RemoveAll(dir.Path())
	}
	return nil
}

func removeEntries(dir *state.Dir, which func(name string) bool) error {
	var errs []error
	for _, name := range entries {
		if which(name) {
			errs = append(errs, os.RemoveAll(dir.File(name)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove lab's files: %w", err)
	}
	return nil
}
