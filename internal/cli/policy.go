package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/policy"
	"github.com/selvage-mesh/selvage/internal/version"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Show the admission policies, and what they do to a pod",
		Long: "policy shows what the API server does for the mesh by itself: hold the webhooks, guard what must be meshed, inject\n" +
			"sidecars. render prints the policies, explain says what they do to a pod.",
		Args: subcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.policyRenderCommand(), a.policyExplainCommand())
	return cmd
}

func (a *app) policyRenderCommand() *cobra.Command {
	var settings settingsFlags
	var guards []string
	var parameters bool
	cmd := &cobra.Command{
		Use:   "render",
		Short: "Print the admission policies of a revision",
		Long: "render prints the admission policies, their bindings, parameters and the parameters' definition, as `install\n" +
			"--injection policy` applies them. Parameters are empty, since what is in them is the control plane's to keep;\n" +
			"--parameters shows what the control plane would put into that of injection, of the settings that inject would use.\n\n" +
			"It ends with 1 when the settings ask for what a policy cannot do.",
		Example: a.examples(`
			selvage policy render | kubectl diff -f -
			selvage policy render --revision asm-1234-1 --parameters --offline`),
		Args: atMost(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(cmd, "yaml", "json"); err != nil {
				return err
			}
			s, err := a.injectSettings(cmd.Context(), settings)
			if err != nil {
				return err
			}
			return a.renderPolicies(s.config, guards, parameters)
		},
	}
	f := cmd.Flags()
	a.settingsFlags(cmd, &settings)
	f.StringSliceVar(&guards, "guard", nil, "GUARD=MODE, as for install; may be repeated")
	f.BoolVar(&parameters, "parameters", false, "fill in the parameter of injection")
	return cmd
}

// settingsFlags adds the flags that say where the injector's settings are.
func (a *app) settingsFlags(cmd *cobra.Command, s *settingsFlags) {
	f := cmd.Flags()
	f.StringVar(&s.mesh, "mesh-config", "", "file with the mesh configuration: the ConfigMap istio, or its key mesh")
	f.StringVar(&s.config, "inject-config", "", "file with the injector's rules: the ConfigMap istio-sidecar-injector, or its key config")
	f.StringVar(&s.values, "values", "", "file with the injector's values: the ConfigMap istio-sidecar-injector, or its key values")
	f.BoolVar(&s.offline, "offline", false, "ask no cluster: settings of a fresh installation")
}

func (a *app) renderPolicies(config *inject.Config, guards []string, parameters bool) error {
	template, problems := policy.NewTemplate(config)
	if template == nil {
		for _, p := range problems {
			fmt.Fprintln(a.Stderr, p)
		}
		return &problemsError{"these settings cannot be injected by a policy: the webhook injects"}
	}
	o := install.Default(version.Version)
	o.Revision, o.SkipCRDs, o.Injection = config.Revision(), true, install.ByPolicy
	var err error
	if o.Guards, err = o.Guards.With(guards); err != nil {
		return err
	}
	objects, err := install.Render(o)
	if err != nil {
		return err
	}
	kinds := []string{policy.Mutating, policy.MutatingBinding, policy.Validating, policy.ValidatingBinding, policy.ParameterKind.Kind, "CustomResourceDefinition"}
	objects = slices.DeleteFunc(objects, func(u *unstructured.Unstructured) bool { return !slices.Contains(kinds, u.GetKind()) })
	for _, u := range objects {
		if parameters && u.GetKind() == policy.ParameterKind.Kind && u.GetName() == policy.InjectionName(config.Revision()) {
			u.Object["spec"] = template.Parameter()
		}
	}
	return a.printManifests(objects)
}

func (a *app) policyExplainCommand() *cobra.Command {
	var flags injectFlags
	cmd := &cobra.Command{
		Use:   "explain OBJECT... | -f FILE|DIR|-",
		Short: "Say what the admission policies do to a pod, and why",
		Long: "explain says who puts the sidecar into the pods of an object, the API server by its policy or the control plane by its\n" +
			"webhook, which label, annotation or field made it so, and what of the pod's own wishes the policy carries out.\n" +
			"OBJECT is KIND/NAME, POD or NAMESPACE. With -f it looks at files, as if the revision injected by policy.\n\n" +
			"It ends with 1 when an object asks for a sidecar and does not get it.",
		Example: a.examples(`
			selvage policy explain deployment/web -n shop
			selvage policy explain -f shop.yaml`),
		ValidArgsFunction: a.completeChecked,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.checkOutput(cmd, "table", "json", "yaml"); err != nil {
				return err
			}
			if (len(args) > 0) == (len(flags.files) > 0) {
				return &usageError{cmd.CommandPath(), errors.New("name objects of the cluster, or files with -f")}
			}
			return a.runExplain(cmd.Context(), flags, args)
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&flags.files, "file", "f", nil, "file or folder with manifests; - is standard input; may be repeated")
	f.BoolVarP(&flags.recursive, "recursive", "R", false, "read the folders in a folder too")
	a.settingsFlags(cmd, &flags.settings)
	return cmd
}

