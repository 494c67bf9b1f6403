package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/selvage-mesh/selvage/lab/internal/cluster"
	"github.com/selvage-mesh/selvage/lab/internal/image"
	"github.com/selvage-mesh/selvage/lab/internal/node"
	"github.com/selvage-mesh/selvage/lab/internal/proc"
	"github.com/selvage-mesh/selvage/lab/internal/state"
)

// runtime brings up the container runtime.
func (l *Lab) runtime(ctx context.Context) error {
	if l.level < 2 {
		return nil
	}
	step := l.Progress.Step("starting the container runtime")
	if err := l.startRuntime(ctx); err != nil {
		step.Fail()
		return err
	}
	step.Done("containerd runs")
	return nil
}

func (l *Lab) startRuntime(ctx context.Context) error {
	plugins, err := pluginDir()
	if err != nil {
		return err
	}
	l.node = node.Config{
		Dir: l.dir.File("node"), Logs: l.dir.File("logs"), Run: runDir(l.dir), Cgroup: l.dir.Name(),
		PauseImage: l.catalogue().Pause().Name, Plugins: plugins,
		PKI: l.pki(), API: l.plane.API(), Kubeconfig: l.plane.Kubeconfig,
	}
	if err := l.node.Write(); err != nil {
		return err
	}
	if err := node.CreateCgroup(l.node.Cgroup); err != nil {
		return err
	}
	path, err := lookPath(node.Containerd)
	if err != nil {
		return err
	}
	if err := l.ensure(program{name: node.Containerd, path: path, args: l.node.Args(node.Containerd), node: true}); err != nil {
		return err
	}
	return l.await(ctx, node.Containerd, startLimit, func(ctx context.Context) (bool, error) {
		err := l.ctr(ctx, "version")
		return err == nil, err
	})
}

// enterNode moves the calling thread into the node's mount namespace, or makes it.
func (l *Lab) enterNode() error {
	ids := l.dir.Lab().Identities
	for _, name := range []string{node.Containerd, node.Kubelet} {
		if id := ids[name]; id.Alive() {
			return node.Join(id.PID)
		}
	}
	made, err := l.node.Enclose()
	return errors.Join(err, l.dir.Update(func(s *state.Lab) { s.Made = append(s.Made, made...) }))
}

// nodeReady brings up the kubelet, kube-proxy and the cluster's DNS.
func (l *Lab) nodeReady(ctx context.Context) error {
	if l.level < 2 {
		return nil
	}
	step := l.Progress.Step("starting the node")
	if err := together(ctx, l.kubelet, l.kubeProxy, l.dns); err != nil {
		step.Fail()
		return err
	}
	step.Done("node Ready, with Services and DNS")
	return nil
}

func (l *Lab) kubelet(ctx context.Context) error {
	err := l.ensure(program{name: node.Kubelet, path: l.kube(), args: l.node.Args(node.Kubelet), node: true})
	if err != nil {
		return err
	}
	return l.await(ctx, node.Kubelet, startLimit, func(ctx context.Context) (bool, error) {
		var n struct {
			Status struct {
				Conditions []struct{ Type, Status, Message string }
			}
		}
		if err := l.api.Get(ctx, "/api/v1/nodes/"+cluster.Node, &n); err != nil {
			return false, err
		}
		for _, c := range n.Status.Conditions {
			if c.Type == "Ready" {
				return c.Status == "True", errors.New("node is not Ready: " + c.Message)
			}
		}
		return false, errors.New("node is not Ready: it has not said anything yet")
	})
}

func (l *Lab) kubeProxy(ctx context.Context) error {
	if err := l.ensure(program{name: node.KubeProxy, path: l.kube(), args: l.node.Args(node.KubeProxy)}); err != nil {
		return err
	}
	return l.await(ctx, node.KubeProxy, startLimit, l.answers("127.0.0.1:10256", "/healthz"))
}

func (l *Lab) dns(ctx context.Context) error {
	for path, o := range node.DNSObjects() {
		if err := l.api.Apply(ctx, path, o); err != nil {
			return fmt.Errorf("set up cluster DNS: %w", err)
		}
	}
	if err := l.ensure(program{name: node.DNS, path: l.binary("selvage-dns"), args: l.node.Args(node.DNS)}); err != nil {
		return err
	}
	return l.await(ctx, node.DNS, startLimit, l.answers(node.DNSReady, "/ready"))
}

// images builds the images and gives the node those that it does not have.
func (l *Lab) images(ctx context.Context) error {
	if l.level < 2 {
		return nil
	}
	step := l.Progress.Step("building and loading the images")
	specs, err := l.specs()
	if err != nil {
		step.Fail()
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, spec := range specs {
		group.Go(func() error { return l.load(ctx, spec) })
	}
	if err := group.Wait(); err != nil {
		step.Fail()
		return err
	}
	step.Done(fmt.Sprintf("%d images loaded", len(specs)))
	return nil
}

// restart lets the Deployments of a namespace take new images that came under the names of old ones.
func (l *Lab) restart(ctx context.Context, namespace string, images ...string) error {
	for _, image := range images {
		if _, ok := l.renewed.Load(image); ok {
			err := l.run(ctx, "kubectl", "rollout", "restart", "deployment", "--kubeconfig", l.dir.File("kubeconfig"), "--namespace", namespace)
			if err != nil {
				return err
			}
			return l.await(ctx, "the new pods of "+namespace, startLimit, func(ctx context.Context) (bool, error) {
				_, err := l.deployments(ctx, namespace)
				return err == nil, err
			})
		}
	}
	return nil
}

func (l *Lab) catalogue() image.Catalogue { return image.Catalogue{Bin: l.Bin, Tag: l.Tag} }

// specs lists the images. Without a mesh only those whose programs have been built.
func (l *Lab) specs() ([]image.Spec, error) {
	c := l.catalogue()
	specs := []image.Spec{c.Pause()}
	if l.programs("selvaged") == nil {
		specs = append(specs, c.Selvaged())
	}
	if l.programs("sample") == nil {
		specs = append(specs, c.Sample())
	}
	if l.programs("selvage-agent", "envoy") == nil {
		proxy, err := c.Proxy()
		if err != nil {
			return nil, err
		}
		specs = append(specs, proxy)
	}
	return specs, nil
}

func (l *Lab) load(ctx context.Context, spec image.Spec) error {
	file, key, err := spec.Archive(filepath.Join(l.Cache, "images"))
	if err != nil {
		return err
	}
	if l.dir.Lab().Images[spec.Name] == key {
		return nil
	}
	args := []string{"images", "import"}
	if s := l.node.Snapshotter(); s != node.DefaultSnapshotter {
		args = append(args, "--snapshotter", s)
	}
	if l.dir.Lab().Images[spec.Name] != "" {
		l.renewed.Store(spec.Name, true)
	}
	if err := l.ctr(ctx, append(args, file)...); err != nil {
		return fmt.Errorf("load image %s: %w", spec.Name, err)
	}
	return l.dir.Update(func(s *state.Lab) { s.Images[spec.Name] = key })
}

// ctr runs containerd's own client.
func (l *Lab) ctr(ctx context.Context, args ...string) error {
	path, err := lookPath("ctr")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, append([]string{"--address", l.node.Socket(), "--namespace", "k8s.io"}, args...)...)
	cmd.Env = proc.Environ(l.dir.Path())
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run ctr %s: %w: %s", args[0], err, strings.TrimSpace(errs.String()))
	}
	return nil
}
