package cli

import (
	"slices"
	"strings"
	"testing"

	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/revision"
)

// Whoever uninstalls a revision is told who hangs on it, by its name and by a tag.
func TestUninstallNamesWhoStillAsksForTheRevision(t *testing.T) {
	facts := &revision.Facts{
		Webhooks: []revision.Webhook{
			{Kind: revision.Mutating, Name: "istio-sidecar-injector-asm-1", Revision: "asm-1", Ours: true},
			{Kind: revision.Mutating, Name: "istio-revision-tag-prod", Revision: "asm-1", Tag: "prod", Ours: true},
		},
		Namespaces: []revision.Namespace{{Name: "shop", Rev: "prod"}, {Name: "bank", Rev: "asm-1"}, {Name: "other", Rev: "asm-2"}},
		Pods:       []revision.Pod{{Namespace: "shop", Name: "web-2", Revision: "asm-1"}, {Namespace: "shop", Name: "web-1", Revision: "asm-1"}, {Namespace: "left", Name: "job", Revision: "asm-1"}},
	}
	got := hangingOn(facts, "asm-1")
	want := []string{"namespace bank (istio.io/rev=asm-1)", "namespace left (1 pod): job", "namespace shop (istio.io/rev=prod, 2 pods): web-1, web-2"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	var out strings.Builder
	a := &app{Config: Config{Program: "selvage", Stdout: &out, Stderr: &out}}
	if err := a.printRemoval(install.RemoveOptions{Revision: "asm-1", DryRun: true}, &install.Removal{Removed: []string{"x"}}, facts); err != nil {
		t.Fatal(err)
	}
	for _, line := range append(want, "Still there are users of revision asm-1:", "selvage revision migrate NAMESPACE --to REV") {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), line) {
			t.Errorf("it does not say %q:\n%s", line, out.String())
		}
	}
}

func TestAnErrorFitsATerminal(t *testing.T) {
	long := "selvage: " + strings.Repeat("many words ", 12) + "end\n  " + strings.Repeat("indented words ", 8) + "end\n  short"
	text := fold(long, plainWidth)
	for line := range strings.Lines(text) {
		if len(strings.TrimRight(line, "\n")) > plainWidth {
			t.Errorf("a line of %d characters: %q", len(line), line)
		}
	}
	if strings.Join(strings.Fields(text), " ") != strings.Join(strings.Fields(long), " ") || !strings.HasSuffix(text, "\n  short\n") || !strings.Contains(text, "\n  indented") {
		t.Errorf("it says\n%s", text)
	}
}

// The tag default leads away from the revision of that name, which so has no webhook that could be tried: its control plane says whether
// another tag may lead to it.
func TestATagMayLeadToTheRevisionThatTheDefaultTagLeft(t *testing.T) {
	a := &app{Config: Config{Program: "selvage"}, revision: "default"}
	facts := &revision.Facts{Webhooks: []revision.Webhook{{Kind: revision.Mutating, Name: "istio-sidecar-injector", Revision: "canary", Tag: "default", Ours: true}},
		ControlPlanes: []revision.ControlPlane{{Revision: "default", Ready: 1, Replicas: 2}}}
	if err := a.ready(t.Context(), nil, facts); err != nil {
		t.Error(err)
	}
	facts.ControlPlanes[0].Ready = 0
	if err := a.ready(t.Context(), nil, facts); err == nil || !strings.Contains(err.Error(), "has no replica that is ready") {
		t.Error(err)
	}
}

func TestWhatFollowsASetTag(t *testing.T) {
	facts := &revision.Facts{Namespaces: []revision.Namespace{{Name: "shop", Injection: "enabled"}, {Name: "bank", Rev: "prod"}}}
	for tag, want := range map[string]string{
		"default": "Next: kubectl rollout restart deployment -n shop   gives its pods the new sidecar\n",
		"prod":    "Next: selvage revision migrate bank --to prod   restarts the pods of that namespace\n",
	} {
		var out strings.Builder
		(&app{Config: Config{Program: "selvage", Stdout: &out}}).sayRestart(facts, tag)
		if out.String() != want {
			t.Errorf("tag %s: %q, want %q", tag, out.String(), want)
		}
	}
}
