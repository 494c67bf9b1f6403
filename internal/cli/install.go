package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/version"
)

// installFlags are what `install` has beside the flags of every command.
type installFlags struct {
	options    install.Options
	registry   string
	tag        string
	image      string
	proxyImage string
	meshConfig string
	endpoint   string
	policies   string
	requests   map[string]string
	limits     map[string]string
	guards     []string
	setDefault bool
	dryRun     bool
	diff       bool
	wait       bool
	timeout    time.Duration
}

func (a *app) installCommand() *cobra.Command {
	flags := installFlags{options: install.Default(version.Version)}
	cmd := &cobra.Command{
		Use:   "install [flags]",
		Short: "Install the mesh into a cluster, wait for it and probe it",
		Long: "install puts a control plane into the cluster of the kubeconfig's context, waits until it is ready, and then asks\n" +
			"the API server, as a dry run, whether a pod would get its sidecar. It may be repeated: what is right stays as it is.\n\n" +
			"Before it changes anything it lets the API server try every object, and says what is created and which fields change,\n" +
			"with the names of those who have set them since.\n\n" +
			"It changes nothing, and ends with 2, when an object of one of its names exists that Selvage did not make, when you\n" +
			"lack a right, or when the API server would refuse an object. It ends with 1 when all is there but injection does\n" +
			"not work; it then says why.",
		Example: a.examples(`
			selvage install
			selvage install --dry-run                       what would change, field by field
			selvage install --diff -o json                  the same, for a program
			selvage install --dry-run -o yaml > mesh.yaml   the objects, without asking a cluster
			selvage install --revision asm-1234-1           beside other revisions
			selvage install --revision asm-1234-1 --set-default   as the one of istio-injection=enabled
			selvage install --registry registry.example.com/mesh --tag 1.0.0
			selvage install --endpoint 192.0.2.7            the control plane runs there, outside the cluster`),
		Args: atMost(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.installOptions(cmd, &flags); err != nil {
				return err
			}
			if flags.dryRun && !flags.diff && a.output != "" && a.output != "table" {
				return a.printObjects(flags.options)
			}
			return a.runInstall(cmd.Context(), flags)
		},
	}
	f, o := cmd.Flags(), &flags.options
	f.StringVar(&o.Injection, "injection", install.ByWebhook, "how pods get sidecars: webhook, policy (by the API server itself, from Kubernetes 1.36; the webhook does what that cannot), or auto: policy where it can be")
	f.StringVar(&flags.registry, "registry", "docker.io/selvage", "registry and path of the images selvaged and proxy")
	f.StringVar(&flags.tag, "tag", version.Version, "tag of both images")
	f.StringVar(&flags.image, "image", "", "full name of the control plane's image, instead of --registry and --tag")
	f.StringVar(&flags.proxyImage, "proxy-image", "", "full name of the sidecar's image, instead of --registry and --tag")
	f.StringVar(&o.PullPolicy, "pull-policy", o.PullPolicy, "when nodes pull images: Always, IfNotPresent or Never")
	f.Int32Var(&o.Replicas, "replicas", o.Replicas, "replicas of the control plane")
	f.StringVar(&o.ClusterID, "cluster-id", o.ClusterID, "name of this cluster in the mesh")
	f.StringVar(&o.TrustDomain, "trust-domain", o.TrustDomain, "trust domain of the workloads' identities (default: the mesh configuration's, or cluster.local)")
	f.StringToStringVar(&flags.requests, "requests", nil, "what a replica asks for, such as cpu=500m,memory=1Gi (default cpu=100m,memory=128Mi)")
	f.StringToStringVar(&flags.limits, "limits", nil, "what a replica may take, such as memory=4Gi (default no limit)")
	f.StringVar(&o.NativeSidecars, "native-sidecars", "auto", "sidecars as init containers that go on running: auto, true or false")
	f.StringVar(&o.LogLevel, "log-level", "", "log level of the control plane: debug, info, warn or error")
	f.BoolVar(&flags.setDefault, "set-default", false, "make this revision the one that istio-injection=enabled leads to")
	f.BoolVar(&o.EnableNamespacesByDefault, "every-namespace", false, "give sidecars also in namespaces that no label speaks of")
	f.StringVar(&o.Authority.Address, "ca-address", "", "HOST:PORT of another authority that signs workloads' certificates, such as istio-csr's")
	f.StringVar(&o.Authority.Signer, "ca-signer", "", "signer of Kubernetes that signs certificates, such as example.com/mesh")
	f.StringVar(&o.Authority.Roots, "ca-roots", "", "ConfigMap with the roots of another authority (default: istio-ca-root-cert, or of a signer meshConfig.caCertificates)")
	f.StringVar(&o.Authority.TLSSecret, "ca-tls-secret", "", "Secret with the control plane's own certificate (default: istiod-tls, or one that the signer makes)")
	f.StringVar(&flags.meshConfig, "mesh-config", "", "file with a MeshConfig (YAML) that replaces the built-in one")
	f.StringVar(&flags.endpoint, "endpoint", "", "a control plane outside the cluster: ADDRESS[:xds=PORT,webhook=PORT,http=PORT]")
	f.StringVar(&o.WebhookURL, "webhook-url", "", "let the API server call the webhook at this address, such as https://127.0.0.1:15017")
	f.StringVar(&o.StatusAddress, "status-address", "", "HOST:PORT where status finds a control plane outside the cluster (default: where its Service leads)")
	f.BoolVar(&o.SkipCRDs, "skip-crds", false, "use the custom resource definitions of Istio's API that the cluster has")
	f.BoolVar(&o.HeldWebhooks, "held-webhooks", o.HeldWebhooks, "let the API server keep the caBundle of the webhooks right (from Kubernetes 1.36)")
	f.StringSliceVar(&flags.guards, "guard", nil, "GUARD=MODE: Off, Warn (the default), Audit or Deny for the guard meshed, in-use, labels, config or all; may be repeated")
	f.StringVar(&flags.policies, "mutating-policies", o.MutatingPolicies, "with --dry-run -o: version of MutatingAdmissionPolicy in what is printed: v1, v1beta1 or none")
	f.BoolVar(&flags.dryRun, "dry-run", false, "change nothing: show what would change, or with -o yaml or json print the objects")
	f.BoolVar(&flags.diff, "diff", false, "change nothing: show what would change, with -o yaml or json for a program")
	f.BoolVar(&flags.wait, "wait", true, "wait until the control plane is ready and probe it")
	f.DurationVar(&flags.timeout, "timeout", 5*time.Minute, "longest wait for each thing that is waited for")
	return cmd
}

