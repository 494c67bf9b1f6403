package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"istio.io/api/label"
)

// completionTimeout is how long a person waits for the shell to complete a word.
const completionTimeout = 2 * time.Second

// registerCompletions completes what the kubeconfig and the cluster know. Completion never fails: it offers nothing then.
func (a *app) registerCompletions(root *cobra.Command) {
	fixed := func(values ...string) cobra.CompletionFunc {
		return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return values, cobra.ShellCompDirectiveNoFileComp
		}
	}
	for name, complete := range map[string]cobra.CompletionFunc{
		"output": fixed("table", "json", "yaml"), "context": a.completeContexts, "namespace": a.completeNamespaces, "revision": a.completeRevisions,
	} {
		if err := root.RegisterFlagCompletionFunc(name, complete); err != nil {
			panic("register completion of --" + name + ": " + err.Error()) // the flag exists
		}
	}
}

func (a *app) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	raw, err := a.clientConfig().RawConfig()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for name := range raw.Contexts {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeNamespaces(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.ask(cmd, func(ctx context.Context, c *connection) (names []string) {
		list, err := c.kubernetes.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil
		}
		for _, ns := range list.Items {
			names = append(names, ns.Name)
		}
		return names
	})
}

func (a *app) completeRevisions(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.ask(cmd, func(ctx context.Context, c *connection) (names []string) {
		a.revision = ""
		list, err := c.kubernetes.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: a.controlPlane()})
		if err != nil {
			return nil
		}
		for _, s := range ours(list.Items) {
			names = append(names, s.Labels[label.IoIstioRev.Name])
		}
		return names
	})
}

// completeProxies offers the pods that have a sidecar: NAMESPACE/POD, or POD after -n.
func (a *app) completeProxies(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.ask(cmd, func(ctx context.Context, c *connection) (names []string) {
		list, err := c.kubernetes.CoreV1().Pods(a.namespace).List(ctx, metav1.ListOptions{LabelSelector: label.SecurityTlsMode.Name + "=istio"})
		if err != nil {
			return nil
		}
		for _, pod := range list.Items {
			names = append(names, strings.TrimPrefix(pod.Namespace+"/"+pod.Name, a.namespace+"/"))
		}
		return names
	})
}

func (a *app) ask(cmd *cobra.Command, question func(context.Context, *connection) []string) ([]string, cobra.ShellCompDirective) {
	c, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completionTimeout)
	defer cancel()
	return question(ctx, c), cobra.ShellCompDirectiveNoFileComp
}
