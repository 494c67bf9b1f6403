package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/util/retry"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/install"
	policylive "github.com/selvage-mesh/selvage/internal/policy/live"
	"github.com/selvage-mesh/selvage/internal/revision"
)

func (a *app) tagCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tag COMMAND",
		Short: "Give a revision another name for the label istio.io/rev",
		Long: "A tag is a name that namespaces use (istio.io/rev=TAG) instead of a revision's, so that an upgrade moves the tag and\n" +
			"not every label. The tag \"default\" is the revision that istio-injection=enabled leads to; an istiod-default-validator that\n" +
			"is there, as Istio has it, follows it.",
		Example: a.examples(`
			selvage revision tag set prod --revision asm-1234-1
			selvage revision tag remove prod`),
		Args: subcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.tagSetCommand(), a.tagRemoveCommand())
	return cmd
}

func (a *app) tagSetCommand() *cobra.Command {
	var force, dryRun bool
	cmd := &cobra.Command{
		Use:   "set TAG --revision REV",
		Short: "Let a tag name a revision, at one instant",
		Long: "set makes the tag, or moves it. A move is one write of one object, so that at every moment exactly one control plane\n" +
			"answers for a pod. Pods that run keep the sidecar they have; those that are created afterwards get the new revision's.\n\n" +
			"It first asks the API server, as a dry run, whether the revision gives pods their sidecars, and changes nothing if not.",
		Example: a.examples(`
			selvage revision tag set prod --revision asm-1234-1
			selvage revision tag set default --revision asm-1234-1   what istio-injection=enabled leads to`),
		Args: exactly("the TAG to set"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.revision == "" {
				return &usageError{cmd.CommandPath(), fmt.Errorf("--revision says which revision tag %s is to name", args[0])}
			}
			if problems := validation.IsDNS1123Label(args[0]); len(problems) > 0 {
				return &usageError{cmd.CommandPath(), fmt.Errorf("tag %q cannot be used: %s", args[0], problems[0])}
			}
			return a.runTagSet(cmd.Context(), args[0], tagFlags{force: force, dryRun: dryRun})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "set it also when the revision does not inject now")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would change")
	return cmd
}

type tagFlags struct{ force, dryRun bool }

// tagProbe is how long the revision's injection is tried.
const tagProbe = 10 * time.Second

func (a *app) runTagSet(ctx context.Context, tag string, flags tagFlags) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	facts, err := a.revisions(ctx, c)
	if err != nil {
		return err
	}
	request := revision.TagRequest{Tag: tag, Revision: a.revision}
	if tag == inject.DefaultTag {
		request.EnableNamespacesByDefault = c.everyNamespace(ctx, a.revision)
	}
	plan := func(observed []admissionv1.MutatingWebhookConfiguration) (revision.Tag, error) {
		return revision.SetTag(observed, request)
	}
	first, err := c.planTag(ctx, plan)
	if err != nil {
		return err
	}
	if first.From == a.revision {
		fmt.Fprintf(a.Stdout, "Tag %s names revision %s already.\n", tag, a.revision)
		return a.followDefault(ctx, c, validatorRequest{tag: tag, revision: a.revision, dryRun: flags.dryRun}) // where a run before this one broke off
	}
	if !flags.force {
		if err := a.ready(ctx, c, facts); err != nil {
			return fmt.Errorf("%w. Nothing was changed; --force sets the tag all the same", err)
		}
	}
	change := fmt.Sprintf("names revision %s", a.revision)
	if first.From != "" {
		change = fmt.Sprintf("names revision %s instead of %s", a.revision, first.From)
	}
	if flags.dryRun {
		fmt.Fprintf(a.Stdout, "Tag %s would change: it then %s.\n", tag, change)
		return a.followDefault(ctx, c, validatorRequest{tag: tag, revision: a.revision, dryRun: true})
	}
	// Before, so that from the write on the webhook alone decides, and after, for a control plane that has looked in between.
	if err := policylive.TakeName(ctx, c.dynamic, tag, a.revision); err != nil {
		return err
	}
	done, err := c.writeTag(ctx, plan)
	if err != nil {
		return err
	}
	if err := policylive.TakeName(ctx, c.dynamic, tag, a.revision); err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "Tag %s now %s (MutatingWebhookConfiguration %s).\n", tag, change, done.After.Name)
	if err := a.followDefault(ctx, c, validatorRequest{tag: tag, revision: a.revision}); err != nil {
		return err
	}
	a.sayRestart(facts, tag)
	return nil
}

// sayRestart names the namespaces whose pods keep the earlier revision's sidecar until they are created anew.
func (a *app) sayRestart(facts *revision.Facts, tag string) {
	for _, name := range facts.TagUsers(tag) {
		if tag == inject.DefaultTag { // they say istio-injection=enabled, which stays
			fmt.Fprintf(a.Stdout, "Next: kubectl rollout restart deployment -n %s   gives its pods the new sidecar\n", name)
			continue
		}
		fmt.Fprintf(a.Stdout, "Next: %s revision migrate %s --to %s   restarts the pods of that namespace\n", a.called(), name, tag)
	}
}

// ready fails when the revision cannot serve a tag now. A revision whose own name leads to another one, by the tag default, has no webhook
// of its own that could be tried: its control plane says it.
func (a *app) ready(ctx context.Context, c *connection, facts *revision.Facts) error {
	if answers, tag := facts.Answers(a.revision); tag == "" || answers == a.revision {
		return a.injects(ctx, c, a.revision)
	}
	for _, p := range facts.ControlPlanes {
		if p.Revision == a.revision && (p.Ready > 0 || p.Outside) {
			return nil
		}
	}
	return fmt.Errorf("revision %s has no replica that is ready: `%s revision list` shows it", a.revision, a.called())
}

