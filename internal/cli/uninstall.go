package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/revision"
	"github.com/selvage-mesh/selvage/internal/revision/live"
)

func (a *app) runUninstall(ctx context.Context, options install.RemoveOptions, timeout time.Duration) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	facts, err := live.ControlPlanes(ctx, c.kubernetes) // before: afterwards nobody knows which tags led here
	if err != nil {
		return err
	}
	_ = live.AddUsers(ctx, c.kubernetes, facts) // in Unread
	installer, err := install.New(install.Config{Kubernetes: c.kubernetes, Dynamic: c.dynamic, Progress: a.Stderr, Timeout: timeout})
	if err != nil {
		return err
	}
	removal, err := installer.Uninstall(ctx, options)
	if err != nil {
		return err
	}
	if err := a.printRemoval(options, removal, facts); err != nil {
		return err
	}
	if len(removal.Removed) == 0 && options.Revision != "" {
		var names []string
		for _, r := range facts.Revisions(revision.DefaultGrace) {
			names = append(names, r.Name)
		}
		return &problemsError{fmt.Sprintf("there is no revision %s of Selvage to uninstall; the cluster has %s", options.Revision, orNone(names))}
	}
	return nil
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// removal is what `uninstall` prints for programs.
type removal struct {
	*install.Removal
	// Users are those that hang on the revision, a line each: their pods keep an old sidecar, or start without one.
	Users []string `json:"users"`
}

func (a *app) printRemoval(o install.RemoveOptions, r *install.Removal, facts *revision.Facts) error {
	name := revisionName(o.Revision)
	users := hangingOn(facts, name)
	if a.output == "json" || a.output == "yaml" {
		return a.print(removal{r, users})
	}
	verb := "removed"
	if o.DryRun {
		verb = "would be removed"
	}
	if len(r.Removed) == 0 {
		fmt.Fprintf(a.Stdout, "Nothing of Selvage's revision %s is installed.\n", name)
	} else {
		fmt.Fprintf(a.Stdout, "Revision %s: %d objects %s.\n", name, len(r.Removed), verb)
	}
	for _, kept := range r.Kept {
		fmt.Fprint(a.Stdout, wrap("Kept: "+kept, "", plainWidth))
	}
	if r.Outside != "" {
		fmt.Fprint(a.Stdout, wrap(fmt.Sprintf("%s kept this revision's webhooks right until %s ago, and no pod of the control plane is left: if it still runs, outside the cluster, "+
			"end it, or it makes its objects again.", r.Outside, r.OutsideRenewed), "", plainWidth))
	}
	if len(users) > 0 && (len(r.Removed) > 0 || o.Revision == "") {
		fmt.Fprintf(a.Stdout, "Still there are users of revision %s:\n", name)
		for _, user := range users {
			fmt.Fprint(a.Stdout, wrap(user, "  ", plainWidth))
		}
		fmt.Fprint(a.Stdout, wrap(fmt.Sprintf("Give them another revision (`%s revision migrate NAMESPACE --to REV`), or take the label away and restart them: "+
			"pods that run keep a sidecar without a control plane, and those that start get none.", a.called()), "", plainWidth))
	}
	for _, source := range sortedSources(facts) {
		if source.Resource == revision.Namespaces || source.Resource == revision.Pods {
			fmt.Fprintf(a.Stderr, "warning: %s could not be read, so who uses the revision is not known: %v\n", source.Resource, facts.Unread[source])
		}
	}
	return nil
}

// hangingOn names the namespaces that ask for a revision, and the pods that have its sidecar, some of them.
func hangingOn(facts *revision.Facts, name string) []string {
	users := []string{}
	all := facts.Revisions(revision.DefaultGrace)
	if n := slices.IndexFunc(all, func(r revision.Revision) bool { return r.Name == name }); n >= 0 {
		for _, u := range all[n].Namespaces {
			users = append(users, "namespace "+u.Namespace+" ("+usedHow(u)+")"+somePods(facts, name, u.Namespace))
		}
	}
	return users
}

func somePods(facts *revision.Facts, name, namespace string) string {
	var pods []string
	for _, p := range facts.Pods {
		if p.Revision == name && p.Namespace == namespace {
			pods = append(pods, p.Name)
		}
	}
	if len(pods) == 0 {
		return ""
	}
	slices.Sort(pods)
	if len(pods) > mostNamed {
		pods = append(pods[:mostNamed:mostNamed], fmt.Sprintf("and %d more", len(pods)-mostNamed))
	}
	return ": " + strings.Join(pods, ", ")
}
