package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/revision"
)

func (a *app) retireCommand() *cobra.Command {
	var dryRun bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "retire REV",
		Short: "Uninstall a revision that nobody uses any more",
		Long: "retire refuses while a namespace's label or a tag leads to the revision, a pod has its sidecar or a proxy is\n" +
			"connected to it, and names them: exit code 1. It refuses too when that could not be read. Otherwise it does what\n" +
			"`selvage uninstall --revision REV` does.",
		Example: a.examples(`
			selvage revision retire asm-1200-1
			selvage revision retire asm-1200-1 --dry-run`),
		Args: exactly("the REV to retire"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.checkOutput(cmd, "table", "json", "yaml"); err != nil {
				return err
			}
			return a.runRetire(cmd.Context(), args[0], install.RemoveOptions{Revision: args[0], DryRun: dryRun}, timeout)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be removed")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "longest wait for each thing that is waited for")
	return cmd
}

func (a *app) runRetire(ctx context.Context, name string, options install.RemoveOptions, timeout time.Duration) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	facts, err := a.revisions(ctx, c)
	if err != nil {
		return err
	}
	all := facts.Revisions(revision.DefaultGrace)
	n := slices.IndexFunc(all, func(r revision.Revision) bool { return r.Name == name })
	if n < 0 {
		return fmt.Errorf("the cluster has nothing of a revision %s: `%s revision list` lists those it has", name, a.called())
	}
	r := all[n]
	if !r.Selvage {
		return fmt.Errorf("revision %s was not installed by Selvage: remove it with what installed it, such as `istioctl uninstall --revision %s` or helm", name, name)
	}
	if users := usersOf(&r); len(users) > 0 {
		return &problemsError{fmt.Sprintf("revision %s is in use, so nothing was removed:\n  %s\nMove namespaces with `%s revision migrate NAMESPACE --to REV`, tags with `%s revision tag set TAG --revision REV`.",
			name, strings.Join(users, "\n  "), a.called(), a.called())}
	}
	if len(facts.Unread) > 0 {
		return errors.New("whether somebody uses the revision is not known, so nothing was removed: see the warnings above; `" + a.called() + " uninstall --revision " + name + "` removes it all the same")
	}
	installer, err := install.New(install.Config{Kubernetes: c.kubernetes, Dynamic: c.dynamic, Progress: a.Stderr, Timeout: timeout})
	if err != nil {
		return err
	}
	removal, err := installer.Uninstall(ctx, options)
	if err != nil {
		return err
	}
	return a.printRemoval(options, removal, facts)
}

// usersOf names all that hangs on a revision, a line each.
func usersOf(r *revision.Revision) (users []string) {
	for _, tag := range r.Tags {
		users = append(users, "tag "+tag+" names it")
	}
	for _, u := range r.Namespaces {
		users = append(users, "namespace "+u.Namespace+": "+usedHow(u))
	}
	if r.Proxies != nil && *r.Proxies > 0 {
		verb := "are"
		if *r.Proxies == 1 {
			verb = "is"
		}
		users = append(users, fmt.Sprintf("%s %s connected to it", plural(*r.Proxies, "proxy", "proxies"), verb))
	}
	return users
}
