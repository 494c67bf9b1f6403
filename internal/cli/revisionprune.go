package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/selvage-mesh/selvage/internal/revision"
	"github.com/selvage-mesh/selvage/internal/revision/live"
)

// pruneFlags are those of `revision prune`.
type pruneFlags struct {
	grace       time.Duration
	yes, dryRun bool
	undo, list  bool
}

// pruned is what `revision prune` knows about one configuration.
type pruned struct {
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	Revision string `json:"revision"`
	Why      string `json:"why"`
	Removed  bool   `json:"removed"`

	webhook revision.Webhook
}

func (a *app) pruneCommand() *cobra.Command {
	flags := pruneFlags{grace: revision.DefaultGrace}
	cmd := &cobra.Command{
		Use:   "prune [--undo [NAME...]]",
		Short: "Remove webhooks that a revision has left behind, with undo",
		Long: "prune looks for webhook configurations of any mesh that are stale: they call a Service that does not exist, of a\n" +
			"revision that has no Deployment, no lease that is renewed and no connected proxy, and nothing has happened to them\n" +
			"for the grace period. Such a webhook refuses pods or configuration with `failed calling webhook ... not found`.\n\n" +
			"It shows what it would remove and asks. What it removes is kept in ConfigMap selvage-removed-webhooks, and --undo\n" +
			"brings it back. What could not be read is never a reason to remove anything.",
		Example: a.examples(`
			selvage revision prune
			selvage revision prune --yes
			selvage revision prune --grace 0s   also what was left a moment ago
			selvage revision prune --list       what can be brought back
			selvage revision prune --undo       brings back what was removed last
			selvage revision prune --undo istio-validator-asm-1200-1-istio-system`),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && !flags.undo {
				return &usageError{cmd.CommandPath(), errors.New("names are what --undo brings back; prune itself takes none")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.checkOutput(cmd, "table", "json", "yaml"); err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			keeper := live.Keeper{Kubernetes: c.kubernetes, By: "selvage revision prune"}
			switch {
			case flags.undo:
				return a.undoPrune(cmd.Context(), keeper, args)
			case flags.list:
				return a.listRemoved(cmd.Context(), keeper)
			}
			return a.runPrune(cmd.Context(), c, keeper, flags)
		},
	}
	graceFlag(cmd, &flags.grace)
	f := cmd.Flags()
	f.BoolVar(&flags.yes, "yes", false, "do not ask")
	f.BoolVar(&flags.dryRun, "dry-run", false, "only show what would be removed")
	f.BoolVar(&flags.undo, "undo", false, "bring back what was removed last, or the configurations that are named")
	f.BoolVar(&flags.list, "list", false, "list what can be brought back")
	return cmd
}

// stale are the configurations that count as stale, and what is not known of others.
func (a *app) stale(ctx context.Context, c *connection, grace time.Duration) (found []pruned, unknown []string, err error) {
	facts, err := live.ControlPlanes(ctx, c.kubernetes)
	if err != nil {
		return nil, nil, err
	}
	a.addProxies(ctx, c, facts)
	for _, w := range facts.Webhooks {
		if a.revision != "" && w.Revision != a.revision {
			continue
		}
		switch j := facts.Judge(w, facts.LastSign(w), grace); j.Verdict {
		case revision.IsStale:
			found = append(found, pruned{Kind: w.Kind, Name: w.Name, Revision: w.Revision, Why: j.Detail, webhook: w})
		case revision.IsGone, revision.Unknown:
			unknown = append(unknown, fmt.Sprintf("%s %s stays: %s", w.Kind, w.Name, j.Detail))
		case revision.Live:
		}
	}
	return found, unknown, nil
}

func (a *app) runPrune(ctx context.Context, c *connection, keeper live.Keeper, flags pruneFlags) error {
	found, unknown, err := a.stale(ctx, c, flags.grace)
	if err != nil {
		return err
	}
	for _, line := range unknown {
		fmt.Fprint(a.Stderr, wrap(line, "", plainWidth))
	}
	if len(found) == 0 {
		if a.output == "json" || a.output == "yaml" {
			return a.print([]pruned{})
		}
		fmt.Fprintln(a.Stdout, "No webhook configuration is stale.")
		return nil
	}
	if a.output != "json" && a.output != "yaml" {
		t := table{header: []string{"STALE WEBHOOK CONFIGURATION", "REVISION"}}
		for _, p := range found {
			t.add(p.Kind+" "+p.Name, p.Revision)
		}
		if err := t.write(a.Stdout); err != nil {
			return err
		}
		for _, p := range found {
			fmt.Fprint(a.Stdout, wrap(p.Name+": "+p.Why+"; "+p.webhook.Consequence()+".", "", plainWidth))
		}
	}
	if flags.dryRun {
		return a.showPruned(found, "would be removed")
	}
	if !flags.yes {
		ok, err := a.confirm(fmt.Sprintf("Remove %s?", plural(len(found), "webhook configuration", "webhook configurations")))
		if err != nil || !ok {
			return err
		}
		// The answer may have taken a while: what is stale is looked up anew, and only what was shown goes.
		if found, err = a.stillStale(ctx, c, found, flags.grace); err != nil {
			return err
		}
	}
	var failed error
	for n := range found {
		err := keeper.Remove(ctx, found[n].webhook)
		found[n].Removed = err == nil
		failed = errors.Join(failed, err)
	}
	return errors.Join(a.showPruned(found, "removed"), failed)
}

// stillStale are those of the shown that are stale now.
func (a *app) stillStale(ctx context.Context, c *connection, shown []pruned, grace time.Duration) ([]pruned, error) {
	now, _, err := a.stale(ctx, c, grace)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(shown, func(p pruned) bool {
		same := func(q pruned) bool {
			return q.webhook.UID == p.webhook.UID && q.webhook.ResourceVersion == p.webhook.ResourceVersion
		}
		gone := !slices.ContainsFunc(now, same)
		if gone {
			fmt.Fprintf(a.Stderr, "%s %s stays: it has changed, or its control plane is back\n", p.Kind, p.Name)
		}
		return gone
	}), nil
}

func (a *app) showPruned(list []pruned, verb string) error {
	if a.output == "json" || a.output == "yaml" {
		return a.print(list)
	}
	for _, p := range list {
		if p.Removed || verb != "removed" {
			fmt.Fprintf(a.Stdout, "%s %s %s\n", p.Kind, p.Name, verb)
		}
	}
	if verb == "removed" && slices.ContainsFunc(list, func(p pruned) bool { return p.Removed }) {
		fmt.Fprintf(a.Stdout, "Undo: %s revision prune --undo\n", a.called())
	}
	return nil
}

// confirm asks a question. Without anybody to answer, it fails and names the flag that answers.
func (a *app) confirm(question string) (bool, error) {
	fmt.Fprintf(a.Stderr, "%s [y/N] ", question)
	if a.Stdin == nil {
		return false, errors.New("nobody answers: --yes does")
	}
	line, err := bufio.NewReader(a.Stdin).ReadString('\n')
	if err != nil && line == "" {
		fmt.Fprintln(a.Stderr)
		return false, errors.New("nobody answers: --yes does. Nothing was changed")
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return true, nil
	}
	fmt.Fprintln(a.Stdout, "Nothing was changed.")
	return false, nil
}

func (a *app) listRemoved(ctx context.Context, keeper live.Keeper) error {
	all, err := keeper.Removed(ctx)
	if err != nil {
		return err
	}
	if a.output == "json" || a.output == "yaml" {
		return a.print(all)
	}
	if len(all) == 0 {
		fmt.Fprintln(a.Stdout, "Nothing was removed that could be brought back.")
		return nil
	}
	t := table{header: []string{"REMOVED WEBHOOK CONFIGURATION", "AT", "BY"}}
	for _, r := range all {
		t.add(r.Kind+" "+r.Name, r.RemovedAt.Format(time.RFC3339), r.By)
	}
	return t.write(a.Stdout)
}

// undoPrune brings back the named configurations, or those that were removed together last.
func (a *app) undoPrune(ctx context.Context, keeper live.Keeper, names []string) error {
	all, err := keeper.Removed(ctx)
	if err != nil {
		return err
	}
	var wanted []live.Removed
	for _, r := range all {
		last := len(names) == 0 && all[0].By == r.By && all[0].RemovedAt.Sub(r.RemovedAt) < together
		if last || slices.Contains(names, r.Name) {
			wanted = append(wanted, r)
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(wanted, func(r live.Removed) bool { return r.Name == name }) {
			return fmt.Errorf("no webhook configuration %s was removed: `%s revision prune --list` lists those that were", name, a.called())
		}
	}
	if len(wanted) == 0 {
		fmt.Fprintln(a.Stdout, "Nothing was removed that could be brought back.")
		return nil
	}
	for _, r := range wanted {
		if err := keeper.Restore(ctx, r); err != nil {
			return err
		}
		fmt.Fprintf(a.Stdout, "%s %s is back.\n", r.Kind, r.Name)
	}
	return nil
}

// together is within what time removals count as one.
const together = 30 * time.Second
