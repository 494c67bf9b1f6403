package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/revision"
	"github.com/selvage-mesh/selvage/internal/revision/live"
)

const migratedFrom = install.MigratedAnnotation

// injectionLabels are the labels of a namespace that decide about injection.
var injectionLabels = []string{inject.NamespaceInjection, label.IoIstioRev.Name}

type migrateFlags struct {
	to           string
	undo, dryRun bool
	timeout      time.Duration
}

func (a *app) migrateCommand() *cobra.Command {
	var flags migrateFlags
	cmd := &cobra.Command{
		Use:   "migrate NAMESPACE --to REV",
		Short: "Move a namespace's pods to another revision",
		Long: "migrate labels the namespace with the revision or tag, asks the API server as a dry run whether a pod there gets that\n" +
			"sidecar (if not, the labels are put back), and then restarts its Deployments, StatefulSets and DaemonSets one after\n" +
			"the other, each by its own rolling update. It stops at the first that does not become ready: exit code 1. Run again,\n" +
			"it goes on where it stopped; --undo puts the labels back and restarts what was moved.",
		Example: a.examples(`
			selvage revision migrate shop --to asm-1234-1
			selvage revision migrate shop --to prod     a tag
			selvage revision migrate shop --undo`),
		Args: exactly("the NAMESPACE to move"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case flags.to == "" && !flags.undo:
				return &usageError{cmd.CommandPath(), errors.New("--to says which revision or tag to move to")}
			case flags.to != "" && flags.undo:
				return &usageError{cmd.CommandPath(), errors.New("--to and --undo exclude each other")}
			}
			return a.runMigrate(cmd.Context(), args[0], flags)
		},
		ValidArgsFunction: a.completeNamespaces,
	}
	f := cmd.Flags()
	f.StringVar(&flags.to, "to", "", "revision or tag to move to")
	f.BoolVar(&flags.undo, "undo", false, "move back to what the namespace used before")
	f.BoolVar(&flags.dryRun, "dry-run", false, "only say what would be done")
	f.DurationVar(&flags.timeout, "timeout", 5*time.Minute, "longest wait for one workload")
	if err := cmd.RegisterFlagCompletionFunc("to", a.completeRevisions); err != nil {
		panic("register completion of --to: " + err.Error()) // the flag exists
	}
	return cmd
}

// migration is one run.
type migration struct {
	app       *app
	c         *connection
	namespace string
	revision  string // whose sidecar pods are to have; "" for none
	labels    map[string]string
	timeout   time.Duration
	before    *corev1.Namespace
}

func (a *app) runMigrate(ctx context.Context, namespace string, flags migrateFlags) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	ns, err := c.kubernetes.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read namespace: %w", err)
	}
	facts, err := live.ControlPlanes(ctx, c.kubernetes)
	if err != nil {
		return err
	}
	m := &migration{app: a, c: c, namespace: namespace, timeout: flags.timeout, before: ns}
	if flags.undo {
		if err := json.Unmarshal([]byte(ns.Annotations[migratedFrom]), &m.labels); err != nil {
			return fmt.Errorf("namespace %s was not moved by `%s revision migrate`: there is nothing to undo", namespace, a.called())
		}
	} else {
		if !facts.Installed(flags.to) {
			return fmt.Errorf("there is no revision or tag %s: `%s revision list` lists those that there are", flags.to, a.called())
		}
		m.labels = map[string]string{label.IoIstioRev.Name: flags.to}
	}
	wanted := revision.Namespace{Name: namespace, Injection: m.labels[inject.NamespaceInjection], Rev: m.labels[label.IoIstioRev.Name]}
	if value := wanted.Value(); value != "" {
		m.revision, _ = facts.Answers(value)
	}
	return m.run(ctx, flags)
}

func (m *migration) run(ctx context.Context, flags migrateFlags) error {
	todo, ready, err := m.workloads(ctx)
	if err != nil {
		return err
	}
	for _, w := range todo {
		if w.Stuck != "" {
			return fmt.Errorf("%s would not roll out: %s. Nothing was changed", w, w.Stuck)
		}
	}
	out := m.app.Stdout
	if flags.dryRun {
		fmt.Fprintf(out, "Namespace %s would be labelled %s, and restarted would be: %s.\n", m.namespace, labelText(m.labels), workloadNames(todo))
		return nil
	}
	if err := m.relabel(ctx, flags.undo); err != nil {
		return err
	}
	bar := m.app.newBar(len(todo))
	for n, w := range todo {
		if err := m.restart(ctx, w, func(part float64, text string) { bar.show(n, part, text) }); err != nil {
			bar.clear()
			return m.stopped(ctx, err, todo[:n], w)
		}
		bar.line("%s is ready, with %s", w, m.sidecar())
	}
	bar.clear()
	if flags.undo {
		if err := m.clearUndo(ctx); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "Namespace %s: %s restarted, %d had %s already.\n", m.namespace, plural(len(todo), "workload", "workloads"), ready, m.sidecar())
	if err := m.sayLeft(ctx); err != nil {
		return err
	}
	if !flags.undo {
		fmt.Fprintf(out, "Undo: %s revision migrate %s --undo\n", m.app.called(), m.namespace)
	}
	return nil
}

