package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/selvage-mesh/selvage/internal/revision"
	"github.com/selvage-mesh/selvage/internal/revision/live"
)

func (a *app) revisionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revision COMMAND",
		Short: "Look after the revisions of the mesh: upgrades, tags, leftovers",
		Long: "A revision is one control plane with the webhooks that lead to it. Several run side by side; an upgrade installs the\n" +
			"new one (`selvage install --revision REV`), moves namespaces to it one by one (`selvage revision migrate`), and\n" +
			"removes the old one when nobody uses it any more (`selvage revision retire`).",
		Example: a.examples(`
			selvage revision list
			selvage revision tag set prod --revision asm-1234-1
			selvage revision migrate shop --to asm-1234-1
			selvage revision retire asm-1200-1
			selvage revision prune     removes webhooks that a revision has left behind`),
		Args: subcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.revisionListCommand(), a.tagCommand(), a.migrateCommand(), a.retireCommand(), a.pruneCommand())
	return cmd
}

// exactly is cobra's check of the number of arguments, which names are what they are for.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		if len(args) < len(names) {
			return &usageError{cmd.CommandPath(), fmt.Errorf("%s wants %s", cmd.Name(), names[len(args)])}
		}
		return atMost(len(names))(cmd, args)
	}
}

// revisions reads all that is known of the cluster's revisions and their users. It fails when even the webhooks cannot be read; what
// else cannot is said as a warning.
func (a *app) revisions(ctx context.Context, c *connection) (*revision.Facts, error) {
	f, err := live.ControlPlanes(ctx, c.kubernetes)
	if err != nil {
		return nil, err
	}
	_ = live.AddUsers(ctx, c.kubernetes, f) // in Unread
	a.addProxies(ctx, c, f)
	for _, source := range sortedSources(f) {
		where := ""
		if source.Namespace != "" {
			where = " in namespace " + source.Namespace
		}
		fmt.Fprintf(a.Stderr, "warning: %s%s could not be read, so what depends on them is not known: %v\n", source.Resource, where, f.Unread[source])
	}
	return f, nil
}

// addProxies asks the control planes of Selvage which proxies are connected. Others are not asked: they have no page for it.
func (a *app) addProxies(ctx context.Context, c *connection, f *revision.Facts) {
	ours := false
	for _, p := range f.ControlPlanes {
		ours = ours || p.Ours
	}
	if !ours {
		return
	}
	all := *a
	all.revision = ""
	targets, err := all.targets(ctx, c, "")
	if err != nil {
		f.Unread[revision.Source{Resource: revision.Proxies}] = err
		return
	}
	token, err := readerToken(ctx, c)
	if err != nil {
		f.Unread[revision.Source{Resource: revision.Proxies}] = err
		return
	}
	silent := map[string]bool{}
	for _, t := range targets {
		answer, err := t.read(ctx, token)
		if err != nil {
			silent[t.revision] = true
			f.Unread[revision.Source{Resource: revision.Proxies}] = fmt.Errorf("replica %s of revision %s: %w", t.name, t.revision, err)
			continue
		}
		f.AskedProxies[t.revision] = true
		for _, p := range answer.Proxies {
			f.Proxies = append(f.Proxies, revision.Proxy{Namespace: p.Namespace, Pod: p.Pod, Revision: t.revision})
		}
	}
	for revision := range silent {
		delete(f.AskedProxies, revision)
	}
}
