package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/selvage-mesh/selvage/internal/revision"
)

// revisionList is what `revision list` knows.
type revisionList struct {
	Revisions []revision.Revision `json:"revisions"`
	// Lost are namespaces whose label leads to no revision.
	Lost []lostNamespace `json:"lost"`
}

type lostNamespace struct {
	Namespace string `json:"namespace"`
	Asks      string `json:"asks"`
}

func (a *app) revisionListCommand() *cobra.Command {
	grace := revision.DefaultGrace
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the revisions that the cluster has, and who uses them",
		Long: "list shows the control planes, webhooks and sidecars of every revision, also of an Istio that Selvage did not install.\n" +
			"IN USE: a namespace's label leads to it, a pod has its sidecar, or a proxy is connected to it. STALE: its control\n" +
			"plane is gone and its webhooks are left, which may refuse pods or configuration: `selvage revision prune` removes\n" +
			"them. UNUSED: neither; `selvage revision retire` removes it. A dash: not known.\n\n" +
			"It ends with 1 when a revision is stale or a namespace asks for one that does not exist.",
		Example: a.examples(`
			selvage revision list
			selvage revision list --revision asm-1234-1
			selvage revision list -o json     with each namespace and webhook`),
		Args: atMost(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(cmd, "table", "json", "yaml"); err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			facts, err := a.revisions(cmd.Context(), c)
			if err != nil {
				return err
			}
			return a.showRevisions(facts, grace)
		},
	}
	graceFlag(cmd, &grace)
	return cmd
}

func graceFlag(cmd *cobra.Command, grace *time.Duration) {
	cmd.Flags().DurationVar(grace, "grace", *grace, "for how long nothing may have happened to webhooks that count as stale")
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if *grace < 0 {
			return &usageError{cmd.CommandPath(), fmt.Errorf("--grace %s is negative: 0s counts also what was left a moment ago", *grace)}
		}
		if before != nil {
			return before(cmd, args)
		}
		return nil
	}
}

func (a *app) showRevisions(facts *revision.Facts, grace time.Duration) error {
	list := revisionList{Revisions: facts.Revisions(grace), Lost: []lostNamespace{}}
	if a.revision != "" {
		list.Revisions = slices.DeleteFunc(list.Revisions, func(r revision.Revision) bool { return r.Name != a.revision })
		if len(list.Revisions) == 0 {
			return fmt.Errorf("the cluster has nothing of a revision %s: `%s revision list` lists those it has", a.revision, a.called())
		}
	} else {
		for _, ns := range facts.Lost() {
			list.Lost = append(list.Lost, lostNamespace{ns.Name, ns.Asks()})
		}
	}
	bad := len(list.Lost) > 0 || slices.ContainsFunc(list.Revisions, func(r revision.Revision) bool { return r.State == revision.Stale })
	var err error
	if a.output == "json" || a.output == "yaml" {
		err = a.print(list)
	} else {
		err = a.writeRevisions(list)
	}
	if err == nil && bad {
		return &problemsError{}
	}
	return err
}

func (a *app) writeRevisions(list revisionList) error {
	if len(list.Revisions) == 0 {
		fmt.Fprintf(a.Stdout, "The cluster has no revision of a mesh: `%s install` makes one.\n", a.called())
	} else if err := a.revisionTable(list.Revisions).write(a.Stdout); err != nil {
		return err
	}
	for _, r := range list.Revisions {
		if len(r.Namespaces) > 0 {
			fmt.Fprint(a.Stdout, wrap(fmt.Sprintf("%s is used by %s.", r.Name, someUses(r.Namespaces)), "", plainWidth))
		}
	}
	for _, r := range list.Revisions {
		for _, w := range r.Webhooks {
			switch w.Verdict {
			case revision.IsStale:
				fmt.Fprint(a.Stdout, wrap(fmt.Sprintf("stale: %s %s: %s; `%s revision prune` removes it", w.Kind, w.Name, w.Detail, a.called()), "", plainWidth))
			case revision.IsGone, revision.Unknown:
				fmt.Fprint(a.Stdout, wrap(fmt.Sprintf("%s: %s %s: %s", w.Verdict, w.Kind, w.Name, w.Detail), "", plainWidth))
			case revision.Live:
			}
		}
	}
	for _, l := range list.Lost {
		fmt.Fprint(a.Stdout, wrap(fmt.Sprintf("lost: namespace %s says %s, and no such revision or tag is installed: its pods start without a sidecar", l.Namespace, l.Asks), "", plainWidth))
	}
	return nil
}

// revisionTable fits 80 columns as long as names are no longer than usual.
func (a *app) revisionTable(list []revision.Revision) *table {
	t := &table{header: []string{"REVISION", "STATE", "CONTROL PLANE", "VERSION", "TAGS", "NAMESPACES", "PODS", "PROXIES", "WEBHOOKS"}}
	for _, r := range list {
		proxies := "-"
		if r.Proxies != nil {
			proxies = strconv.Itoa(*r.Proxies)
		}
		t.add(r.Name, string(r.State), r.ControlPlane, dash(r.Version), dash(strings.Join(r.Tags, ",")),
			strconv.Itoa(len(r.Namespaces)), strconv.Itoa(r.Pods), proxies, strconv.Itoa(len(r.Webhooks)))
	}
	if t.width() > plainWidth {
		t.drop("VERSION")
	}
	if t.width() > plainWidth {
		t.gap = 1
	}
	if a.color(a.Stdout) {
		t.paint = func(_ int, cell string) string {
			if cell == string(revision.Stale) {
				return "\x1b[31m" + cell + "\x1b[0m"
			}
			return cell
		}
	}
	return t
}

// mostNamed is how many users are named in a sentence.
const mostNamed = 5

// someUses names namespaces for a sentence, a few of them.
func someUses(uses []revision.Use) string {
	var names []string
	for n, u := range uses {
		if n == mostNamed {
			names = append(names, plural(len(uses)-n, "other namespace", "other namespaces"))
			break
		}
		names = append(names, "namespace "+u.Namespace+" ("+usedHow(u)+")")
	}
	return strings.Join(names, ", ")
}

func usedHow(u revision.Use) string {
	var how []string
	if u.Label != "" {
		how = append(how, u.Label)
	}
	if u.Tag != "" && !strings.HasSuffix(u.Label, "="+u.Tag) {
		how = append(how, "tag "+u.Tag)
	}
	if u.Pods > 0 || u.Label == "" {
		how = append(how, plural(u.Pods, "pod", "pods"))
	}
	return strings.Join(how, ", ")
}

// sortedSources are what could not be read, in a fixed order.
func sortedSources(f *revision.Facts) []revision.Source {
	return slices.SortedFunc(maps.Keys(f.Unread), func(a, b revision.Source) int {
		return cmp.Or(cmp.Compare(a.Resource, b.Resource), cmp.Compare(a.Namespace, b.Namespace))
	})
}