// installOptions fills in what the flags say in another form than the options hold.
func (a *app) installOptions(cmd *cobra.Command, flags *installFlags) error {
	o := &flags.options
	usage := func(err error) error { return &usageError{cmd.CommandPath(), err} }
	switch o.PullPolicy {
	case "Always", "IfNotPresent", "Never":
	default:
		return usage(fmt.Errorf("--pull-policy %q is not Always, IfNotPresent or Never", o.PullPolicy))
	}
	*o = o.WithImages(flags.registry, flags.tag)
	if flags.image != "" {
		o.Image = flags.image
	}
	if flags.proxyImage != "" {
		o.ProxyImage = flags.proxyImage
	}
	o.Revision = a.revision
	if flags.setDefault && revisionName(o.Revision) != install.DefaultRevision {
		o.Tags = []string{inject.DefaultTag}
	}
	if flags.endpoint != "" {
		endpoint, err := install.ParseEndpoint(flags.endpoint)
		if err != nil {
			return usage(err)
		}
		o.Endpoint = endpoint
	}
	if flags.meshConfig != "" {
		data, err := os.ReadFile(flags.meshConfig)
		if err != nil {
			return fmt.Errorf("read --mesh-config: %w", err)
		}
		o.MeshConfig = data
	}
	var err error
	if o.Guards, err = o.Guards.With(flags.guards); err != nil {
		return usage(err)
	}
	if o.MutatingPolicies = flags.policies; flags.policies == "none" {
		o.MutatingPolicies = ""
	}
	if o.Resources.Requests, err = quantities("requests", flags.requests); err != nil {
		return usage(err)
	}
	if o.Resources.Limits, err = quantities("limits", flags.limits); err != nil {
		return usage(err)
	}
	if err := o.Validate(); err != nil {
		return usage(err)
	}
	return a.checkOutput(cmd, "table", "json", "yaml")
}

// quantities reads resources of a container, as in cpu=500m.
func quantities(flag string, values map[string]string) (corev1.ResourceList, error) {
	list := corev1.ResourceList{}
	for name, value := range values {
		q, err := resource.ParseQuantity(value)
		if err != nil {
			return nil, fmt.Errorf("--%s %s=%s: it is no quantity such as 500m or 1Gi", flag, name, value)
		}
		list[corev1.ResourceName(name)] = q
	}
	return list, nil
}

// printObjects renders without a cluster.
func (a *app) printObjects(o install.Options) error {
	objects, err := install.Render(o)
	if err != nil {
		return err
	}
	return a.printManifests(objects)
}

// printManifests prints objects as manifests: YAML, or JSON where that is asked for.
func (a *app) printManifests(objects []*unstructured.Unstructured) error {
	if a.output == "json" {
		list := unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "v1", "kind": "List"}}
		for _, u := range objects {
			list.Items = append(list.Items, *u)
		}
		return a.printJSON(list.UnstructuredContent())
	}
	out, err := install.YAML(objects)
	if err != nil {
		return err
	}
	_, err = a.Stdout.Write(out)
	return err
}