// injects fails when the revision does not give a pod its sidecar now.
func (a *app) injects(ctx context.Context, c *connection, name string) error {
	installer, err := install.New(install.Config{Kubernetes: c.kubernetes, Dynamic: c.dynamic, Progress: a.Stderr, Timeout: tagProbe})
	if err != nil {
		return err
	}
	verdict, err := installer.Probe(ctx, install.Options{Revision: name})
	if err != nil {
		return err
	}
	if !verdict.Injects {
		return fmt.Errorf("revision %s does not give pods their sidecars: %s", name, verdict.Detail)
	}
	return nil
}

// everyNamespace reads whether the revision injects in namespaces that say nothing. What cannot be read counts as no.
func (c *connection) everyNamespace(ctx context.Context, name string) bool {
	cm, err := c.kubernetes.CoreV1().ConfigMaps(install.Namespace).Get(ctx, inject.ObjectName(inject.InjectorConfigMap, name), metav1.GetOptions{})
	if err != nil {
		return false
	}
	var values struct {
		Injector struct {
			EnableNamespacesByDefault bool `json:"enableNamespacesByDefault"`
		} `json:"sidecarInjectorWebhook"`
	}
	return json.Unmarshal([]byte(cm.Data[inject.ValuesKey]), &values) == nil && values.Injector.EnableNamespacesByDefault
}

type tagPlan func([]admissionv1.MutatingWebhookConfiguration) (revision.Tag, error)

// planTag decides on what the cluster has now.
func (c *connection) planTag(ctx context.Context, plan tagPlan) (revision.Tag, error) {
	list, err := c.kubernetes.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return revision.Tag{}, fmt.Errorf("list mutatingwebhookconfigurations: %w", err)
	}
	return plan(list.Items)
}

// writeTag decides and writes, again on fresh state when somebody wrote in between.
func (c *connection) writeTag(ctx context.Context, plan tagPlan) (done revision.Tag, err error) {
	err = retry.OnError(retry.DefaultBackoff, overtaken, func() error {
		var err error
		if done, err = c.planTag(ctx, plan); err != nil {
			return err
		}
		hooks := c.kubernetes.AdmissionregistrationV1().MutatingWebhookConfigurations()
		switch {
		case done.Before == nil:
			_, err = hooks.Create(ctx, done.After, metav1.CreateOptions{FieldManager: install.FieldManager})
		case done.After == nil:
			err = hooks.Delete(ctx, done.Before.Name, exactlyThis(done.Before))
		default: // carries the resource version that was read
			_, err = hooks.Update(ctx, done.After, metav1.UpdateOptions{FieldManager: install.FieldManager})
		}
		return err
	})
	if err != nil {
		return done, fmt.Errorf("write the tag: %w", err)
	}
	return done, nil
}

// overtaken reports whether somebody else wrote in between.
func overtaken(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err)
}

// exactlyThis lets a deletion take nothing but the object as it was read.
func exactlyThis(object metav1.Object) metav1.DeleteOptions {
	uid, version := object.GetUID(), object.GetResourceVersion()
	return metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version}}
}

func (a *app) tagRemoveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "remove TAG",
		Short: "Remove a tag that nobody uses",
		Long: "remove takes the tag away. Pods of namespaces that use it would start without a sidecar afterwards, so it refuses,\n" +
			"and names them, while there are any.",
		Example: a.examples(`selvage revision tag remove prod`),
		Args:    exactly("the TAG to remove"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runTagRemove(cmd.Context(), args[0], force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove it also while namespaces use it")
	return cmd
}

func (a *app) runTagRemove(ctx context.Context, tag string, force bool) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	facts, err := a.revisions(ctx, c)
	if err != nil {
		return err
	}
	installed := func(name string) bool {
		for _, p := range facts.ControlPlanes {
			if p.Revision == name {
				return true
			}
		}
		return false
	}
	plan := func(observed []admissionv1.MutatingWebhookConfiguration) (revision.Tag, error) {
		return revision.RemoveTag(observed, tag, installed)
	}
	first, err := c.planTag(ctx, plan)
	if err != nil {
		return err
	}
	if users := facts.TagUsers(tag); first.After == nil && !force {
		if err := facts.Unread[revision.Source{Resource: revision.Namespaces}]; err != nil {
			return fmt.Errorf("who uses tag %s is not known: %w. Nothing was changed; --force removes it all the same", tag, err)
		}
		if len(users) > 0 {
			return &problemsError{fmt.Sprintf("tag %s is used by namespaces %s, whose pods would start without a sidecar: "+
				"give them another label first (`%s revision migrate NAMESPACE --to REV`), or remove it all the same with --force",
				tag, strings.Join(users, ", "), a.called())}
		}
	}
	done, err := c.writeTag(ctx, plan)
	if err != nil {
		return err
	}
	if err := policylive.TakeName(ctx, c.dynamic, tag, ""); err != nil {
		return err
	}
	if done.After != nil {
		fmt.Fprintf(a.Stdout, "Tag %s is removed: revision %s answers again by its own name.\n", tag, tag)
		return a.followDefault(ctx, c, validatorRequest{tag: tag, revision: tag})
	}
	fmt.Fprintf(a.Stdout, "Tag %s is removed (MutatingWebhookConfiguration %s); it named revision %s.\n", tag, done.Before.Name, done.From)
	return a.followDefault(ctx, c, validatorRequest{tag: tag})
}
