// Package lab brings a whole lab up and down: a network of its own, a Kubernetes, at level 2 a node with its container
// runtime, the mesh and the sample. It is the order of things; the other packages know how each thing is done.
package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/selvage-mesh/selvage/lab/internal/cluster"
	"github.com/selvage-mesh/selvage/lab/internal/fault"
	"github.com/selvage-mesh/selvage/lab/internal/kubeapi"
	"github.com/selvage-mesh/selvage/lab/internal/netns"
	"github.com/selvage-mesh/selvage/lab/internal/node"
	"github.com/selvage-mesh/selvage/lab/internal/pki"
	"github.com/selvage-mesh/selvage/lab/internal/proc"
	"github.com/selvage-mesh/selvage/lab/internal/progress"
	"github.com/selvage-mesh/selvage/lab/internal/state"
)

// The programs of a lab beside those of the control plane, as lab.json names them.
const (
	forwardAPI    = "forward"      // publishes the API server
	forwardMesh   = "forward-mesh" // publishes the control plane of the mesh
	forwardSample = "forward-sample"
	selvaged      = "selvaged" // at level 1 only: at level 2 it is a Deployment
)

// Config says what kind of lab.
type Config struct {
	Dir        string
	Level      Level
	Revision   string
	Kubernetes string // a version, "" for the default one
	Mesh       bool
	Sample     bool
	// MachineNetwork keeps a level 1 lab on the machine's loopback even where it could have a network of its own.
	MachineNetwork bool
	// Bin is the folder with the product's and the lab's programs, Samples the one with the sample's manifests.
	Bin, Samples string
	// Cache is where image archives are kept, Tag is that of the images.
	Cache, Tag string
	Progress   *progress.Reporter
	// Program is how the user runs this one, such as bin/selvage: for messages that say what to type.
	Program string
}

// Lab is one lab on its way up.
type Lab struct {
	Config
	dir     *state.Dir
	level   int
	network string         // the name of the network namespace, "" for the machine's own network
	plane   cluster.Config // of the control plane
	node    node.Config    // at level 2
	api     *kubeapi.Client
	started sync.Map // name of a program → its *proc.Running, for those that this run started
	renewed sync.Map // names of images that the node had, of other content
}

// program is one to keep running.
type program struct {
	name  string
	path  string
	args  []string
	env   []string
	files []*os.File
	node  bool // it runs in the node's mount namespace
}

// network is that of every lab which has one of its own.
func network() netns.Network {
	return netns.Network{Device: "lab", Address: parseIP(cluster.Host), Ranges: ranges(cluster.ServiceRange, cluster.PodRange)}
}

// ensure starts the program unless it runs, and writes it down.
func (l *Lab) ensure(p program) error {
	id, known := l.dir.Lab().Identities[p.name]
	if known && id.Alive() {
		return nil
	}
	logs := l.dir.File("logs")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	var r *proc.Running
	err := netns.Do(l.network, func() (err error) {
		if p.node {
			if err := l.enterNode(); err != nil {
				return err
			}
		}
		r, err = proc.Start(proc.Command{
			Lab: l.dir.Path(), Path: p.path, Args: p.args, Env: append(p.env, "PATH="+path()), Files: p.files,
			Log: filepath.Join(logs, p.name+".log"),
		})
		return err
	})
	if err != nil {
		return err
	}
	if known {
		l.Progress.Note("mended: " + p.name + " had died, started again")
	}
	return l.record(p.name, r)
}

func (l *Lab) record(name string, r *proc.Running) error {
	l.started.Store(name, r)
	return l.dir.Update(func(s *state.Lab) {
		s.Processes[name] = r.PID
		s.Identities[name] = r.ID
	})
}

// await polls check until it says true. It fails when the program ends before, or after limit.
func (l *Lab) await(ctx context.Context, name string, limit time.Duration, check func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not ready after %v", limit))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if r, ok := l.started.Load(name); ok {
		done := make(chan struct{})
		defer close(done)
		go func() {
			select {
			case <-r.(*proc.Running).Exited():
				stop(r.(*proc.Running).Failure())
			case <-done:
			}
		}()
	}
	const interval = 50 * time.Millisecond
	err := kubeapi.Poll(ctx, interval, func(ctx context.Context) (bool, error) {
		ok, err := check(ctx)
		if full := l.room(); !ok && full != nil {
			stop(full) // programs do not end for want of room: they wait
		}
		return ok, err
	})
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return err
		}
		if f := (*fault.Fault)(nil); errors.As(err, &f) {
			return f
		}
		next := "its log: " + l.shown("logs", name+".log")
		if _, missing := os.Stat(l.dir.File(filepath.Join("logs", name+".log"))); missing != nil { // no program of ours
			next = fmt.Sprintf("look with %[1]s status and bin/kubectl get pods -A, or start afresh: %[1]s down, then %[1]s up", l.Program)
		}
		return &fault.Fault{Problem: name + " did not come up", Next: next, Cause: err}
	}
	return nil
}

// room fails when the file system of the lab's folder is full.
func (l *Lab) room() error {
	free, err := free(l.dir.Path())
	if err != nil {
		return nil //nolint:nilerr // what cannot be asked is no reason to stop
	}
	if free >= 8<<20 {
		return nil
	}
	return fault.New(fmt.Sprintf("make room, or choose another file system with --dir; then %s up", l.Program),
		"the file system of %s is full: %d KiB are free", Shown(l.dir.Path()), free>>10)
}

// path is the search path of the lab's programs: administrators' programs are not on every user's.
func path() string { return os.Getenv("PATH") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin" }

// shown is a path of the lab's folder as a user at this working directory would write it.
func (l *Lab) shown(elem ...string) string { return Shown(l.dir.File(elem...)) }

// Shown shortens an absolute path to a relative one where that is shorter.
func Shown(path string) string {
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, path); err == nil && len(rel) < len(path) {
			return rel
		}
	}
	return path
}

// binary returns the path of a program in the lab's bin folder.
func (l *Lab) binary(name string) string { return filepath.Join(l.Bin, name) }

// kube returns the path of the multi-call Kubernetes.
func (l *Lab) kube() string { return l.binary(kubeName(l.Kubernetes)) }

// kubeName is the file of a Kubernetes version, as lab/build.sh names it.
func kubeName(version string) string {
	if version == "" || version == DefaultKubernetes {
		return "selvage-kube"
	}
	return "selvage-kube-" + version
}

// pki returns the folder of the lab's certificates.
func (l *Lab) pki() pki.Set { return pki.Set{Dir: l.dir.File("pki")} }