// stopped says how far it came.
func (m *migration) stopped(ctx context.Context, err error, done []revision.Workload, at revision.Workload) error {
	farther := fmt.Sprintf("%d of its workloads were moved before (%s); what comes after it was not touched. "+
		"Go on with the same command, or go back with `%s revision migrate %s --undo`",
		len(done), workloadNames(done), m.app.called(), m.namespace)
	if ctx.Err() != nil {
		fmt.Fprintf(m.app.Stderr, "stopped at %s, whose restart goes on in the cluster. %s\n", at, farther)
		return err
	}
	return &problemsError{fmt.Sprintf("stopped at %s: %v. %s", at, err, farther)}
}

// sidecar is what pods are to have, for a sentence.
func (m *migration) sidecar() string {
	if m.revision == "" {
		return "no sidecar by the namespace's label"
	}
	return "the sidecar of revision " + m.revision
}

func workloadNames(list []revision.Workload) string {
	names := make([]string, len(list))
	for i, w := range list {
		names[i] = w.String()
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func labelText(labels map[string]string) string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, key+"="+labels[key])
	}
	if len(parts) == 0 {
		return "with nothing"
	}
	return strings.Join(parts, ",")
}

// relabel writes the labels, remembers those before, and proves by a dry run that they lead where they should; if they do not, it puts
// the earlier ones back.
func (m *migration) relabel(ctx context.Context, undo bool) error {
	earlier := injectionOf(m.before)
	annotations := map[string]any{}
	if _, again := m.before.Annotations[migratedFrom]; !undo && !(again && maps.Equal(earlier, m.labels)) {
		text, err := json.Marshal(earlier)
		if err != nil {
			return err
		}
		annotations[migratedFrom] = string(text)
	}
	if err := m.patchNamespace(ctx, m.labels, annotations); err != nil {
		return err
	}
	if m.revision == "" {
		return nil
	}
	err := m.prove(ctx)
	if err == nil {
		return nil
	}
	var before any // null takes it away
	if text, had := m.before.Annotations[migratedFrom]; had {
		before = text
	}
	back := m.patchNamespace(context.WithoutCancel(ctx), earlier, map[string]any{migratedFrom: before})
	return errors.Join(fmt.Errorf("pods of namespace %s would not get %s: %w. Nothing was restarted, and the namespace's labels are as before", m.namespace, m.sidecar(), err), back)
}

func injectionOf(ns *corev1.Namespace) map[string]string {
	labels := map[string]string{}
	for _, key := range injectionLabels {
		if value, ok := ns.Labels[key]; ok {
			labels[key] = value
		}
	}
	return labels
}

// patchNamespace sets the labels that decide about injection to exactly these.
func (m *migration) patchNamespace(ctx context.Context, wanted map[string]string, annotations map[string]any) error {
	labels := map[string]any{}
	for _, key := range injectionLabels {
		labels[key] = nil
		if value, ok := wanted[key]; ok {
			labels[key] = value
		}
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels, "annotations": annotations}})
	if err != nil {
		return err
	}
	_, err = m.c.kubernetes.CoreV1().Namespaces().Patch(ctx, m.namespace, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "selvage"})
	if err != nil {
		return fmt.Errorf("label namespace %s: %w", m.namespace, err)
	}
	return nil
}

// clearUndo forgets the earlier labels, which are in force again.
func (m *migration) clearUndo(ctx context.Context) error {
	return m.patchNamespace(ctx, m.labels, map[string]any{migratedFrom: nil})
}

// sayLeft names the pods that nothing restarts.
func (m *migration) sayLeft(ctx context.Context) error {
	list, err := m.c.kubernetes.CoreV1().Pods(m.namespace).List(ctx, metav1.ListOptions{LabelSelector: label.SecurityTlsMode.Name})
	if err != nil {
		return fmt.Errorf("list pods with a sidecar: %w", err)
	}
	var left []string
	for i := range list.Items {
		pod := &list.Items[i]
		has := live.SidecarOf(pod)
		ended := pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
		if has != "" && has != m.revision && !ended {
			left = append(left, pod.Name)
		}
	}
	if len(left) > mostNamed {
		left = append(left[:mostNamed:mostNamed], fmt.Sprintf("and %d more", len(left)-mostNamed))
	}
	if len(left) > 0 {
		fmt.Fprintf(m.app.Stdout, "Pods that keep an earlier sidecar, because no Deployment, StatefulSet or DaemonSet makes them anew: %s.\n", strings.Join(left, ", "))
	}
	return nil
}