func (a *app) runExplain(ctx context.Context, flags injectFlags, args []string) (err error) {
	var list []checked
	explain := &explainer{templates: map[string]*policy.Template{}, why: map[string]string{}}
	if len(flags.files) > 0 {
		list, err = a.checkFiles(ctx, flags, explain)
	} else {
		list, err = a.checkCluster(ctx, args, explain)
	}
	if err != nil {
		return err
	}
	if a.output == "json" || a.output == "yaml" {
		err = a.print(map[string]any{"objects": list})
	} else {
		for i, c := range list {
			if i > 0 {
				fmt.Fprintln(a.Stdout)
			}
			sayExplained(a.Stdout, c)
		}
	}
	if err == nil && slices.ContainsFunc(list, func(c checked) bool { return c.Problem }) {
		return &problemsError{}
	}
	return err
}

// sayExplained is one object in words.
func sayExplained(w io.Writer, c checked) {
	name := c.Namespace + "/" + c.Name
	if c.Namespace == "" {
		name = c.Name
	}
	fmt.Fprintf(w, "%s %s\n", c.Kind, name)
	line := func(what, text string) {
		if text != "" {
			fmt.Fprintf(w, "  %-9s %s\n", what, text)
		}
	}
	switch {
	case c.By == install.ByPolicy:
		line("sidecar", fmt.Sprintf("yes, the API server puts it in by MutatingAdmissionPolicy %s; no webhook is called", policy.InjectionName(c.Revision)))
	case c.Sidecar && c.By == install.ByWebhook:
		line("sidecar", "yes, the webhook puts it in: "+c.Left)
	case c.Sidecar:
		line("sidecar", "yes, it is there already; the policy sends probes of containers that come later to the agent, and changes nothing else")
	default:
		line("sidecar", "no")
	}
	line("why", c.Detail)
	if c.Asks != c.Detail {
		line("asks", c.Asks)
	}
	for _, effect := range c.Effects {
		line("does", effect)
	}
	for _, refused := range c.Refused {
		line("refused", refused)
	}
	for _, warning := range c.Warnings {
		line("warning", warning)
	}
	line("next", c.Next)
}

// explainer knows which revisions inject by policy. A nil one says nothing.
type explainer struct {
	templates map[string]*policy.Template
	why       map[string]string // of a revision without a template in force
}

// whole takes a configuration for that of every revision.
func (e *explainer) whole(config *inject.Config) {
	if e != nil {
		e.take(config.Revision(), config)
	}
}

func (e *explainer) take(revision string, config *inject.Config) {
	template, problems := policy.NewTemplate(config)
	if template == nil {
		e.why[revision] = because(problems)
		return
	}
	e.templates[revision] = template
}

func because(problems []diag.Problem) string {
	texts := make([]string, len(problems))
	for i, p := range problems {
		texts[i] = strings.TrimPrefix(p.Field, "data.") + ": " + p.Detail
	}
	return strings.Join(texts, "; ")
}

// live looks which revisions have a template in force.
func (e *explainer) live(ctx context.Context, c *connection, configs map[string]*inject.Config) error {
	if e == nil {
		return nil
	}
	for revision, config := range configs {
		name := policy.InjectionName(revision)
		u, err := c.dynamic.Resource(policy.ParameterResource).Get(ctx, name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("read AdmissionParameter %s: %w", name, err)
		}
		if err != nil {
			e.why[revision] = "revision " + revision + " is installed without injection by policy"
			continue
		}
		if template, has, _ := unstructured.NestedMap(u.Object, "spec", "injection"); !has || len(template) == 0 {
			e.why[revision] = "AdmissionParameter " + name + " has no template in force (selvage status and the control plane's log say why)"
			continue
		}
		if config != nil {
			e.take(revision, config)
		}
	}
	return nil
}

// explain says who injects a pod that is to have a sidecar.
func (e *explainer) explain(pod *corev1.Pod, revision string, out *checked) {
	if e == nil || len(out.Refused) > 0 {
		return
	}
	template := e.templates[revision]
	if template == nil {
		out.By, out.Left = install.ByWebhook, e.why[revision]
		return
	}
	if out.Left = template.Left(pod); out.Left != "" {
		out.By = install.ByWebhook
		return
	}
	out.By, out.Effects = install.ByPolicy, template.Effects(pod)
}
