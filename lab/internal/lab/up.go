package lab

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/selvage-mesh/selvage/lab/internal/cluster"
	"github.com/selvage-mesh/selvage/lab/internal/fault"
	"github.com/selvage-mesh/selvage/lab/internal/netns"
	"github.com/selvage-mesh/selvage/lab/internal/node"
	"github.com/selvage-mesh/selvage/lab/internal/proc"
	"github.com/selvage-mesh/selvage/lab/internal/state"
)

// DefaultKubernetes is the version built when none is named; lab/build.sh has the same.
const DefaultKubernetes = "1.37.2"

// Up brings the lab up, or checks and mends the one that is there, and returns when all of it is ready. When it fails, or ctx
// ends, a lab that it began is ended again; its logs stay.
func Up(ctx context.Context, cfg Config) (*state.Dir, error) {
	dir, err := state.Open(cfg.Dir)
	if errors.Is(err, fs.ErrPermission) {
		return nil, &fault.Fault{Problem: "cannot read lab " + cfg.Dir, Cause: err, Next: "choose another folder with --dir, or run it with sudo"}
	}
	if err != nil {
		return nil, &fault.Fault{Problem: "cannot read lab " + cfg.Dir, Cause: err, Next: cfg.Program + " down --dir " + cfg.Dir}
	}
	_, statErr := os.Stat(dir.Path())
	if err := prepareDir(dir); err != nil {
		if errors.Is(statErr, fs.ErrNotExist) { // leave nothing behind; what cannot be made cannot be removed either
			_ = removeFiles(dir)
		}
		return nil, err
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()

	const tries = 3
	for try := 1; ; try++ {
		l := &Lab{Config: cfg, dir: dir}
		fresh, err := l.settle(ctx)
		if err != nil {
			if errors.Is(statErr, fs.ErrNotExist) { // nothing was started: leave no folder either
				err = errors.Join(err, removeFiles(dir))
			}
			return nil, err
		}
		if err = l.up(ctx); err == nil {
			return dir, dir.Update(func(s *state.Lab) { s.Ready = true })
		}
		if ctx.Err() != nil {
			err = &fault.Fault{Problem: "interrupted", Next: "run it again when you like"}
		}
		if !fresh {
			return nil, err
		}
		if e := l.abandon(ctx); e != nil {
			return nil, errors.Join(err, e)
		}
		if try == tries || !portTaken(err) {
			return nil, err
		}
		cfg.Progress.Note("another program took a port in the meantime: trying again with others")
	}
}

// portTaken says whether a program of the lab ended because a port that was free has been taken since.
func portTaken(err error) bool { return strings.Contains(err.Error(), "address already in use") }

// up is the order of things. What does not wait for another runs at the same time.
func (l *Lab) up(ctx context.Context) error {
	if err := l.base(ctx); err != nil {
		return err
	}
	api, runtime := make(chan struct{}), make(chan struct{})
	err := together(ctx,
		inTurn(l.serve, done(api), l.control),
		inTurn(l.runtime, done(runtime), l.images),
		inTurn(until(api), until(runtime), l.nodeReady),
	)
	if err != nil {
		return err
	}
	return inTurn(l.mesh, l.sample)(ctx)
}

// step is a part of up.
type step = func(context.Context) error

// inTurn runs the steps one after the other, up to the first that fails.
func inTurn(steps ...step) step {
	return func(ctx context.Context) error {
		for _, s := range steps {
			if err := s(ctx); err != nil {
				return err
			}
		}
		return nil
	}
}

// done tells those who wait until it.
func done(c chan struct{}) step {
	return func(context.Context) error {
		close(c)
		return nil
	}
}

func until(c chan struct{}) step {
	return func(ctx context.Context) error {
		select {
		case <-c:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// together runs the steps at the same time and returns the first error, which ends the others.
func together(ctx context.Context, steps ...step) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range steps {
		group.Go(func() error { return s(ctx) })
	}
	return group.Wait()
}

// settle decides between a new lab and the one that is there, after ending one that cannot be used.
func (l *Lab) settle(ctx context.Context) (fresh bool, err error) {
	was := l.dir.Lab()
	if l.dir.Exists() && was.Ready && usable(was) {
		if err := l.same(was); err != nil {
			return false, err
		}
		l.level, l.network = was.Level, was.Namespace
		return false, l.complete(l.level)
	}
	if l.dir.Exists() || leftovers(l.dir) {
		if !was.Failed {
			l.Progress.Note("a lab that did not end properly is here: ending it first")
		}
		if err := end(ctx, l.dir, l.Progress); err != nil {
			return false, err
		}
		if err := removeFiles(l.dir); err != nil {
			return false, err
		}
		if err := prepareDir(l.dir); err != nil {
			return false, err
		}
	}
	if l.level, err = l.choose(); err != nil {
		return false, err
	}
	host := "127.0.0.1"
	if l.level == 2 || netns.Possible() && !l.MachineNetwork {
		l.network, host = l.dir.Name(), cluster.Host
	}
	return true, l.dir.Update(func(s *state.Lab) {
		*s = state.Lab{Addresses: map[string]string{}, Processes: map[string]int{}, Identities: map[string]proc.ID{}}
		s.Level, s.Namespace, s.Host, s.Revision = l.level, l.network, host, l.Revision
		if l.level == 2 {
			s.Cgroup, s.Run = l.dir.Name(), runDir(l.dir)
		}
	})
}

// usable says whether a lab that was ready can be mended: not after a reboot, which took its network and its data's safety.
func usable(was state.Lab) bool {
	api, ok := was.Identities[cluster.Etcd]
	if !ok {
		return false
	}
	self, err := proc.Identify(os.Getpid())
	if err != nil || self.Boot != api.Boot || was.Namespace != "" && !netns.Exists(was.Namespace) {
		return false
	}
	// The mounts of a node live as long as one of these.
	return was.Level < 2 || was.Identities[node.Containerd].Alive() || was.Identities[node.Kubelet].Alive()
}

// same refuses to turn a running lab into another kind of lab.
func (l *Lab) same(was state.Lab) error {
	next := l.Program + " down --dir " + Shown(l.dir.Path()) + ", or take another --dir"
	if l.Level != LevelAuto && int(l.Level) != was.Level {
		return fault.New(next, "a lab of level %d runs in %s, and level %d was asked for", was.Level, Shown(l.dir.Path()), l.Level)
	}
	if l.Kubernetes != "" && l.Kubernetes != was.Kubernetes {
		return fault.New(next, "a lab with Kubernetes %s runs in %s, and %s was asked for", was.Kubernetes, Shown(l.dir.Path()), l.Kubernetes)
	}
	if l.Mesh && was.Mesh && l.Revision != was.Revision {
		return fault.New(next, "a lab with revision %q runs in %s, and %q was asked for", was.Revision, Shown(l.dir.Path()), l.Revision)
	}
	l.Kubernetes = was.Kubernetes
	l.Progress.Note("a lab runs in " + Shown(l.dir.Path()) + " already: checking it")
	return nil
}

// abandon ends what a failed up began. The logs stay for whoever wants to know why, until the next up or down.
func (l *Lab) abandon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := end(ctx, l.dir, l.Progress); err != nil {
		return err
	}
	if err := removeEntries(l.dir, func(name string) bool { return name != "logs" && name != labFile }); err != nil {
		return err
	}
	return l.dir.Update(func(s *state.Lab) { *s = state.Lab{Failed: true} })
}

// free is how many bytes the file system of a path has left for this user.
func free(path string) (uint64, error) {
	var s unix.Statfs_t
	err := unix.Statfs(path, &s)
	return s.Bavail * uint64(s.Bsize), err
}

// prepareDir makes the folder. One that holds other things than a lab is refused: a lab's files are removed by name afterwards.
func prepareDir(dir *state.Dir) error {
	shown := Shown(dir.Path())
	if err := os.MkdirAll(dir.Path(), 0o755); err != nil {
		return &fault.Fault{Problem: "cannot make folder " + shown, Cause: err, Next: "choose another with --dir"}
	}
	entries, err := os.ReadDir(dir.Path())
	if err != nil {
		return &fault.Fault{Problem: "cannot read folder " + shown, Cause: err, Next: "choose another with --dir"}
	}
	for _, e := range entries {
		if e.Name() != lockFile && !dir.Exists() {
			return fault.New("choose a folder that is empty, or that does not exist yet, with --dir",
				"folder %s holds other things than a lab (%s)", shown, e.Name())
		}
	}
	const want = 2 << 30
	if free, err := free(dir.Path()); err == nil && !dir.Lab().Ready && free < want {
		return fault.New("make room, or choose another file system with --dir",
			"the file system of %s has %d MiB free, and a lab wants 2048", shown, free>>20)
	}
	probe := dir.File(lockFile)
	f, err := os.OpenFile(probe, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return &fault.Fault{Problem: "cannot write into folder " + shown, Cause: err, Next: "choose another with --dir, or run it with sudo"}
	}
	f.Close()
	return nil
}