func (a *app) runInstall(ctx context.Context, flags installFlags) error {
	installer, err := a.installer(flags.timeout)
	if err != nil {
		return err
	}
	if flags.dryRun || flags.diff {
		changes, err := installer.Plan(ctx, flags.options)
		if err != nil {
			return err
		}
		return a.printChanges(changes)
	}
	if !flags.wait {
		if err := installer.Apply(ctx, flags.options); err != nil {
			return err
		}
		fmt.Fprintf(a.Stdout, "Selvage %s is applied as revision %s; nothing was waited for.\n", flags.options.Version, revisionName(a.revision))
		return nil
	}
	verdict, err := installer.Install(ctx, flags.options)
	if err != nil {
		return err
	}
	return a.printVerdict(flags.options, verdict)
}

// printChanges shows a plan: a line for each object, and below it one for each field that changes.
func (a *app) printChanges(changes []install.Change) error {
	if a.output == "json" || a.output == "yaml" {
		return a.print(map[string]any{"changes": changes})
	}
	width := 0
	for _, c := range changes {
		width = max(width, len(c.Action))
	}
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintf(&b, "%-*s  %s\n", width, c.Action, c.Object)
		for _, f := range c.Fields {
			fmt.Fprintf(&b, "%-*s    %s\n", width, "", f)
		}
		for _, conflict := range c.Conflicts {
			said := "set back: "
			if c.Kept {
				said = "was edited and stays: "
			}
			fmt.Fprintf(&b, "%-*s    %s%s\n", width, "", said, conflict)
		}
	}
	fmt.Fprintln(&b, install.Summary(changes)+".")
	_, err := io.WriteString(a.Stdout, b.String())
	return err
}

func (a *app) printVerdict(o install.Options, v *install.Verdict) error {
	if a.output == "json" || a.output == "yaml" {
		if err := a.print(v); err != nil {
			return err
		}
	}
	if !v.Injects {
		return &problemsError{fmt.Sprintf("revision %s is installed, but pods do not get sidecars: %s", v.Revision, v.Detail)}
	}
	if a.output == "json" || a.output == "yaml" {
		return nil
	}
	label := "istio-injection=enabled"
	if v.Revision != install.DefaultRevision {
		label = "istio.io/rev=" + v.Revision
	}
	fmt.Fprintf(a.Stdout, "Selvage %s is installed as revision %s, and pods get their sidecars.\n", o.Version, v.Revision)
	fmt.Fprintf(a.Stdout, "Next: kubectl label namespace NAMESPACE %s\n", label)
	fmt.Fprintf(a.Stdout, "      kubectl rollout restart deployment -n NAMESPACE\n")
	fmt.Fprintf(a.Stdout, "      %s status\n", a.called())
	return nil
}

func (a *app) uninstallCommand() *cobra.Command {
	var options install.RemoveOptions
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "uninstall [flags]",
		Short: "Remove a revision of the mesh, and with the last one all of it",
		Long: "uninstall removes what `install` made for one revision, webhooks first, so that pods can be created at every\n" +
			"moment. With the last revision it removes what all of them share. It works without the control plane and may be\n" +
			"repeated. Sidecars that run go on with what they know until their pods are restarted.\n\n" +
			"What is yours stays, and is named: custom resources and their definitions, and the mesh's signing key (Secret\n" +
			"istio-ca-secret), without which a new installation could not talk to running sidecars. --purge removes these too.\n\n" +
			"Namespaces and pods that hang on the revision are named. It ends with 1 when --revision names one that is not there.",
		Example: a.examples(`
			selvage uninstall --dry-run             what would go
			selvage uninstall
			selvage uninstall --revision asm-1234-1
			selvage uninstall --purge               nothing stays`),
		Args: atMost(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(cmd, "table", "json", "yaml"); err != nil {
				return err
			}
			options.Revision = a.revision
			return a.runUninstall(cmd.Context(), options, timeout)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&options.Purge, "purge", false, "also remove custom resources, their definitions, the signing key and the namespace")
	f.BoolVar(&options.DryRun, "dry-run", false, "change nothing: only say what would go")
	f.DurationVar(&timeout, "timeout", 5*time.Minute, "longest wait for each thing that is waited for")
	return cmd
}

func (a *app) installer(timeout time.Duration) (*install.Installer, error) {
	c, err := a.connect()
	if err != nil {
		return nil, err
	}
	return install.New(install.Config{Kubernetes: c.kubernetes, Dynamic: c.dynamic, Progress: a.Stderr, Timeout: timeout})
}

// revisionName is the revision as labels carry it.
func revisionName(revision string) string {
	if revision == "" {
		return install.DefaultRevision
	}
	return revision
}

// print writes v as -o asks.
func (a *app) print(v any) error {
	if a.output == "json" {
		return a.printJSON(v)
	}
	out, err := yaml.Marshal(v)
	if err != nil {
		return fmt.Errorf("render output: %w", err)
	}
	_, err = a.Stdout.Write(out)
	return err
}

func (a *app) printJSON(v any) error {
	encoder := json.NewEncoder(a.Stdout)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}
