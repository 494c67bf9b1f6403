package cli

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/version"
)

// versions is what `version` knows.
type versions struct {
	Client        clientVersion         `json:"client"`
	ControlPlanes []controlPlaneVersion `json:"controlPlanes"`
}

type clientVersion struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
}

type controlPlaneVersion struct {
	Revision string `json:"revision"`
	Version  string `json:"version"` // "" when it did not say
	Ready    string `json:"ready"`   // replicas: "2/2", or "outside" of the cluster
	Detail   string `json:"detail,omitempty"`
}

func (a *app) versionCommand() *cobra.Command {
	var clientOnly bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of this program and of the control planes",
		Long: "version shows which Selvage this program is, and which control planes the cluster of the kubeconfig has. Without a\n" +
			"kubeconfig it shows this program alone; with one whose cluster cannot be reached it ends with 2.",
		Example: a.examples(`
			selvage version
			selvage version --client
			selvage version -o json`),
		Args: atMost(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(cmd, "table", "json", "yaml"); err != nil {
				return err
			}
			v := versions{ControlPlanes: []controlPlaneVersion{}}
			v.Client = clientVersion{Version: version.Version, Commit: version.Commit(), Go: runtime.Version()}
			var err error
			if !clientOnly {
				v.ControlPlanes, err = a.controlPlanes(cmd.Context())
			}
			if shown := a.showVersions(v); shown != nil {
				return shown
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&clientOnly, "client", false, "only this program's")
	return cmd
}

// controlPlanes lists the revisions that the cluster has; none when there is no kubeconfig.
func (a *app) controlPlanes(ctx context.Context) ([]controlPlaneVersion, error) {
	list := []controlPlaneVersion{}
	c, err := a.connect()
	if err != nil {
		var none *kubeconfigError
		if errors.As(err, &none) && none.isEmpty() && a.kubeconfig == "" && a.context == "" {
			return list, nil
		}
		return list, err
	}
	options := metav1.ListOptions{LabelSelector: a.controlPlane()}
	services, err := c.kubernetes.CoreV1().Services(install.Namespace).List(ctx, options)
	if err != nil {
		return list, fmt.Errorf("list services of the control plane: %w", err)
	}
	deployments, err := c.kubernetes.AppsV1().Deployments(install.Namespace).List(ctx, options)
	if err != nil {
		return list, fmt.Errorf("list deployments of the control plane: %w", err)
	}
	deployments.Items = ours(deployments.Items)
	for _, s := range ours(services.Items) {
		revision := s.Labels[label.IoIstioRev.Name]
		n := slices.IndexFunc(deployments.Items, func(d appsv1.Deployment) bool { return d.Labels[label.IoIstioRev.Name] == revision })
		if n >= 0 {
			list = append(list, fromDeployment(revision, &deployments.Items[n]))
			continue
		}
		list = append(list, fromOutside(ctx, c, revision, &s))
	}
	return list, nil
}

func fromDeployment(revision string, d *appsv1.Deployment) controlPlaneVersion {
	v := controlPlaneVersion{Revision: revision, Ready: fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, d.Status.Replicas)}
	for _, c := range d.Spec.Template.Spec.Containers {
		v.Detail = c.Image
		if n := strings.LastIndex(c.Image, ":"); n > strings.LastIndex(c.Image, "/") {
			v.Version = c.Image[n+1:]
		}
	}
	return v
}

// fromOutside asks a control plane that does not run in the cluster.
func fromOutside(ctx context.Context, c *connection, revision string, service *corev1.Service) controlPlaneVersion {
	v := controlPlaneVersion{Revision: revision, Ready: "outside", Detail: "its Service leads nowhere"}
	addresses, err := c.leadsTo(ctx, service)
	if err != nil || len(addresses) == 0 {
		return v
	}
	v.Detail = "at " + addresses[0]
	token, err := readerToken(ctx, c)
	if err != nil {
		return v
	}
	answer, err := read(ctx, addresses[0], token)
	if err != nil {
		v.Detail += ", does not answer"
		return v
	}
	v.Version = answer.Version
	return v
}

func (a *app) showVersions(v versions) error {
	if a.output == "json" || a.output == "yaml" {
		return a.print(v)
	}
	commit := ""
	if v.Client.Commit != "" {
		commit = "commit " + v.Client.Commit[:min(12, len(v.Client.Commit))] + ", "
	}
	fmt.Fprintf(a.Stdout, "selvage %s (%s%s)\n", v.Client.Version, commit, v.Client.Go)
	if len(v.ControlPlanes) == 0 {
		return nil
	}
	fmt.Fprintln(a.Stdout)
	t := table{header: []string{"REVISION", "VERSION", "READY", "CONTROL PLANE"}}
	for _, p := range v.ControlPlanes {
		t.add(p.Revision, dash(p.Version), p.Ready, p.Detail)
	}
	return t.write(a.Stdout)
}
